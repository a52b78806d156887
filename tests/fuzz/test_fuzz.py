"""A few hundred damaged inputs of every surface: each ends in the same result or in one line. `make fuzz` runs more."""

from __future__ import annotations

import pathlib

import pytest

from tests.fuzz.__main__ import CALLS, run
from tests.fuzz.surfaces import SURFACES
from tests.helpers.tiny_runs import one_thread

INPUTS = 200


@pytest.mark.parametrize("name", [*SURFACES, *CALLS])
def test_a_damaged_input_ends_in_the_same_result_or_in_one_line(name: str, tmp_path: pathlib.Path) -> None:
    with one_thread():
        report = run(name, tmp_path, range(INPUTS))
    assert report.faults == []
    assert report.refused > INPUTS // 10
