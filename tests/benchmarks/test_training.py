"""Two trainers take the same steps in turns."""

from __future__ import annotations

import pytest

from benchmarks.training import CHECKOUT, compare
from tests.helpers.tiny_runs import TINY


def test_two_checkouts_of_one_commit_have_the_same_losses() -> None:
    figures = compare(TINY.to_dict(), {"steps": 10, "batch_size": 4}, threads=1, rounds=3, before=CHECKOUT)
    before, ours = figures["losses"].values()
    assert before == ours
    assert len(set(ours)) == 3
    times = [times["seconds"] for times in figures["times"].values()]
    assert figures["speedup"]["seconds"]["most"] == pytest.approx(max(a / b for a, b in zip(*times, strict=True)))
