"""The runtime as a device has it: an environment of its own, with neither torch nor onnx.

`MAR_TEST_PYTHONS`, a list of interpreters separated by colons, repeats it for each of them.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, golden_cases

ROOT = pathlib.Path(__file__).parent.parent
PYTHONS = os.environ.get("MAR_TEST_PYTHONS", sys.executable).split(":")


def _pinned(python: str) -> list[str]:
    """The constraints of development, where they exist for this version of Python."""
    return ["--constraint", str(ROOT / "constraints.txt")] if python == sys.executable else []


@pytest.fixture(scope="module", params=PYTHONS)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The `bin` folder of a new environment with the runtime and its CPU backend."""
    folder = tmp_path_factory.mktemp("device")
    subprocess.run([request.param, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    # From a copy: a build in the checkout would leave its folder there, and take up what it holds.
    project = shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(".*", "out", "runs", "examples"))
    options = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", *_pinned(request.param)]
    subprocess.run([python, "-m", "pip", "install", *options, f"{project}[cpu]"], check=True, capture_output=True)
    return folder / "venv" / "bin"


@pytest.mark.parametrize("package", ["torch", "onnx", "safetensors"])
def test_a_device_has_no_training_package(device: pathlib.Path, package: str) -> None:
    done = subprocess.run([device / "python", "-c", f"import {package}"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in done.stderr


def test_a_device_draws_a_golden_case(
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


def test_what_a_device_lacks_is_one_clear_line(device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [device / "mar", "export", "x", "--out", "y"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == "mar: mar export needs the Python package torch; pip install 'mar-runtime[export]'\n"
