"""Two commands cannot export, calibrate or measure into one place: the second is told who holds it."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from tests.helpers.command_line import Mar
from tests.helpers.golden_cases import GOLDEN
from tests.helpers.held_places import other_process

SMALL = f"{GOLDEN}/small/checkpoint-last.pth --model-config {GOLDEN}/small/meta.json"
LINES = {
    f"export {SMALL} --out {{folder}}/new": ("holding", "new"),
    f"import {SMALL} --out {{folder}}/new": ("holding", "new"),
    "calibrate {folder}/artifact --out {folder}/new": ("holding", "new"),
    "calibrate {folder}/artifact --out {folder}/new --count 2": ("holding", "new.statistics.npz"),
    "calibrate {folder}/artifact --report {folder}/new.png --statistics {folder}/new.npz": ("holding", "new.npz"),
    "optimize-steps {folder}/artifact --budget-ms 100": ("holding", "artifact/manifest.json"),
    "optimize-steps {folder}/artifact --budget-ms 100 --out {folder}/new": ("holding", "new"),
    "bench {folder}/artifact --work {folder}/new": ("holding_folder", "new"),
    "sign {folder}/artifact --key {folder}/key.pem": ("holding", "artifact/manifest.sig"),
    "study {folder}/artifact --data {folder} --out {folder}/new": ("holding_folder", "new"),
}


@pytest.fixture(scope="module")
def folder(golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("held")
    shutil.copytree(golden_artifacts["small"], folder / "artifact")
    return folder


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.split(' ')[0]} {LINES[line][1]}")
def test_the_second_command_in_a_place_is_told_who_holds_it(mar: Mar, folder: pathlib.Path, line: str) -> None:
    block, name = LINES[line]
    with other_process(block, folder / name) as process:
        ended = mar(line.format(folder=folder))
        assert ended.code == 1
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"mar: {folder / name} is in use by process {process.pid} on ")
