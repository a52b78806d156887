"""The table of `benchmarks.policy` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.table_parts import NOT_MEASURED
from runtime.checks import pluralize

_LEAST = {"4 new frames, 100 steps": 4.0, "4 new frames, DDIM of 10 steps": 10.0}
"""The bars: how many times as fast as eager PyTorch a case is to be."""


def policy_table(value: Mapping[str, Any]) -> str:
    """The calls of a policy beside eager PyTorch, the deviation of the short chain, and a loop of many calls."""
    if not value:
        return NOT_MEASURED
    lines = [
        f"UVA of the size {value['size']} with text, random weights, {pluralize(value['threads'], 'thread')}, "
        f"{pluralize(value['rounds'], 'round')} in turns; {value['processor']}, which reached {value['gflops']:.0f} "
        f"GFLOP/s in a large matrix product in the same run, load {value['load_average']:.1f}. Commit "
        f"{value['commit']}, Python {value['python']}, torch {value['torch']}.",
        "",
        "| one call | median | least to most | times as fast as the better eager one | bar |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in value["seconds"].items():
        ratios = value["times_eager"].get(name)
        speed = "" if ratios is None else f"**{statistics.median(ratios):.2f}x**, {_range(ratios, 'x')}"
        bar = f"{_LEAST[name]:g}x, {_reached(ratios, _LEAST[name])}" if name in _LEAST else ""
        what = name if ratios is None else f"runtime, {name}"
        lines.append(f"| {what} | {statistics.median(seconds):.2f} s | {_range(seconds, ' s')} | {speed} | {bar} |")
    deviation, loop = value["deviation"], value["loop"]
    lines += [
        "",
        "Root mean square of the difference from the actions of 100 steps, which lie in -1..1, of a golden model with "
        f"a trained head: 10 steps of DDIM from the same start {deviation['ddim_10']:.3f}, another draw of 100 steps "
        f"{deviation['another_draw']:.3f}.",
        "",
        f"A small policy in a loop of {loop['calls']:,} calls, each with one new frame and 10 steps of DDIM: median "
        f"{1e3 * loop['p50_seconds']:.1f} ms, p99 {1e3 * loop['p99_seconds']:.1f} ms, longest "
        f"{1e3 * loop['most_seconds']:.1f} ms. Its memory grew by {loop['memory_growth_bytes'] / 2**20:.1f} MiB, after "
        "100 calls that were not counted.",
        "",
        "Peak memory: "
        + ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in value["peak_memory_bytes"].items())
        + ".",
    ]
    return "\n".join(lines)


def _range(values: Sequence[float], unit: str) -> str:
    return f"{min(values):.2f} to {max(values):.2f}{unit}"


def _reached(ratios: Sequence[float] | None, least: float) -> str:
    return "met" if ratios is not None and statistics.median(ratios) >= least else "missed"
