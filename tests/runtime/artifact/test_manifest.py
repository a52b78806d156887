"""Every way in which an artifact can be damaged, and that each is told before an engine is loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import generator
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.errors import ArtifactError, BackendError, IntegrityError, MarError
from runtime.files import sha256
from runtime.generator import Generator
from runtime.model.engine_spec import DECODER, ENCODER, ENGINES
from runtime.sampling.settings import Sampling

Json = Any
Refused = Callable[[type[MarError]], str]  # see the fixture `refused`

TOP_LEVEL = (
    "format_version",
    "model",
    "tokenizer",
    "class_names",
    "sampling",
    "presets",
    "precision",
    "files",
    "engines",
    "provenance",
    "parity",
    "builds",
)


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy to damage. Its parent holds nothing else."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


def read_manifest(artifact: pathlib.Path) -> dict[str, Json]:
    value: dict[str, Json] = json.loads((artifact / MANIFEST).read_text())
    return value


def change_manifest(artifact: pathlib.Path, where: str, value: object) -> None:
    """Set, or with MISSING remove, the entry at `where`: keys and positions in lists, joined by `/`."""
    manifest = read_manifest(artifact)
    *parents, last = where.split("/")
    inner: Json = manifest
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    position: Json = int(last) if isinstance(inner, list) else last
    if value is MISSING:
        del inner[position]
    else:
        inner[position] = value
    (artifact / MANIFEST).write_text(json.dumps(manifest))


def load(artifact: pathlib.Path) -> None:
    Generator.load(artifact, threads=1).close()


@pytest.fixture
def refused(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Loads the damaged artifact, and returns why that was refused; no backend may be opened for it."""

    def opened(*told: object) -> NoReturn:
        raise AssertionError(f"a backend was opened for a damaged artifact: {told}")

    def check(kind: type[MarError]) -> str:
        monkeypatch.setattr(generator, "open_backend", opened)
        with pytest.raises(MarError) as refusal:
            load(artifact)
        assert type(refusal.value) is kind
        return str(refusal.value)

    return check


def test_an_undamaged_copy_loads(artifact: pathlib.Path) -> None:
    load(artifact)


# The manifest as a text.

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "not an object": lambda whole: b"[" + whole + b"]",
    "a number": lambda whole: b"1",
    "null": lambda whole: b"null",
    "no text": lambda whole: b"\xff\xfe" + whole,
    "more behind it": lambda whole: whole + whole,
    "brackets without end": lambda whole: b"[" * 200_000,
    "a number without end": lambda whole: b'{"format_version": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("share", [0, 10, 50, 99])
