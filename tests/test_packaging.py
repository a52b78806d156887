"""The distributions, and the runtime installed from them as on a device: with neither torch nor onnx.

`MAR_TEST_PYTHONS`, a list of interpreters separated by colons, repeats the installation for each of them.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, golden_cases

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {"runtime", "training", "mar_export", "calibration"}
PYTHONS = os.environ.get("MAR_TEST_PYTHONS", sys.executable).split(":")


def constraint_options(python: str) -> list[str]:
    """The pinned versions, which exist only for the Python of development."""
    return ["--constraint", str(ROOT / "constraints.txt")] if python == sys.executable else []


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """An sdist, and a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    # From a copy: a build in the checkout would leave its own folder there, and package what lies in it.
    ignored = shutil.ignore_patterns(".*", "out", "runs", "build", "examples", "*.egg-info")
    project = shutil.copytree(ROOT, folder / "project", ignore=ignored)
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", project]
    subprocess.run(command, check=True, capture_output=True)
    return {
        "sdist": next((folder / "dist").glob("mar_runtime-*.tar.gz")),
        "wheel": next((folder / "dist").glob("mar_runtime-*.whl")),
    }


@pytest.fixture(scope="module", params=PYTHONS)
def device(
    request: pytest.FixtureRequest, distributions: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The `bin` folder of a new environment with the runtime and its CPU backend."""
    folder = tmp_path_factory.mktemp("device")
    subprocess.run([request.param, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", *constraint_options(request.param)]
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python"]
    command = [*pip, "install", *options, f"{distributions['wheel']}[cpu]"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "venv" / "bin"


def test_the_wheel_has_the_four_packages_with_their_types_and_nothing_else(
    distributions: dict[str, pathlib.Path],
) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = wheel.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    modules = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_sdist_has_what_a_build_needs(distributions: dict[str, pathlib.Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", *(f"{package}/py.typed" for package in PACKAGES)} <= names


@pytest.mark.parametrize("package", ["torch", "onnx", "safetensors"])
def test_a_device_has_no_training_package(device: pathlib.Path, package: str) -> None:
    done = subprocess.run([device / "python", "-c", f"import {package}"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in done.stderr


def test_a_device_generates_a_golden_case(
    device: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    case = golden_cases()[0]
    arrays = GOLDEN / case.model / case.file
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in case.settings.items()]
    classes = [f"--class={label}" for label in case.labels]
    files = [f"--order-file={arrays}", f"--noise-file={arrays}", f"--save-latents={tmp_path / 'latents.npy'}"]
    subprocess.run(
        [device / "mar", "generate", golden_artifacts[case.model], *classes, *settings, *files],
        check=True,
        cwd=tmp_path,
    )
    assert relative_l2(np.load(tmp_path / "latents.npy"), case.latents) < GOLDEN_TOLERANCE


def run(device: pathlib.Path, folder: pathlib.Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [device / "mar", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_a_device_compares_runs(device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": "images", "training": {"steps": 9}}))
    entry = {"step": 3, "loss": 0.5, "gradient_norm": 1.0, "images_per_second": 2.0}
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps(entry) + "\n")
    done = run(device, tmp_path, "runs", "run", "--json")
    assert (done.returncode, "0.5000" in done.stderr) == (0, True)
    assert json.loads(done.stdout)["runs"][0]["step"] == 3
    done = run(device, tmp_path, "runs", "run", "--chart", "x.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mar: this command needs the Python package matplotlib; pip install ")


def test_a_device_measures_how_fast_it_is(
    device: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    settings = ["--iterations", 2, "--diffusion-steps", "ddim2", "--repeats", 1, "--threads", 1]
    artifact = golden_artifacts["small"]
    done = run(device, tmp_path, "bench", artifact, *settings, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [case["runner"] for case in report["cases"]] == ["runtime"]
    assert report["machine"]["gflops"] > 0
    assert report["versions"]["torch"] == "not installed"
    done = run(device, tmp_path, "bench", artifact, *settings, "--checkpoint", "x", "--runner", "eager")
    expected = "mar: eager: the Python package torch is needed; pip install 'mar-runtime[export]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_a_command_without_its_packages_prints_one_clear_line(device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [device / "mar", "export", "x", "--out", "y"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == "mar: mar export needs the Python package torch; pip install 'mar-runtime[export]'\n"
