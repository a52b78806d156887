"""Manifests: which are refused before an engine is loaded, and that a valid one survives JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FORMAT_VERSION, MANIFEST, FileEntry, Manifest
from runtime.errors import ArtifactError, MarError
from runtime.model.engine_spec import DECODER, ENCODER, ENGINES
from runtime.sampling.settings import Sampling
from tests.helpers.damaged_artifacts import MISSING, Json, Refused, change_manifest, load, read_manifest

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


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "not an object": lambda text: b"[" + text + b"]",
    "a number": lambda text: b"1",
    "null": lambda text: b"null",
    "not text": lambda text: b"\xff\xfe" + text,
    "two values": lambda text: text + text,
    "too many brackets": lambda text: b"[" * 200_000,
    "a number of too many digits": lambda text: b'{"format_version": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("share", [0, 10, 50, 99])
def test_a_truncated_manifest_is_refused(artifact_copy: pathlib.Path, refused: Refused, share: int) -> None:
    manifest = artifact_copy / MANIFEST
    text = manifest.read_bytes()
    manifest.write_bytes(text[: len(text) * share // 100])
    assert str(manifest) in refused(ArtifactError)


@pytest.mark.parametrize("damage", TEXTS)
def test_a_manifest_that_is_not_one_json_object_is_refused(
    artifact_copy: pathlib.Path, refused: Refused, damage: str
) -> None:
    manifest = artifact_copy / MANIFEST
    manifest.write_bytes(TEXTS[damage](manifest.read_bytes()))
    assert str(manifest) in refused(ArtifactError)


SECTIONS = ("model", "sampling", "presets", "files", "engines", "provenance", "parity")
NO_OBJECT: list[Json] = [[], None, "text", 1]
NO_NUMBER: list[Json] = [MISSING, "1e-5", None, True, [], math.nan, math.inf]
DIGEST = "0123456789abcdef" * 4
SETTINGS = dataclasses.asdict(Sampling())

# The changed entry, the values it is changed to, and what the message contains besides the path of the manifest.
CHANGES: list[tuple[str, list[Json], str]] = [
    ("surprise", [1], "surprise"),
    ("format_version", [MISSING], "format version None"),
    ("format_version", [0, 1, 2, 3, 4, 5, 6, 7, "8", 8.0, None, [4], True], "format version {value!r}"),
    *((key, [MISSING], key) for key in TOP_LEVEL[1:]),
    *((section, NO_OBJECT, section) for section in SECTIONS),
    # The model
    ("model/surprise", [1], "surprise"),
    *((f"model/{key}", [MISSING], key) for key in ("img_size", "vae_stride", "patch_size", "class_num", "buffer_size")),
    ("model/img_size", ["64", 64.5, None, True, -64, 0, 10**9, 65, math.nan, math.inf], "img_size"),
    ("model/mlp_ratio", ["4", None, True, math.nan, -math.inf, 1e9], "mlp_ratio"),
    ("model/encoder_num_heads", [5], "heads"),
    # Names
    ("tokenizer", ["vae", None, ["none"], {"none": 1}], "tokenizer {value!r}"),
    ("tokenizer", ["pixel"], "pixel"),  # a token of this model has eight channels, which no image has
    ("tokenizer", ["kl"], "engines: missing keys decoder"),
    ("precision", ["int4", "FP16", None, ["fp32"], 32], "precision {value!r}"),
    ("class_names", ["abcdef", None, {}, [1] * 6, ["a"] * 5 + [None]], "class_names"),
    ("class_names", [["a"], ["a"] * 5, ["a"] * 7], "for 6 classes"),
    # Sampling settings
    ("sampling/surprise", [1], "surprise"),
    ("sampling/iterations", [MISSING, 0, 17, 2.5, "4", True], "iterations"),
    ("sampling/cfg_scale", [MISSING, None, -1.0, "2", True, [], math.nan, math.inf], "cfg_scale"),
    ("sampling/cfg_schedule", [MISSING, None, "cosine", 1, []], "cfg_schedule"),
    ("sampling/temperature", [MISSING, None, -1.0, "1", True, {}, math.nan, math.inf], "temperature"),
    ("sampling/sampler", [MISSING, None, "euler", 1, []], "sampler"),
    ("sampling/diffusion_steps", [MISSING, None, 1, 2.5, "ddim7000", "x", [], math.inf], "diffusion_steps"),
    ("presets", [{"fast": {}}, {"own": {}}], "presets: the names own, exact, balanced, fast, turbo, instant are taken"),
    ("presets", [{"": {}}, {"a b": {}}, {"../x": {}}, {"a" * 41: {}}], "presets: the name of a preset must have"),
    ("presets", [{"mine": each} for each in NO_OBJECT], "presets: 'mine': expected a JSON object"),
    ("presets", [{"mine": {}}], "presets: 'mine': missing keys cfg_interval"),
    ("presets", [{"mine": {**SETTINGS, "surprise": 1}}], "presets: 'mine': unknown keys surprise"),
    ("presets", [{"mine": {**SETTINGS, "iterations": 3, "diffusion_steps": [5, 5]}}], "presets: 'mine': diffusion_st"),
    ("presets", [{"mine": {**SETTINGS, "iterations": 17}}], "presets: 'mine': iterations must lie in 1..16"),
    # Files
    ("files/backbone.onnx", [MISSING, {}, *NO_OBJECT], "backbone.onnx"),
    ("files/backbone.onnx/surprise", [1], "surprise"),
    ("files/backbone.onnx/bytes", [MISSING], "bytes"),
    (
        "files/backbone.onnx/bytes",
        ["9", 1.5, -1, None, True],
        "bytes must be a whole number of at least 0, found {value!r}",
    ),
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
    # Engines built for devices
    ("builds", [None, {}, "denoise", 1], "builds must be a list"),
    ("builds", [[None], [{}], [[]]], "a build must have exactly the keys"),
]
CASES = [(where, value, message.format(value=value)) for where, values, message in CHANGES for value in values]


@pytest.mark.parametrize(("where", "value", "message"), CASES, ids=lambda part: repr(part)[:32])
def test_a_manifest_with_an_impossible_value_is_refused(
    artifact_copy: pathlib.Path, refused: Refused, where: str, value: object, message: str
) -> None:
    change_manifest(artifact_copy, where, value)
    refusal = refused(ArtifactError)
    assert str(artifact_copy / MANIFEST) in refusal
    if isinstance(value, float) and not math.isfinite(value):
        message = "is not JSON"
    assert message in refusal.removeprefix(str(artifact_copy / MANIFEST))


@pytest.mark.parametrize("version", [1, 7, 9])
def test_the_error_for_another_format_version_says_what_to_do_in_one_line(
    artifact_copy: pathlib.Path, refused: Refused, version: int
) -> None:
    change_manifest(artifact_copy, "format_version", version)
    assert refused(ArtifactError) == (
        f"{artifact_copy / MANIFEST}: format version {version}, but this version of mar reads {FORMAT_VERSION}; "
        "export the model again with this version, or install the version of mar that wrote the artifact"
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
KNOWN_TEXTS = st.sampled_from([*TOP_LEVEL, *ENGINES, "generation", "file", "backbone.onnx", "pixel", "B", "float32"])
VALUES = st.recursive(
    SCALARS | KNOWN_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_TEXTS | st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mutate(value: Json, data: st.DataObject) -> Json:
    """A value with one entry, at any depth, replaced, removed or added."""
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
    """One copy for all mutations, each of which writes a complete manifest."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path_factory.mktemp("mutable") / "artifact"))


@settings(max_examples=200)
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


@given(
    names=st.lists(st.text(), min_size=6, max_size=6) | st.just([]),
    provenance=st.dictionaries(st.text(), st.text() | st.integers()),
    report=REPORTS,
    entry=st.builds(FileEntry, st.integers(0, 2**63 - 1), st.text("0123456789abcdef", min_size=64, max_size=64)),
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
