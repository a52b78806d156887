"""The progress of a build: nested phases of several engines as one share."""

from __future__ import annotations

import pytest

from mar_export.tensorrt.build_progress import BuildProgress


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thousandths that are done, after each step that the progress is told of."""
    seen: list[int] = []
    monkeypatch.setattr(BuildProgress, "update", lambda self, by, note="": seen.append(sum(seen[-1:]) + by))
    return seen


def test_a_step_of_an_inner_phase_is_a_part_of_the_step_around_it(shares: list[int]) -> None:
    progress = BuildProgress(2)
    for phase in [("Building", 0, 2), ("Tactics", 0, 4), ("Tactics", 1, 4), ("Tactics", 4, 4), ("Building", 1, 2)]:
        progress.phase(*phase)
    assert shares == [0, 0, 125, 500, 500]
    progress.phase("Weights", 0, 2)
    progress.phase("Weights", 1, 2)
    progress.engine_done()
    assert shares[5:] == [500, 750, 1000]
    progress.phase("Building", 1, 2)
    progress.engine_done()
    assert shares[-2:] == [1500, 2000]


def test_the_share_never_shrinks_and_stays_below_the_whole(shares: list[int]) -> None:
    progress = BuildProgress(1)
    phases = [
        ("Building", 0, 0),
        ("Building", 0, 3),
        ("A", 0, 1),
        ("A", 1, 1),
        ("B", 0, 1),
        ("B", 1, 1),
        ("Building", 3, 3),
    ]
    for phase in phases:
        progress.phase(*phase)
    assert shares == sorted(shares)
    assert shares[-1] == 1000
