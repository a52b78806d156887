"""The command `mar` as its users see it: what it writes, what it prints, how it fails."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.distance import sqnr_db
from runtime.generator import Generator
from tests.helpers.command_line import Ended, Mar
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, GoldenCase, golden_cases

QUICK = "--iterations 2 --diffusion-steps ddim2 --threads 1"


def start(*arguments: object, python: tuple[str, ...] = (), folder: pathlib.Path) -> Ended:
    command = [sys.executable, *python, "-m", "runtime.cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=folder)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The model of 16 tokens and 6 classes, which has no decoder."""
    return golden_artifacts["small"]


@pytest.fixture(scope="module")
def damaged(artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    copy = pathlib.Path(shutil.copytree(artifact, tmp_path_factory.mktemp("damaged") / "artifact"))
    content = bytearray((copy / "denoise.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "denoise.onnx").write_bytes(content)
    return copy


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Files that --order-file and --noise-file cannot read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "folder.npz").mkdir()
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text("not an archive")
    np.save(folder / "array.npy", np.zeros((1, 16), np.int64))
    np.savez(folder / "other.npz", other=np.zeros(3))
    np.savez(folder / "objects.npz", generation_order=np.array([None]), noise=np.array([None]))
    for key in ("generation_order", "noise"):
        arrays: dict[str, Any] = {key: np.arange(4000)}
        np.savez_compressed(folder / f"{key}.npz", **arrays)
        content = bytearray((folder / f"{key}.npz").read_bytes())
        (folder / f"cut-{key}.npz").write_bytes(content[:-30])
        for position in range(100, 140):  # behind the header, in what is compressed
            content[position] ^= 0xFF
        (folder / f"garbled-{key}.npz").write_bytes(content)
    return folder


# The first case of each model, as published.


@pytest.mark.parametrize("case", [case for case in golden_cases() if case.file == "case0.npz"], ids=str)
def test_generate_reproduces_a_golden_case(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, case: GoldenCase
) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in case.settings.items()]
    classes = [f"--class={label}" for label in case.labels]
    npz = GOLDEN / case.model / case.file
    given = [f"--order-file={npz}", f"--noise-file={npz}", "--save-latents=new/latents.npy"]
    ended = start("generate", golden_artifacts[case.model], *classes, *options, *given, folder=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{len(case.labels)} images in ")
    assert ended.out.endswith("latents written to new/latents.npy\n")
    found = np.load(tmp_path / "new" / "latents.npy")
    assert found.dtype == np.float32
    assert relative_l2(found, case.latents) <= GOLDEN_TOLERANCE


def test_generate_gives_the_images_of_the_python_interface(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Classes in turn, images counted from 0 across batches."""
    file = tmp_path / "latents.npy"
    ended = mar(
        f"generate {artifact} --class 4 --class 1 --count 5 --batch-size 2 --seed 7 {QUICK} --save-latents {file}"
    )
    assert ended.code == 0, ended.err
    with Generator.load(artifact, threads=1) as generator:
        expected = generator.generate([4, 1, 4, 1, 4], seed=7, iterations=2, diffusion_steps="ddim2").latents
    assert relative_l2(np.load(file), expected) <= 1e-5


def test_generate_gives_one_image_of_each_class_by_default(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "latents.npy"
    assert mar(f"generate {artifact} {QUICK} --save-latents {file}").code == 0
    with Generator.load(artifact, threads=1) as generator:
        expected = generator.generate(range(6), iterations=2, diffusion_steps="ddim2").latents
    assert np.load(file).tobytes() == expected.tobytes()


def test_generate_gives_more_images_than_fit_into_one_batch(
    mar: Mar, artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """4097 is one more than a single request may hold, and far below what --count allows."""
    file = tmp_path / "latents.npy"
    few = "--count 4097 --batch-size 1000 --iterations 1 --diffusion-steps ddim2 --threads 1"
    ended = mar(f"generate {artifact} {few} --save-latents {file}")
    assert ended.code == 0, ended.err
    assert np.load(file).shape == (4097, 8, 4, 4)


# A part of the message of each wrong line. The lines with options would generate images and save latents.
WRONG_USE = [
    ("generat", "No such command 'generat'"),
    ("--nope generate", "No such option"),
    ("generate", "Missing argument 'ARTIFACT'"),
    ("generate {artifact}", "nothing to write"),
    ("generate {artifact} --out {folder}/grid.png", "no decoder"),
    ("generate {artifact} --out-dir {folder}/images", "use --save-latents instead of --out-dir"),
    ("generate {artifact} --save-latents {inputs}/folder.npz", "/folder.npz is a folder; give the name of a .npy file"),
    ("generate {artifact} --save-latents ''", "Invalid value for '--save-latents': it is empty; give a name"),
    ("generate {artifact} --out-dir ''", "Invalid value for '--out-dir': it is empty; give a name"),
    ("inspect ''", "Invalid value for 'ARTIFACT|IMAGE': it is empty; give a name"),
    ("generate {artifact} --save-latents {folder}/latents/", "/latents/ is a folder; give the name of a .npy file"),
    ("generate {artifact} --out-dir {folder}/images --noise-file noise.npz", "--noise-file are for one request"),
    ("generate {artifact} --out-dir {folder}/images --out {folder}/grid.png", "either --out-dir or --out, found both"),
    ("edit", "Missing argument 'ARTIFACT'"),
    ("inspect", "Missing argument 'ARTIFACT|IMAGE'"),
    ("inspect {artifact} {artifact}", "unexpected extra argument"),
]
WRONG_OPTIONS = [
    ("--nope", "--nope"),
    ("--class 6", "class 6 is out of range"),
    ("--class -1", "class -1 is out of range"),
    ("--class 99999999999999999999", "labels must be whole numbers"),
    ("--class 9223372036854775808", "class 9223372036854775808 is"),
    ("--class x", "class 'x' is unknown; this model has no names for its classes, only numbers"),
    ("--out {folder}/latents.npy", "--out and --save-latents are both"),
    ("--out {folder}/grid.jpg", "grid.jpg: images are written as PNG"),
    ("--count 0", "--count must be a whole number in 1..100000, found 0"),
    ("--count -1", "found -1"),
    ("--count 100001", "found 100001"),
    ("--count x", "'x' is not a valid integer"),
    ("--batch-size 0", "the batch size at 100 diffusion steps must be a whole number in 1..4096, found 0"),
    ("--decode-batch 0", "--decode-batch must be a whole number in 1..4096, found 0"),
    ("--decode-batch x", "'x' is not a valid integer"),
    ("--seed -1", "seed must be a whole number in 0..2^64-1, found -1"),
    ("--seed 18446744073709551616", "18446744073709551616"),
    ("--seed 1 --seed 1", "--seed 1 is given twice"),
    ("--class 1 --class 2 --class 3 --seed 1 --seed 2", "2 seeds for 3 classes; give one --seed for all images"),
    ("--first -1", "--first must be a whole number in 0..18446744073709551609, found -1"),
    ("--shard 1/2", "--shard is a part of --out-dir"),
    *(
        (f"--shard {shard}", "--shard must be K/N with K in 1..N, such as 1/4")
        for shard in ("0/2", "3/2", "x", "1/", "1")
    ),
    ("--out-dir {folder}/images", "give either --out-dir or --save-latents, found both"),
    ("--out {folder}/images/", "/images/ is a folder; to write each image into its own file, use --out-dir"),
    ("--out {folder}", " is a folder; to write each image into its own file, use --out-dir"),
    ("--iterations 0", "iterations must lie in 1..16, the tokens of an image, found 0"),
    ("--iterations 17", "found 17"),
    ("--cfg-scale -1", "cfg_scale must be a number in 0..1000, found -1.0"),
    ("--cfg-scale nan", "found nan"),
    ("--cfg-schedule cosine", "'cosine'"),
    ("--cfg-interval 0.7 0.2", "cfg_interval must be LOW and then HIGH, found 0.7 and 0.2"),
    ("--cfg-interval 0.5", "--cfg-interval"),
    ("--mask-schedule two-stage", "'two-stage'"),
    ("--token-order spiral", "'spiral'"),
    ("--last-diffusion-steps 1", "last_diffusion_steps must be a whole number in 2..100, found 1"),
    ("--last-diffusion-steps 5 --step-schedule exponential", "'exponential'"),
    ("--start-timestep 1000", "start_timestep must be a whole number in 99..999, found 1000"),
    ("--start-timestep 900 --diffusion-steps ddim20", "'ddim20'"),
    ("--eta 0.5", "eta belongs to the samplers ddim and flow-euler, found eta 0.5 with ddpm"),
    ("--preset nope", "'nope'"),
    ("--temperature inf", "temperature must be a number in 0..1000, found inf"),
    ("--sampler euler", "'euler'"),
    ("--diffusion-steps 1", "diffusion_steps must lie in 2..1000, found '1'"),
    ("--diffusion-steps ddim7000", "'ddim7000'"),
    ("--diffusion-steps abc", "'abc'"),
    ("--diffusion-steps 2.5", "2.5"),
    (f"--diffusion-steps {'9' * 5000}", "diffusion_steps"),
    (f"--diffusion-steps ddim{'9' * 5000}", "diffusion_steps"),
    ("--threads 0", "0 is not in the range 1<=x<=1024"),
    ("--backend nope", "'nope' is not one of 'onnxruntime', "),
    ("--device tpu", "'tpu'"),
    *(
        (f"--{option}-file {{inputs}}/{name}", f"/{name}: cannot be read ({why})")
        for option in ("order", "noise")
        for name, why in (("missing.npz", "No such file or directory"), ("folder.npz", "Is a directory"))
    ),
    *(
        (f"--{option}-file {{inputs}}/{name}", f"{name}: {why}")
        for option, key in (("order", "generation_order"), ("noise", "noise"))
        for name, why in (
            ("empty.npz", "not an .npz file ("),
            ("text.npz", "not an .npz file ("),
            ("array.npy", "not an .npz file ("),
            ("other.npz", f"not an .npz file with an array {key}"),
            ("objects.npz", ""),
            (f"cut-{key}.npz", ""),
            (f"garbled-{key}.npz", ""),
        )
    ),
    ("--class 1 --order-file {golden}/small/case0.npz", "order must have shape [1, 16], found [2, 16]"),
    ("--class 1 --noise-file {golden}/small/case1.npz", "(rows, batch, tokens, channels)"),
]
FAILURES = [
    ("generate {folder}/nothing --save-latents {folder}/latents.npy", "nothing: not an artifact"),
    ("generate {damaged} --save-latents {folder}/latents.npy", "denoise.onnx: altered since export"),
    ("inspect {folder}/nothing", "nothing: not an artifact"),
    ("inspect '{folder}/two\nlines'", "two lines: not an artifact"),
    ("inspect --verify {damaged}", "denoise.onnx: altered since export"),
    (f"generate {{artifact}} {QUICK} --save-latents {{inputs}}/text.npz/latents.npy", "cannot write"),
]
LINES = [
    *((line, message, 2) for line, message in WRONG_USE),
    *(
        (f"generate {{artifact}} --save-latents {{folder}}/latents.npy {line}", message, 2)
        for line, message in WRONG_OPTIONS
    ),
    *((line, message, 1) for line, message in FAILURES),
]


@pytest.mark.parametrize(("line", "message", "code"), LINES, ids=lambda part: str(part).split("latents.npy ")[-1][:48])
def test_wrong_use_is_one_line_and_writes_nothing(
    mar: Mar,
    artifact: pathlib.Path,
    damaged: pathlib.Path,
    inputs: pathlib.Path,
    tmp_path: pathlib.Path,
    line: str,
    message: str,
    code: int,
) -> None:
    ended = mar(line.format(artifact=artifact, damaged=damaged, inputs=inputs, folder=tmp_path, golden=GOLDEN))
    assert ended.code == code
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_error_is_one_line_without_the_help(mar: Mar) -> None:
    ended = mar("")
    assert ended.code == 2
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert "--help" in ended.err
    assert "Options:" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["generate"], 2, "Missing argument 'ARTIFACT'"), (["inspect", "nothing"], 1, "not an artifact")],
)
def test_the_installed_command_fails_in_one_line(
    tmp_path: pathlib.Path, arguments: list[str], code: int, message: str
) -> None:
    ended = start(*arguments, folder=tmp_path)
    assert ended.code == code
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err


def test_debug_shows_where_a_failure_came_from(tmp_path: pathlib.Path) -> None:
    ended = start("--debug", "inspect", "nothing", folder=tmp_path)
    assert ended.code == 1
    assert ended.err.startswith("Traceback (most recent call last):")
    assert "runtime.errors.ArtifactError: nothing: not an artifact" in ended.err


# A shell that starts a job in the background has it ignore the signal, and Python inherits that.
INTERRUPTIBLE = """
import signal
from runtime.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.parametrize(
    ("stop", "code", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_generating_is_one_line_and_writes_nothing(
    artifact: pathlib.Path, tmp_path: pathlib.Path, stop: signal.Signals, code: int, message: str
) -> None:
    file, long = tmp_path / "latents.npy", ["--count", "1000", "--diffusion-steps", "1000", "--threads", "1"]
    command = [sys.executable, "-c", INTERRUPTIBLE, "generate", str(artifact), *long, "--save-latents", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "onnxruntime" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)  # from loading the library to drawing with it
        process.send_signal(stop)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert rest.strip() == f"mar: {message}"
    assert list(tmp_path.iterdir()) == []


def test_generate_never_imports_torch_or_onnx(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "latents.npy"
    line = ["generate", artifact, *shlex.split(QUICK), "--save-latents", file]
    ended = start(*line, python=("-X", "importtime"), folder=tmp_path)
    assert ended.code == 0
    packages = {words.split("|")[-1].strip().split(".")[0] for words in ended.err.splitlines() if "|" in words}
    assert {"runtime", "onnxruntime"} <= packages
    assert not packages & {"torch", "onnx", "training", "mar_export", "calibration"}


def test_a_failure_prints_nothing_on_standard_output_where_standard_error_is_closed(
    mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert mar("generate") == (2, "", "")


def test_help_lists_every_command(mar: Mar) -> None:
    ended = mar("--help")
    assert ended.code == 0
    for command in ("train", "import", "export", "generate", "edit", "inspect"):
        assert f"\n  {command} " in ended.out


@pytest.mark.parametrize("verify", ["", "--verify"])
def test_inspect_shows_engines_shapes_parity_and_provenance(mar: Mar, artifact: pathlib.Path, verify: str) -> None:
    ended = mar(f"inspect {artifact} {verify}")
    assert ended.code == 0, ended.err
    words = " ".join(ended.out.split())
    manifest = Artifact(artifact).manifest
    assert "16 tokens of 8 values, 64x64 pixels, 6 classes, tokenizer none" in words
    assert ("every hash matches" in words) == bool(verify)
    for key, value in dataclasses.asdict(manifest.sampling).items():
        assert f"{key} {value}" in words or value is None
    for name, spec in manifest.specs.items():
        assert f"{name} {name}.onnx" in words
        for tensor in (*spec.inputs, *spec.outputs):
            assert f"{tensor.name} {tensor.dtype} [{tensor.shape_letters()}]" in words
    for report in manifest.parity.values():
        distance = report["relative_l2"]
        assert f"{distance:.1e} ({sqnr_db(distance):.0f} dB), allowed {report['tolerance']:.0e}" in words
    for key, value in manifest.provenance.items():
        assert f"{key} {value}" in words
