"""The table of `benchmarks.peers` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from runtime.checks import pluralize

_LEAST = 0.95
"""The bar: the least share of ONNX Runtime's time that a peer may take."""


def peers_table(value: Mapping[str, Any]) -> str:
    """The time of each engine in other libraries, as a ratio to that of ONNX Runtime, and whether the bar is met."""
    peers = list(dict.fromkeys(name for case in value["cases"] for name in case["peers"]))
    versions = ", ".join(f"{package} {version}" for package, version in value["versions"].items())
    lines = [
        f"{value['model']}, random weights, one image with guidance, float32, {pluralize(value['threads'], 'thread')}, "
        f"{pluralize(value['rounds'], 'round')} in turns; {value['processor']}, load {value['load_average']:.1f}. "
        f"Commit {value['commit']}, Python {value['python']}, {versions}.",
        "",
        f"| | {' | '.join(peers)} |",
        f"|---|{'---|' * len(peers)}",
    ]
    faster = []
    for case in value["cases"]:
        cells = []
        for name in peers:
            entry = case["peers"].get(name, {"refused": "the process has ended"})
            cells.append(_cell(entry, name == peers[0]))
            if "ratios" in entry and (ratio := statistics.median(entry["ratios"])) < _LEAST:
                faster.append(f"{name} at {case['case']} by {1 - ratio:.0%}")
        lines.append(f"| {case['case']} | {' | '.join(cells)} |")
    told = f"missed: {'; '.join(faster)}" if faster else "met"
    lines += ["", f"The bar, no peer is more than {1 - _LEAST:.0%} faster: {told}."]
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any], ours: bool) -> str:
    """Return milliseconds of ONNX Runtime, the ratio of another library, or why there is none."""
    if "refused" in entry:
        return str(entry["refused"]).replace("|", "/")
    values = [1e3 * seconds for seconds in entry["seconds"]] if ours else entry["ratios"]
    unit = " ms" if ours else ""
    return f"{statistics.median(values):.2f}{unit}, {min(values):.2f} to {max(values):.2f}"
