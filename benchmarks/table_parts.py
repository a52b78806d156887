"""What tables of several benchmarks have: a figure with its spread, and the bars that figures must meet."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NOT_MEASURED = "Not measured yet."


def spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """Return the median of values, with the least and the most; `form` is a format such as `{:.1f}`."""
    low, middle, high = (form.format(each(values)) for each in (min, statistics.median, max))
    return f"{middle}{unit} ({low} to {high})"


def bar(text: str, measured: str, met: bool) -> str:
    """Return the row of a bar in `bar_table`: what is asked, what was measured, and whether that is enough."""
    return f"| {text} | {measured} | {'met' if met else '**missed**'} |"


def bar_table(bars: Sequence[str]) -> list[str]:
    """Return the lines of a table of bars."""
    return ["| bar | measured | |", "|---|---|---|", *bars]
