"""Generating images creates no file outside the named folders and asks for no internet socket."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.syscall_trace import Trace, trace

ROOT = pathlib.Path(__file__).parents[3]
TURBO = ("--iterations", "2", "--diffusion-steps", "ddim2", "--threads", "1")
SCRIPT = """
import sys
from runtime.backends.telemetry import import_library
import_library(sys.argv[1])
"""


def traced(tmp_path: pathlib.Path, *command: object, **settings: str) -> Trace:
    """Run Python in an empty folder, with an empty home folder, and without the settings of this process."""
    work, home, temporary = (tmp_path / name for name in ("work", "home", "temporary"))
    for folder in (work, home, temporary):
        folder.mkdir(exist_ok=True)
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    folders = {"HOME": str(home), "TMPDIR": str(temporary)}
    return trace(
        [sys.executable, *map(str, command)], work, tmp_path / "calls", {**kept, **folders, "CI": "", **settings}
    )


def outside(found: Trace, folder: pathlib.Path) -> list[pathlib.Path]:
    """What was created neither in `folder` nor is one of its parents."""
    return [path for path in found.created if not path.is_relative_to(folder) and not folder.is_relative_to(path)]


@pytest.mark.parametrize(
    "command",
    [
        ("generate", *TURBO, "--count", 1, "--save-latents", "latents.npy", "--backend", "onnxruntime"),
        ("generate", *TURBO, "--count", 1, "--save-latents", "latents.npy", "--backend", "openvino"),
        ("doctor",),
    ],
    ids=["onnxruntime", "openvino", "doctor"],
)
def test_a_command_leaves_nothing_outside_its_folder_and_talks_to_nobody(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, command: tuple[str, ...]
) -> None:
    found = traced(tmp_path, "-m", "runtime.cli", command[0], golden_artifacts["small"], *command[1:])
    assert (found.code, found.err) == (0, "")
    assert outside(found, tmp_path / "work") == []
    assert list((tmp_path / "home").iterdir()) == []
    assert found.sockets == 0


def test_the_other_packages_run_onnx_runtime_without_its_telemetry(tmp_path: pathlib.Path) -> None:
    script = "from mar_export.benchmark import machine_probe; machine_probe._session((1, 8, 8), 1)"
    found = traced(tmp_path, "-c", script)
    assert (found.code, found.err) == (0, "")
    assert outside(found, tmp_path / "work") == []
    assert found.sockets == 0


def test_the_trace_sees_what_onnx_runtime_does_where_the_user_allows_it(tmp_path: pathlib.Path) -> None:
    """So the tests above would see it; and the user's own setting is respected."""
    found = traced(tmp_path, "-c", SCRIPT, "onnxruntime", ORT_DISABLE_TELEMETRY="0")
    assert outside(found, tmp_path / "work")


@pytest.mark.parametrize(("consent", "sockets"), [("1", True), ("0", False)])
def test_the_consent_that_a_user_gave_to_openvino_is_respected(
    tmp_path: pathlib.Path, consent: str, sockets: bool
) -> None:
    file = tmp_path / "home" / "intel" / "openvino_telemetry"
    file.parent.mkdir(parents=True)
    file.write_text(consent)
    found = traced(tmp_path, "-c", SCRIPT, "openvino")
    assert found.code == 0
    assert (found.sockets > 0) == sockets
    assert file.read_text() == consent


@pytest.mark.parametrize(("setting", "value"), [("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")])
def test_a_process_that_is_started_inherits_the_setting(setting: str, value: str) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from runtime.backends.telemetry import disable_telemetry\n"
        "disable_telemetry()\n"
        f"subprocess.run([sys.executable, '-c', \"import os; print(os.environ['{setting}'])\"], check=True)"
    )
    for own, expected in (({}, value), ({setting: "own"}, "own")):
        environment = {name: text for name, text in os.environ.items() if name != setting}
        command = [sys.executable, "-c", script]
        ended = subprocess.run(
            command, env={**environment, **own}, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert ended.stdout == f"{expected}\n"
