"""The rows of a report of `benchmarks.scaling`, and what follows from them.

A part of a report is one axis. It has `rows`, and in `runs` what measured them, by the name of the run. A row is a
point and a series, with the seconds of each round:

    {"batch": 8, "threads": 2, "iterations": 14, "tokens": 256, "precision": "fp32", "runner": "runtime", "run": "...",
     "operations": {"backbone": 1e12, ...}, "seconds": [9.1, 9.0, 9.3], "stage_seconds": {"backbone": [...], ...}}

Operations and seconds are those of the whole batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Part = Mapping[str, Any]


class Point(NamedTuple):
    """What is generated at once, and by how many threads.

    Attributes:
        batch: The images.
        threads: The processor threads.
        iterations: The iterations of an image.
        tokens: The tokens of an image.
    """

    batch: int
    threads: int
    iterations: int
    tokens: int


class Series(NamedTuple):
    """What generates.

    Attributes:
        precision: The precision of the engines, `fp32` or `int8`.
        runner: A key of `mar_export.benchmark.runners.RUNNERS`.
    """

    precision: str
    runner: str


AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "threads": (1, 2),
    "iterations": (4, 8, 16, 32, 64),
    "tokens": (64, 256, 1024),
}
"""The values of each field of a point."""


def point_of(row: Row) -> Point:
    """Return the point of a row."""
    return Point(*(row[name] for name in Point._fields))


def series_of(row: Row) -> Series:
    """Return the series of a row."""
    return Series(row["precision"], row["runner"])


def merged(part: Part, run: str, about: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return a part with the rows of a run, which replace those of the same point and series.

    Args:
        part: The part as it was; it may be empty.
        run: The name of the run.
        about: What the run was measured with.
        rows: The rows of the run.
    """
    measured = {(point_of(row), series_of(row)) for row in rows}
    kept = [row for row in part.get("rows", []) if (point_of(row), series_of(row)) not in measured]
    all_rows = [*kept, *rows]
    runs = {**part.get("runs", {}), run: about}
    return {
        "runs": {name: runs[name] for name in runs if any(row["run"] == name for row in all_rows)},
        "rows": all_rows,
    }


def first_of(rows: Sequence[Row], row: Row, axis: str) -> Row:
    """Return the row at the least value of an axis that is otherwise like `row`."""

    def alike(other: Row) -> bool:
        return series_of(other) == series_of(row) and all(
            other[name] == row[name] for name in Point._fields if name != axis
        )

    return min(filter(alike, rows), key=lambda other: other[axis])


def operations(row: Row) -> float:
    """Return the operations of a row."""
    return float(sum(row["operations"].values()))


def seconds_an_image(row: Row) -> list[float]:
    """Return the seconds an image of each round."""
    return [seconds / row["batch"] for seconds in row["seconds"]]


def gflops(row: Row) -> float:
    """Return the GFLOP/s that a row reaches: its operations by its median."""
    return operations(row) / statistics.median(row["seconds"]) / 1e9


def engine_gflops(row: Row) -> dict[str, float]:
    """Return the GFLOP/s of each engine whose seconds are known."""
    return {
        engine: row["operations"][engine] / statistics.median(seconds) / 1e9
        for engine, seconds in row["stage_seconds"].items()
        if engine in row["operations"]
    }


def growth(row: Row, first: Row) -> float:
    """Return how the time grows from `first` to `row`, over how the operations grow: more than 1 is worse."""
    return gflops(first) / gflops(row)