def test_a_manifest_that_is_cut_off_is_refused(artifact: pathlib.Path, refused: Refused, share: int) -> None:
    manifest = artifact / MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[: len(whole) * share // 100])
    assert str(manifest) in refused(ArtifactError)


@pytest.mark.parametrize("damage", TEXTS)
def test_a_manifest_that_is_no_whole_json_object_is_refused(
    artifact: pathlib.Path, refused: Refused, damage: str
) -> None:
    manifest = artifact / MANIFEST
    manifest.write_bytes(TEXTS[damage](manifest.read_bytes()))
    assert str(manifest) in refused(ArtifactError)


@pytest.mark.parametrize(
    "path", ["", "artifact/nothing", "artifact/backbone.onnx", "n" * 300], ids=lambda path: path[:9]
)
def test_what_has_no_manifest_is_no_artifact(artifact: pathlib.Path, path: str) -> None:
    with pytest.raises(ArtifactError) as refusal:
        load(artifact.parent / path)
    assert str(artifact.parent / path) in str(refusal.value)
    assert MANIFEST in str(refusal.value)


def test_a_folder_that_lost_its_manifest_is_no_artifact(artifact: pathlib.Path, refused: Refused) -> None:
    (artifact / MANIFEST).unlink()
    assert f"{artifact}: not an artifact" in refused(ArtifactError)


# What the manifest says.

SECTIONS = ("model", "sampling", "presets", "files", "engines", "provenance", "parity")
NO_OBJECT: list[Json] = [[], None, "text", 1]
NO_NUMBER: list[Json] = [MISSING, "1e-5", None, True, [], math.nan, math.inf]
DIGEST = "0123456789abcdef" * 4
SETTINGS = dataclasses.asdict(Sampling())

# Where the manifest is changed, to each of which values, and what must be told besides its path.
CHANGES: list[tuple[str, list[Json], str]] = [
    ("surprise", [1], "surprise"),
    ("format_version", [MISSING], "format version None"),
    ("format_version", [0, 1, 2, 3, 4, 5, 6, "7", 7.0, None, [4], True], "format version {value!r}"),
    *((key, [MISSING], key) for key in TOP_LEVEL[1:]),
    *((section, NO_OBJECT, section) for section in SECTIONS),
    # The model
    ("model/surprise", [1], "surprise"),
    *((f"model/{key}", [MISSING], key) for key in ("img_size", "vae_stride", "patch_size", "class_num", "buffer_size")),
    ("model/img_size", ["64", 64.5, None, True, -64, 0, 10**9, 65, math.nan, math.inf], "img_size"),
    ("model/mlp_ratio", ["4", None, True, math.nan, -math.inf, 1e9], "mlp_ratio"),
    ("model/encoder_num_heads", [5], "heads"),
    # Names of things
    ("tokenizer", ["vae", None, ["none"], {"none": 1}], "tokenizer {value!r}"),
    ("tokenizer", ["pixel"], "pixel"),  # a token of this model has eight channels, and no image has
    ("tokenizer", ["kl"], "engines: missing keys decoder"),
    ("precision", ["int4", "FP16", None, ["fp32"], 32], "precision {value!r}"),
    ("class_names", ["abcdef", None, {}, [1] * 6, ["a"] * 5 + [None]], "class_names"),
    ("class_names", [["a"], ["a"] * 5, ["a"] * 7], "class names for 6 classes"),
    # How it is drawn where a request does not say
    ("sampling/surprise", [1], "surprise"),
    ("sampling/iterations", [MISSING, 0, 17, 2.5, "4", True], "iterations"),
    ("sampling/cfg_scale", [MISSING, None, -1.0, "2", True, [], math.nan, math.inf], "cfg_scale"),
    ("sampling/cfg_schedule", [MISSING, None, "cosine", 1, []], "cfg_schedule"),
    ("sampling/temperature", [MISSING, None, -1.0, "1", True, {}, math.nan, math.inf], "temperature"),
    ("sampling/sampler", [MISSING, None, "euler", 1, []], "sampler"),
    ("sampling/diffusion_steps", [MISSING, None, 1, 2.5, "ddim7000", "x", [], math.inf], "diffusion_steps"),
    ("presets", [{"fast": {}}, {"own": {}}], "presets: the names own, exact, balanced, fast, turbo are taken"),
    ("presets", [{"": {}}, {"a b": {}}, {"../x": {}}, {"a" * 41: {}}], "presets: the name of a preset must be"),
    ("presets", [{"mine": each} for each in NO_OBJECT], "presets: 'mine': expected a JSON object"),
    ("presets", [{"mine": {}}], "presets: 'mine': missing keys cfg_interval"),
    ("presets", [{"mine": {**SETTINGS, "surprise": 1}}], "presets: 'mine': unknown keys surprise"),
    ("presets", [{"mine": {**SETTINGS, "iterations": 3, "diffusion_steps": [5, 5]}}], "presets: 'mine': diffusion_st"),
    ("presets", [{"mine": {**SETTINGS, "iterations": 17}}], "presets: 'mine': iterations must lie in 1..16"),
    # Files
    ("files/backbone.onnx", [MISSING, {}, *NO_OBJECT], "backbone.onnx"),
    ("files/backbone.onnx/surprise", [1], "surprise"),
    ("files/backbone.onnx/bytes", [MISSING], "bytes"),
    ("files/backbone.onnx/bytes", ["9", 1.5, -1, None, True], "bytes must be a whole number, found {value!r}"),
    ("files/backbone.onnx/sha256", [MISSING], "sha256"),
    ("files/backbone.onnx/sha256", ["", DIGEST[:63], DIGEST + "0", "g" * 64, DIGEST.upper(), None, []], "{value!r}"),
    # Engines
    ("engines/surprise", [{}], "surprise"),
    *((f"engines/{name}", [MISSING], name) for name in ENGINES),
    *((f"engines/{name}", [{}, {"file": "backbone.onnx"}], f"keys {name}") for name in (DECODER, ENCODER)),
    ("engines/backbone", NO_OBJECT, "engine backbone"),
    ("engines/backbone/file", [MISSING, "nothing.onnx", "", None, 1, [], {}], "engine backbone"),
    ("engines/backbone/surprise", [1], "engine backbone"),
    ("engines/backbone/inputs", [MISSING, [], None, "text"], "engine backbone"),
    ("engines/backbone/inputs/0/name", ["latents"], "engine backbone"),
    ("engines/backbone/inputs/1/dtype", ["int32"], "engine backbone"),
    ("engines/backbone/inputs/0/shape", [["B", "V", 9], ["B", "V"]], "engine backbone"),
    ("engines/backbone/inputs/0/shape/0", ["b", 2], "engine backbone"),
    ("engines/backbone/inputs/4", [MISSING], "engine backbone"),
    ("engines/conditioning/outputs/0/name", ["mod"], "engine conditioning"),
    ("engines/denoise/tolerance", [1e-5], "engine denoise"),
    # Reports
    ("provenance/torch", [None, 2.5, [], {}], "provenance: torch"),
    *((f"parity/{name}", [MISSING], name) for name in (*ENGINES, "generation")),
    ("parity/surprise", [{"relative_l2": 0.0, "tolerance": 0.0}], "surprise"),
    ("parity/backbone", NO_OBJECT, "parity: backbone"),
    ("parity/generation/relative_l2", NO_NUMBER, "parity: generation: relative_l2"),
    ("parity/generation/tolerance", NO_NUMBER, "parity: generation: tolerance"),
    ("parity/generation", [{"relative_l2": 0.0, "of": "latents"}], "parity: generation: tolerance"),
    ("parity/backbone/tolerance", NO_NUMBER, "parity: backbone: tolerance"),
    ("parity/backbone", [{"of": "latents"}], "parity: backbone: relative_l2"),
    # What was built from it
    ("builds", [None, {}, "denoise", 1], "builds must be a list"),
    ("builds", [[None], [{}], [[]]], "a build must have exactly the keys"),
]
CASES = [(where, value, told.format(value=value)) for where, values, told in CHANGES for value in values]


@pytest.mark.parametrize(("where", "value", "told"), CASES, ids=lambda part: repr(part)[:32])
def test_a_manifest_that_says_something_impossible_is_refused(
    artifact: pathlib.Path, refused: Refused, where: str, value: object, told: str
) -> None:
    change_manifest(artifact, where, value)
    refusal = refused(ArtifactError)
    assert str(artifact / MANIFEST) in refusal
    if isinstance(value, float) and not math.isfinite(value):
        told = "is not JSON"
    assert told in refusal.removeprefix(str(artifact / MANIFEST))


def test_a_precision_that_the_backend_has_no_products_for_is_told_with_those_it_has(artifact: pathlib.Path) -> None:
    change_manifest(artifact, "precision", "bf16")
    with pytest.raises(BackendError) as refusal:
        load(artifact)
    assert str(refusal.value).startswith(f"{artifact} is in bf16, but onnxruntime ")
    assert "has fp32, fp16, " in str(refusal.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_whose_file_is_that_of_another_engine_is_refused(artifact: pathlib.Path, engine: str) -> None:
    """Both files are listed and whole; only the graph itself shows that it is the wrong one."""
    other = next(name for name in ENGINES if name != engine)
    change_manifest(artifact, f"engines/{engine}/file", f"{other}.onnx")
    with pytest.raises(BackendError) as refusal:
        load(artifact)
    assert str(artifact / f"{other}.onnx") in str(refusal.value)


# Where the manifest points.

ESCAPES = ("../outside.onnx", "sub/../../outside.onnx", "/etc/hostname", "..", "", "c:\\a", "..\\a", "c:a", "a\0b")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_file_outside_the_artifact_is_refused_by_its_name(
    artifact: pathlib.Path, refused: Refused, name: str
) -> None:
    shutil.copyfile(artifact / "backbone.onnx", artifact.parent / "outside.onnx")
    list_as(artifact, name)
    refusal = refused(IntegrityError)
    assert str(artifact / MANIFEST) in refusal
    assert repr(name) in refusal


@pytest.mark.parametrize(
    "name",
    ["sub", "sub/../backbone.onnx", "nothing.onnx", "n" * 300, "\ud800"],
    ids=lambda name: ascii(name)[:30],
)
def test_a_name_that_is_no_file_of_the_artifact_is_refused(artifact: pathlib.Path, refused: Refused, name: str) -> None:
    (artifact / "sub").mkdir()
    list_as(artifact, name)
    assert name in refused(IntegrityError)


def list_as(artifact: pathlib.Path, name: str) -> None:
    """List the backbone's file under another name, with the size and hash it has."""
    files = read_manifest(artifact)["files"]
    change_manifest(artifact, "files", {**files, name: files["backbone.onnx"]})


def test_a_link_to_a_file_outside_is_refused(artifact: pathlib.Path, refused: Refused) -> None:
    file, outside = artifact / "backbone.onnx", artifact.parent / "outside.onnx"
    file.rename(outside)
    file.symlink_to(outside)
    refusal = refused(IntegrityError)
    assert str(file) in refusal
    assert str(outside) in refusal


def test_a_link_to_a_folder_outside_is_refused(artifact: pathlib.Path, refused: Refused) -> None:
    outside = artifact.parent / "outside"
    outside.mkdir()
    shutil.copyfile(artifact / "backbone.onnx", outside / "backbone.onnx")
    (artifact / "sub").symlink_to(outside)
    list_as(artifact, "sub/backbone.onnx")
    assert str(artifact / "sub" / "backbone.onnx") in refused(IntegrityError)


def test_an_artifact_may_itself_be_reached_through_a_link(artifact: pathlib.Path) -> None:
    link = artifact.parent / "link"
    link.symlink_to(artifact)
    load(link)


# The files.


def cut_off(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def extended(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def emptied(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def with_one_bit_flipped(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of a weight
    file.write_bytes(content)


def replaced_by_a_folder(file: pathlib.Path) -> None:
    file.unlink()
    file.mkdir()


def replaced_by_a_link_to_itself(file: pathlib.Path) -> None:
    file.unlink()
    file.symlink_to(file)


def swapped_with_another(file: pathlib.Path) -> None:
    other = next(path for path in file.parent.glob("*.onnx") if path != file)
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


FAULTS = (
    pathlib.Path.unlink,
    cut_off,
    extended,
    emptied,
    with_one_bit_flipped,
    replaced_by_a_folder,
    replaced_by_a_link_to_itself,
    swapped_with_another,
)


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_is_refused_before_it_is_loaded(
    artifact: pathlib.Path, refused: Refused, engine: str, damage: Callable[[pathlib.Path], None]
) -> None:
    damage(artifact / f"{engine}.onnx")
    refusal = refused(IntegrityError)
    # Of two swapped files either may be told first.
    told = ENGINES if damage is swapped_with_another else [engine]
    assert any(str(artifact / f"{name}.onnx") in refusal for name in told)


@pytest.mark.parametrize(("key", "value"), [("bytes", 1), ("sha256", DIGEST)])
def test_a_file_of_another_size_or_hash_than_listed_is_refused(
    artifact: pathlib.Path, refused: Refused, key: str, value: object
) -> None:
    change_manifest(artifact, f"files/denoise.onnx/{key}", value)
    assert str(artifact / "denoise.onnx") in refused(IntegrityError)


def test_two_files_of_one_size_that_changed_names_are_refused(artifact: pathlib.Path, refused: Refused) -> None:
    """Sizes alone do not tell them apart."""
    one, other = artifact / "one.bin", artifact / "other.bin"
    for file, content in ((one, b"1"), (other, b"2")):
        file.write_bytes(content)
    files = read_manifest(artifact)["files"]
    for file in (one, other):
        files[file.name] = {"bytes": 1, "sha256": sha256(file)}
    change_manifest(artifact, "files", files)
    load(artifact)
    swapped_content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(swapped_content)
    assert str(one) in refused(IntegrityError)


# Anything else.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
KNOWN_TEXTS = st.sampled_from([*TOP_LEVEL, *ENGINES, "generation", "file", "backbone.onnx", "pixel", "B", "float32"])
VALUES = st.recursive(
    SCALARS | KNOWN_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_TEXTS | st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mutate(value: Json, data: st.DataObject) -> Json:
    """`value` with one entry, at any depth, replaced, removed, or added."""
    if not value or not isinstance(value, (dict, list)) or data.draw(st.integers(0, 5)) == 0:
        return data.draw(VALUES)
    changed: Json = copy.copy(value)
    keys: list[Json] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys))
    match data.draw(st.sampled_from(["deeper"] * 6 + ["remove", "add"])):
        case "remove":
            del changed[key]
        case "add" if isinstance(value, dict):
            changed[data.draw(KNOWN_TEXTS | st.text(max_size=5))] = data.draw(VALUES)
        case "add":
            changed.insert(key, data.draw(VALUES))
        case _:
            changed[key] = mutate(value[key], data)
    return changed


@pytest.fixture(scope="module")
def mutable(golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One copy for all mutations, each of which writes the whole manifest anew."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path_factory.mktemp("mutable") / "artifact"))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_manifest_loads_or_is_refused(
    golden_artifacts: dict[str, pathlib.Path], mutable: pathlib.Path, data: st.DataObject
) -> None:
    mutated = mutate(read_manifest(golden_artifacts["small"]), data)
    (mutable / MANIFEST).write_text(json.dumps(mutated))
    try:
        load(mutable)
    except MarError as refusal:
        assert str(mutable) in str(refusal)


# Round trips.


@pytest.mark.parametrize("model", ["small", "patch2"])
def test_a_manifest_survives_its_json(golden_artifacts: dict[str, pathlib.Path], model: str) -> None:
    written = json.loads((golden_artifacts[model] / MANIFEST).read_text())
    manifest = Manifest.from_dict(written, MANIFEST)
    assert manifest == Artifact(golden_artifacts[model]).manifest
    assert json.loads(json.dumps(manifest.to_dict())) == written
    assert Manifest.from_dict(manifest.to_dict(), MANIFEST) == manifest


NUMBERS = st.floats(min_value=0, allow_infinity=False)
DRIFT = st.lists(st.fixed_dictionaries({"iteration": st.integers(), "sqnr_db": NUMBERS}), max_size=3)
REPORTS = st.fixed_dictionaries(
    {"relative_l2": NUMBERS, "sqnr_db": NUMBERS, "tolerance": NUMBERS, "cases": st.integers(), "drift": DRIFT}
)


@settings(deadline=None)
@given(
    names=st.lists(st.text(), min_size=6, max_size=6) | st.just([]),
    provenance=st.dictionaries(st.text(), st.text() | st.integers()),
    report=REPORTS,
    entry=st.builds(FileEntry, st.integers(min_value=0), st.text("0123456789abcdef", min_size=64, max_size=64)),
)
def test_any_manifest_survives_its_json(
    golden_artifacts: dict[str, pathlib.Path],
    names: list[str],
    provenance: dict[str, str | int],
    report: dict[str, Json],
    entry: FileEntry,
) -> None:
    golden = Manifest.from_dict(read_manifest(golden_artifacts["small"]), MANIFEST)
    manifest = dataclasses.replace(
        golden,
        class_names=tuple(names),
        provenance=provenance,
        files={**golden.files, "more.bin": entry},
        parity=dict.fromkeys(golden.parity, report),
    )
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), MANIFEST) == manifest
