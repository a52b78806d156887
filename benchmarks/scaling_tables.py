"""The tables of `benchmarks.scaling`, with the bar that its figures must meet."""

from __future__ import annotations

import functools
import math
import statistics
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.scaling_rows import (
    AXES,
    Part,
    Point,
    Row,
    engine_gflops,
    first_of,
    gflops,
    growth,
    operations,
    point_of,
    seconds_an_image,
    series_of,
)
from benchmarks.table_parts import NOT_MEASURED, bar, bar_table, spread
from runtime.checks import pluralize

_BAR_PRESET, _MANY, _TIMES_ONE = "fast", 8, 1.15
_WORSE = 1.05
"""The growth from which a row is marked: time grows by more than 5% beyond the operations."""
_NOUNS = {"batch": "image", "threads": "thread", "iterations": "iteration", "tokens": "token"}


def scaling_table(axis: str, value: Mapping[str, Any]) -> str:
    """The part of a report of one axis as Markdown: a row for each value and series, and the bar of the batch."""
    if (part := value.get(axis)) is None:
        return NOT_MEASURED
    rows, letters = _in_order(part, axis), dict(zip(part["runs"], string.ascii_uppercase, strict=False))
    fixed, varying = _coordinates(rows, axis)
    engines = list(dict.fromkeys(engine for row in rows for engine in engine_gflops(row)))
    runs = ["run"] if len(letters) > 1 else []
    columns = [*varying, "precision", "runner", *runs, "seconds an image", "images a second", "GFLOP an image"]
    columns += ["growth", "GFLOP/s", *engines]
    lines = [
        f"{value['model']}, preset `{value['preset']}`, guidance {value['cfg_scale']:g}; {', '.join(fixed)}.",
        "",
        *(
            f"- {letters[name] + ': ' if runs else ''}{_about(about, [row for row in rows if row['run'] == name])}"
            for name, about in part["runs"].items()
        ),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in rows:
        coordinates = [str(row[name]) for name in varying]
        run = [letters[row["run"]]] if runs else []
        cells = [
            *coordinates,
            *series_of(row),
            *run,
            *_figures(row, first_of(rows, row, axis)),
            *_by_engine(row, engines),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    bars = _bars(value, rows) if axis == "batch" else []
    return "\n".join([*lines, *(["", *bar_table(bars)] if bars else [])])


def _in_order(part: Part, axis: str) -> list[Row]:
    """Return the rows by series, in the order in which the series were measured first, and then along the axis."""
    all_series = list(dict.fromkeys(map(series_of, part["rows"])))

    def place(row: Row) -> tuple[int, tuple[int, ...], int]:
        others = tuple(row[name] for name in Point._fields if name != axis)
        return all_series.index(series_of(row)), others, row[axis]

    return sorted(part["rows"], key=place)


def _coordinates(rows: Sequence[Row], axis: str) -> tuple[list[str], list[str]]:
    """Return what all points share, as text, and the fields in which they differ: the axis first."""
    values = {name: {row[name] for row in rows} for name in Point._fields}
    fixed = [pluralize(min(found), _NOUNS[name]) for name, found in values.items() if name != axis and len(found) == 1]
    return fixed, [axis, *(name for name, found in values.items() if name != axis and len(found) > 1)]


def _figures(row: Row, first: Row) -> list[str]:
    grown, image = growth(row, first), seconds_an_image(row)
    rate = 1 / statistics.median(image)
    return [
        spread(image, _three_digits(statistics.median(image))),
        _three_digits(rate).format(rate),
        f"{operations(row) / row['batch'] / 1e9:,.1f}",
        "" if row is first else f"**{grown:.2f}**" if grown > _WORSE else f"{grown:.2f}",
        f"{gflops(row):.0f}",
    ]


def _three_digits(number: float) -> str:
    """Return a format that shows three digits of a number, and as many decimals of others."""
    return f"{{:.{max(0, 2 - math.floor(math.log10(number)))}f}}"


def _by_engine(row: Row, engines: Sequence[str]) -> list[str]:
    found = engine_gflops(row)
    return [f"{found[engine]:.0f}" if engine in found else "" for engine in engines]


def _bars(value: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return the bar of each row of this runtime with a batch of many, beside one image of the same run."""
    found = []
    for row in rows:
        if value["preset"] != _BAR_PRESET or row["runner"] != "runtime" or row["batch"] != _MANY:
            continue
        one = next((each for each in rows if _is_alone(each, row)), None)
        if one is not None:
            times = [a / b for a, b in zip(seconds_an_image(one), seconds_an_image(row), strict=False)]
            found.append(
                bar(
                    f"{row['precision']}, {pluralize(row['threads'], 'thread')}: batch {_MANY} at least {_TIMES_ONE:g} "
                    "times the images a second of batch 1",
                    spread(times, "{:.2f}", "x"),
                    statistics.median(times) >= _TIMES_ONE,
                )
            )
    return found


def _is_alone(other: Row, row: Row) -> bool:
    """Return whether a row is that of one image where `row` is that of a batch, measured in turns with it."""
    alone = point_of(row)._replace(batch=1)
    return (point_of(other), series_of(other), other["run"]) == (alone, series_of(row), row["run"])


def _about(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    versions = about["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("mar", "commit"))
    reached = ", ".join(
        f"{spread(rates, '{:.0f}')} GFLOP/s in a large product with {pluralize(int(threads), 'thread')}"
        for threads, rates in about["machine_gflops"].items()
    )
    counts = [len(row["seconds"]) for row in rows]
    rounds = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
    skipped = "".join(f" Without {name} ({reason})." for name, reason in about["skipped"].items())
    return (
        f"{about['machine']['processor']}, which reached {reached}; load {about['load_average']:.1f} before. Rounds in "
        f"turns: {rounds}; the median, and the least to the most. Commit {versions['commit']}; {libraries}.{skipped}"
    )


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {axis: functools.partial(scaling_table, axis) for axis in AXES}
"""The table of each part of a report."""
