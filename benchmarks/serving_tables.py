"""The tables of `benchmarks.serving`, with the bars that its figures must meet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.table_parts import NOT_MEASURED, bar, bar_table, spread
from runtime.checks import pluralize

SERVICE, UNBATCHED, PLAIN = "mar serve", "mar serve --max-batch 1", "plain FastAPI handler"
ALONE = "Generator.generate alone"
MANY = 8
"""The number of clients for which two of the bars hold, and of the soak."""

_TIMES_PLAIN, _TIMES_P50, _OVERHEAD, _OVERHEAD_SHARE, _MEMORY_GROWTH = 3.0, 1.5, 0.005, 0.05, 0.02


def speed_table(value: Mapping[str, Any]) -> str:
    """Images a second and latencies by server and number of clients, and the bars, as Markdown."""
    if (part := value.get("speed")) is None:
        return NOT_MEASURED
    lines = [
        f"{_about(part)} Preset `{part['preset']}`; {pluralize(part['rounds'], 'round')} of {part['seconds']:g} s "
        "each, in turns: the median of the rounds, and the least to the most.",
        "",
        "| clients | server | images a second | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|",
    ]
    for clients, name in sorted({(run["clients"], run["server"]) for run in part["runs"]}, key=_place):
        rows = _runs(part, clients, name)
        latencies = " | ".join(
            spread([1e3 * row[key] for row in rows], "{:.0f}", " ms") for key in ("p50", "p95", "p99")
        )
        rate = spread([row["images_per_second"] for row in rows], "{:.1f}")
        lines.append(f"| {clients} | {name} | {rate} | {latencies} |")
    return "\n".join([*lines, "", *bar_table(_speed_bars(part))])


def pairs_table(value: Mapping[str, Any]) -> str:
    """What a service adds to the time of one client's image, and the bar, as Markdown."""
    if (part := value.get("pairs")) is None:
        return NOT_MEASURED
    pairs = part["seconds"]
    added = [pair[SERVICE] - pair[ALONE] for pair in pairs]
    middle = statistics.median(added)
    share = middle / statistics.median(pair[ALONE] for pair in pairs)
    lines = [
        f"{_about(part)} Preset `{part['preset']}`; {pluralize(len(pairs), 'image')}, each drawn by both: the median, "
        "and the first and third quartile.",
        "",
        "| server | an image |",
        "|---|---|",
        *(f"| {name} | {_quartiles([pair[name] for pair in pairs])} |" for name in (ALONE, SERVICE)),
        f"| added by `{SERVICE}` | {_quartiles(added)} |",
    ]
    overhead = bar(
        f"1 client: at most {1e3 * _OVERHEAD:g} ms or {_OVERHEAD_SHARE:.0%} over `Generator.generate`",
        f"{1e3 * middle:.1f} ms; {share:.1%}",
        middle <= _OVERHEAD or share <= _OVERHEAD_SHARE,
    )
    return "\n".join([*lines, "", *bar_table([overhead])])


def soak_table(value: Mapping[str, Any]) -> str:
    """Memory, file descriptors and threads of a service under load, and the bars, as Markdown."""
    if (part := value.get("soak")) is None:
        return NOT_MEASURED
    growth = part["growth"]
    bars = [
        bar(
            f"memory grows by less than {_MEMORY_GROWTH:.0%}",
            f"{growth['memory_bytes']['first'] / 2**20:.1f} to {growth['memory_bytes']['last'] / 2**20:.1f} MiB",
            growth["memory_bytes"]["last"] < (1 + _MEMORY_GROWTH) * growth["memory_bytes"]["first"],
        ),
        *(
            bar(
                f"{name.replace('_', ' ')} do not grow",
                f"{growth[name]['first']:.0f} to {growth[name]['last']:.0f}",
                growth[name]["last"] <= growth[name]["first"],
            )
            for name in ("file_descriptors", "threads")
        ),
    ]
    return "\n".join(
        [
            f"{_about(part)} Preset `{part['preset']}`; {part['seconds'] / 60:.0f} minutes, "
            f"{pluralize(part['clients'], 'client')}, {part['requests']:,} images, "
            f"{part['images_per_second']:.1f} a second. From {part['settle_seconds'] / 60:.0f} minutes on, the "
            "median of the first fifth of the samples against that of the last:",
            "",
            *bar_table(bars),
        ]
    )


def chaos_table(value: Mapping[str, Any]) -> str:
    """What became of good, bad, aborted and cancelled requests, and the bars, as Markdown."""
    if (part := value.get("chaos")) is None:
        return NOT_MEASURED
    outcomes = part["outcomes"]
    lines = [
        f"{_about(part)} Preset `{part['preset']}`; {part['requests']:,} requests by "
        f"{pluralize(part['clients'], 'client')}.",
        "",
        "| requests | number | outcomes |",
        "|---|---|---|",
        *(
            f"| {kind} | {sum(found.values()):,} | "
            f"{', '.join(f'{outcome}: {count:,}' for outcome, count in found.items())} |"
            for kind, found in outcomes.items()
        ),
    ]
    lost, wrong, rounded, left = part["lost"], part["wrong"], part["rounded"], part["left"]
    bars = [
        bar("none lost", f"{lost} lost", lost == 0),
        bar("none answered wrongly", f"{wrong} wrong; {rounded:,} differ by one level of rounding", wrong == 0),
        bar(
            "nothing is left over",
            f"{left['in_progress']:.0f} in progress, {left['queued']:.0f} in the queue",
            not left["in_progress"] and not left["queued"],
        ),
        bar("SIGTERM ends the service with 0", f"{part['exit_code']}", part["exit_code"] == 0),
    ]
    return "\n".join([*lines, "", *bar_table(bars)])


def _speed_bars(part: Mapping[str, Any]) -> list[str]:
    ours, plain = _runs(part, MANY, SERVICE), _runs(part, MANY, PLAIN)
    ratios = [a["images_per_second"] / b["images_per_second"] for a, b in zip(ours, plain, strict=True)]
    tails = [row["p99"] / row["p50"] for row in ours]
    return [
        bar(
            f"{MANY} clients: at least {_TIMES_PLAIN:g} times the images a second of the plain handler",
            spread(ratios, "{:.2f}", "x"),
            statistics.median(ratios) >= _TIMES_PLAIN,
        ),
        bar(
            f"{MANY} clients: p99 at most {_TIMES_P50:g} times p50",
            spread(tails, "{:.2f}", "x"),
            statistics.median(tails) <= _TIMES_P50,
        ),
    ]


def _runs(part: Mapping[str, Any], clients: int, name: str) -> list[Mapping[str, Any]]:
    """Return the runs of one row, by round."""
    rows = [run for run in part["runs"] if (run["clients"], run["server"]) == (clients, name)]
    return sorted(rows, key=lambda run: run["round"])


def _place(row: tuple[int, str]) -> tuple[int, int]:
    return row[0], (ALONE, SERVICE, UNBATCHED, PLAIN).index(row[1])


def _quartiles(seconds: Sequence[float]) -> str:
    low, middle, high = (1e3 * each for each in statistics.quantiles(seconds, n=4))
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


def _about(part: Mapping[str, Any]) -> str:
    machine, versions = part["machine"], part["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("mar", "commit"))
    return (
        f"{machine['processor']}, {pluralize(machine['threads'], 'thread')}. Commit {versions['commit']}; {libraries}."
    )


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "speed": speed_table,
    "pairs": pairs_table,
    "soak": soak_table,
    "chaos": chaos_table,
}
"""The table of each part of a report."""
