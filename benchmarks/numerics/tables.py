"""The tables of the four pages about numbers, as Markdown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.model.engine_spec import ENGINES


def growth_table(value: Mapping[str, Any]) -> str:
    """Errors of each engine in low precision, their growth, and the layers that contribute most."""
    lines = [
        _measured(value, f"{value['images']} images"),
        "",
        "| precision | engine | latents | tokens, first eighth | last eighth | of the iteration alone, first eighth | "
        "last eighth | state, after half of the chain | at its end |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in value["example"].items():
        for part in (*ENGINES, "all"):
            one = found[part]
            half = one["chain"][len(one["chain"]) // 2]
            cells = [one["latents"], *_ends(one["accumulated"]), *_ends(one["own"]), half, one["chain"][-1]]
            lines.append(f"| {name} | {part} | {' | '.join(f'{cell:.1e}' for cell in cells)} |")
    lines += [
        "",
        "| precision | of | layer that contributes most | its share | the next two |",
        "|---|---|---|---|---|",
    ]
    for name, found in value["example"].items():
        lines.append(_ranking_row(name, found["ranking"]))
    return "\n".join(lines)


def tokenizer_growth_table(value: Mapping[str, Any]) -> str:
    """Errors of the decoder of a tokenizer in low precision."""
    lines = [
        "| precision | pixels, relative L2 | PSNR | largest difference | first product | half of them | the last |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in value["tokenizer"].items():
        depth = [each["relative_l2"] for each in found["depth"]]
        ends = " | ".join(f"{error:.1e}" for error in (depth[0], depth[len(depth) // 2], depth[-1]))
        lines.append(
            f"| {name} | {found['pixels']:.1e} | {found['psnr']:.1f} dB | {found['levels']:.2f} levels | {ends} |"
        )
    lines += [
        "",
        "| precision | of | layer that contributes most | its share | the next two |",
        "|---|---|---|---|---|",
    ]
    lines += [_ranking_row(name, found["ranking"]) for name, found in value["tokenizer"].items()]
    return "\n".join(lines)


def _ends(errors: list[float]) -> tuple[float, float]:
    """Return the root of the mean square of the first and of the last eighth of errors."""
    part = max(1, len(errors) // 8)
    first, last = (math.sqrt(sum(error**2 for error in chosen) / part) for chosen in (errors[:part], errors[-part:]))
    return first, last


def _ranking_row(name: str, ranking: Mapping[str, Any]) -> str:
    first, *others = ranking["layers"]
    following = ", ".join(f"`{each['layer']}` {each['share']:.0%}" for each in others[:2])
    return f"| {name} | {ranking['count']} | `{first['layer']}` | {first['share']:.0%} | {following} |"


def estimators_table(value: Mapping[str, Any]) -> str:
    """Bias and spread of the distances against the number of images."""
    lines = [_measured(value)]
    for name, found in value["sets"].items():
        limit = found["frechet"] - (found["frechet_bias"] or 0.0)
        lines += [
            "",
            f"{name[0].upper()}{name[1:]}: choices of {found['images']:,}, against {found['real']:,} real images, "
            f"{found['features']:,} features. All {found['images']:,}: {found['frechet']:.4g}"
            + (f", which is {found['frechet_bias']:.2g} too large." if found["frechet_bias"] is not None else "."),
            "",
            "| images | Fréchet distance | bias: seen | expected | spread: seen | expected | kernel distance | "
            "spread: seen | expected |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            frechet, kernel = row["frechet"], row["kernel_distance"]
            cells = [
                f"{row['images']:,}",
                f"{frechet['mean']:.4g}",
                f"{frechet['mean'] - limit:.2g}",
                _number(frechet["bias"]),
                _number(frechet["spread"]),
                _number(frechet["standard_error"]),
                *(
                    [f"{kernel['mean']:.4g}", _number(kernel["spread"]), _number(kernel["standard_error"])]
                    if kernel
                    else [""] * 3
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def perfect_table(value: Mapping[str, Any]) -> str:
    """The bias of the Fréchet distance of images that are perfect, against their number."""
    found = value["perfect"]
    sizes = sorted({row["images"] for one in found.values() for row in one["rows"]})
    lines = [f"| images | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for size in sizes:
        by_set = [{row["images"]: row["mean"] for row in one["rows"]} for one in found.values()]
        lines.append(f"| {size:,} | {' | '.join(_number(one.get(size)) for one in by_set)} |")
    return "\n".join(lines)


def convergence_table(value: Mapping[str, Any]) -> str:
    """The errors of every solver, and the order of every doubling of the steps."""
    lines = [_measured(value, f"diffusion from t = {value['start']}, guidance {value['guidance']}")]
    for kind in ("strong", "weak"):
        rows = [row for row in value["rows"] if kind in row]
        counts = list(dict.fromkeys(count for row in rows for count in row[kind]))
        lines += [
            "",
            f"{kind.capitalize()} error by the number of intervals; in parentheses the order of the last doubling:",
            "",
            f"| solver | guidance | {' | '.join(counts)} |",
            f"|---|---|{'---|' * len(counts)}",
        ]
        for row in rows:
            errors = row[kind]
            values = [errors.get(count) for count in counts]
            orders = ["", *_orders(values)]
            cells = [
                "" if error is None else f"{error:.1e}" + (f" ({order})" if order else "") if error else "< chance"
                for error, order in zip(values, orders, strict=True)
            ]
            lines.append(f"| {row['solver']} | {'yes' if row['guided'] else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _orders(errors: Iterable[float | None]) -> list[str]:
    values = list(errors)
    return [f"{math.log2(coarse / fine):.1f}" if coarse and fine else "" for coarse, fine in itertools.pairwise(values)]


def determinism_table(value: Mapping[str, Any]) -> str:
    """Which settings keep the bits of the latents, and how far they are otherwise."""
    lines = [
        _measured(value),
        "",
        "| backend | precision | differs | setting | random numbers | latents | relative L2 | pixels that differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in value["rows"]:
        start = f"| {row['backend']} | {row['precision']} | {row['kind']} | {row['name']} |"
        if "failed" in row:
            lines.append(f"{start} | did not run | | |")
            continue
        same = {True: "same bits", False: "**other bits**"}
        distance = "" if row["latents"] else f"{row['distance']:.0e}"
        pixels = "" if row["latents"] else f"{row['differ']:.2%}, by at most {row['levels']}"
        lines.append(f"{start} {same[row['random_numbers']]} | {same[row['latents']]} | {distance} | {pixels} |")
    return "\n".join(lines)


def _measured(value: Mapping[str, Any], what: str = "") -> str:
    about = value["about"]
    packages = ", ".join(f"{name} {about[name]}" for name in ("numpy", "onnxruntime", "openvino", "torch"))
    return (
        f"Measured on {about['date']} on {about['processor']}, commit {about['commit']}: Python {about['python']}, "
        f"{packages}{f'; {what}' if what else ''}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
