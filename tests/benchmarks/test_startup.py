"""Starts and memory of two checkouts, measured in turns."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import startup
from benchmarks.render_pages import startup_table


def test_two_checkouts_take_turns(golden_artifacts: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[pathlib.Path] = []

    def first_call(
        artifact: pathlib.Path, threads: int, backend: str, device: str, checkout: pathlib.Path, request: object
    ) -> float:
        assert request == {"labels": [0]}
        taken.append(checkout)
        return 4.0 if checkout == other else 1.0

    other = startup.CHECKOUT / "tests" / ".."  # the same code under another name
    monkeypatch.setattr(startup, "first_call_seconds", first_call)
    monkeypatch.setattr(startup, "import_seconds", lambda checkout: 0.5)
    monkeypatch.setattr(startup, "interpreter_seconds", lambda: 0.25)
    artifacts = {other: golden_artifacts["small"], startup.CHECKOUT: golden_artifacts["small"]}
    figures = startup.compare(artifacts, rounds=2, threads=1)
    assert taken == 3 * [other, startup.CHECKOUT]
    assert figures["ratio"] == {"median": 0.25, "least": 0.25, "most": 0.25}
    before, now = figures["checkouts"].values()
    assert before["commit"] == now["commit"]
    assert now["seconds"]["import_runtime"]["median"] == 0.25
    for one in (before, now):
        assert 2**24 < one["peak_bytes"]["loaded"] <= one["peak_bytes"]["with_image"]
    assert "| ratio, round by round | 0.25 | 0.25 to 0.25 |" in startup_table(figures)
