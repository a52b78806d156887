"""The tables of the benchmark pages, written from the JSON of `mar bench`, `mar study`, `mar evaluate` and others.

    python -m benchmarks.render_pages docs/benchmarks/data docs/benchmarks/*.md docs/benchmarks/history/*.md

takes the folder of the JSON files, then the pages. In a page, a line `<!-- KIND NAME -->` begins a table and
`<!-- end -->` ends it: what lies between is replaced by the table of `NAME.json`, and KIND, a key of `_TABLES`, says
what the file holds. `make benchmarks` measures first.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.compatibility_tables import engines_table, operators_table, pins_table, tensorrt_rtx_table
from benchmarks.modulation_groups import modulation_groups_table
from benchmarks.numerics.tables import (
    convergence_table,
    determinism_table,
    estimators_table,
    growth_table,
    perfect_table,
    tokenizer_growth_table,
)
from benchmarks.peers_tables import peers_table
from benchmarks.policy_tables import policy_table
from benchmarks.recap import recap_table
from benchmarks.recap_quality import recap_quality_table
from benchmarks.scaling_tables import TABLES as SCALING_TABLES
from benchmarks.serving_tables import TABLES as SERVING_TABLES
from benchmarks.short_chains import short_chains_table
from benchmarks.uncertain_figures import accuracy_cell, frechet_cell
from mar_export.benchmark.study_table import study_rows
from runtime.checks import pluralize
from runtime.errors import MarError, RequestError
from runtime.model.engine_spec import CONDITION, DECODER, ENCODER, ENGINES
from runtime.sampling.settings import Sampling
from runtime.storage.files import replacing
from runtime.storage.structured_files import parse_json, read_bytes


def render_page(page: pathlib.Path, folder: pathlib.Path) -> None:
    """Replace every marked region of `page` with the table of its JSON file in `folder`.

    Raises `RequestError`, and leaves the page as it is, where a region names an unknown kind of table or a file that
    cannot be read, or has no end.
    """
    begin = re.compile(r"<!-- \w+ [\w-]+ -->\n")
    a_region = re.compile(r"(<!-- (\w+) ([\w-]+) -->\n)((?:(?!<!-- ).)*)(<!-- end -->)", re.DOTALL)

    def region(match: re.Match[str]) -> str:
        start, kind, name, _, end = match.groups()
        if kind not in _TABLES:
            raise RequestError(f"{page} has a table of kind {kind}; known are {', '.join(_TABLES)}")
        file = folder / f"{name}.json"
        try:
            value = parse_json(read_bytes(file))
        except (OSError, ValueError) as error:
            raise RequestError(f"{page} names {file}, which cannot be read ({error}); run make benchmarks") from None
        return f"{start}{_TABLES[kind](value)}\n{end}"

    before = page.read_text(encoding="utf-8")
    text, replaced = a_region.subn(region, before)
    if replaced != len(begin.findall(before)):
        raise RequestError(f"{page}: a table has no end; write <!-- end --> on the line after it")
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def bench_tables(value: Mapping[str, Any]) -> str:
    """The report of `mar bench` as Markdown."""
    machine, versions, batch = value["machine"], value["versions"], value["batch"]
    lines = [
        f"{value['title']}, {pluralize(value['repeats'], 'time')} each in turn. Commit {versions['commit']}; "
        f"Python {versions['python']}, torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, "
        f"numpy {versions['numpy']}. In the same run the machine ({machine['processor']}) reached "
        f"{machine['gflops']:.0f} GFLOP/s in a large "
        f"matrix product and read {machine['read_gb_per_second']:.1f} GB/s.",
        "",
        "| | median | p10 to p90 | roofline | reached | useful GFLOP/s | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    baseline = value["baseline"]
    for case in value["cases"]:
        same_work = value["plans"][case["preset"]]["operations"] == value["plans"][baseline["preset"]]["operations"]
        least = value["plans"][case["preset"]]["roofline_seconds"]
        share = case["share_of_roofline"]
        reached = " | " if share is None else f"{sum(least.values()) / batch:.2f} s | {share:.0%}"
        lines.append(
            f"| **{case['runner']}, {case['preset']}** | **{_time(case['seconds'], batch)}** | "
            f"{_spread(case['seconds'], batch)} | {reached} | "
            f"{case['useful_gflops']:.0f} | **{case['times_the_baseline']:.2f}x**{'' if same_work else ', less work'} |"
        )
        for stage, seconds in case["stage_seconds"].items():
            limit = (
                f"{least[stage] / batch:.2f} s | {least[stage] / seconds['median']:.0%}" if stage in least else " | "
            )
            lines.append(f"| {stage} | {_time(seconds, batch)} | {_spread(seconds, batch)} | {limit} | | |")
    lines += ["", f"Seconds an image; speed against {baseline['runner']}, {baseline['preset']}. The presets:", ""]
    lines += ["| preset | iterations | head evaluations | TFLOP | settings |", "|---|---|---|---|---|"]
    for name, plan in value["plans"].items():
        lines.append(
            f"| {name} | {plan['iterations']} | {plan['head_evaluations']} | "
            f"{sum(plan['operations'].values()) / 1e12:.2f} | {_settings(plan['sampling'])} |"
        )
    lines += ["", "| | runs on | peak memory |", "|---|---|---|"]
    for name, runner in value["runners"].items():
        lines.append(f"| {name} | {runner['runs_on']} | {runner['peak_memory_bytes'] / 2**20:,.0f} MiB |")
    startup = value["startup_seconds"]
    lines += [
        "",
        f"Engine files: {value['engine_bytes'] / 2**20:,.0f} MiB. `import runtime`: {startup['import_runtime']:.2f} s. "
        f"From the start of `mar generate`'s process to the first call of the backbone, every hash checked: "
        f"{startup['first_backbone_call']:.2f} s.",
    ]
    return "\n".join(lines)


def study_table(value: Mapping[str, Any]) -> str:
    """The report of `mar study` as Markdown."""
    header, *rows = study_rows(value)
    settings = [_settings(row["sampling"]) for row in value["settings"]]
    seeds = "" if value["seeds"] == 1 else f" with each of {value['seeds']} seeds: the mean, the least and the largest"
    lines = [f"{value['images']:,} images each{seeds}.", "", f"|{' | '.join(header)} | settings |"]
    lines.append("|---" * (len(header) + 1) + "|")
    lines += [f"| {' | '.join(row)} | {text} |" for row, text in itertools.zip_longest(rows, settings, fillvalue="")]
    return "\n".join(lines)


def exports_table(value: Mapping[str, Any]) -> str:
    """What exports cost and how far their engines lie from eager float32, as Markdown."""
    versions = value["versions"]
    lines = [
        f"Python {versions['python']}, torch {versions['torch']}.",
        "",
        "| | commit | time | processor time | peak memory | artifact | condition | backbone | conditioning | denoise | "
        "decoder or encoder | a complete image, by every 8th iteration |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in value["exports"].items():
        parity = one["parity"]
        of_tokenizer = DECODER if DECODER in parity else ENCODER
        engines = [
            f"{parity[engine]['sqnr_db']:.0f} dB" if engine in parity else ""
            for engine in (CONDITION, *ENGINES, of_tokenizer)
        ]
        drift = ", ".join(f"{part['sqnr_db']:.0f} dB" for part in parity["generation"]["drift"])
        lines.append(
            f"| {name.replace(':', ', ')} | {one['commit']} | {one['seconds']:.0f} s | "
            f"{one['processor_seconds']:.0f} s | {one['peak_memory_bytes'] / 1e9:.1f} GB | "
            f"{one['artifact_bytes'] / 1e9:.2f} GB | {' | '.join(engines)} | {drift} |"
        )
    return "\n".join(lines)


def evaluation_table(value: Mapping[str, Any]) -> str:
    """Reports of `mar evaluate`, by name, as Markdown."""
    lines = [
        "| | images | features | Fréchet distance | precision | recall | top-1 accuracy | sampling settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        for network, figures in one["features"].items():
            rows = {name: figures["generated"], "real, training": figures.get("real_training")}
            for what, row in rows.items():
                if row is not None:
                    settings = _settings(one["sampling"]) if what == name else ""
                    lines.append(
                        f"| {what} | {row['images']:,} against {figures['real']['images']:,} | {network} | "
                        f"{frechet_cell(row, network)} | {row['precision']:.3f} | {row['recall']:.3f} | "
                        f"{accuracy_cell(row)} | {settings} |"
                    )
    return "\n".join(lines)


def variants_table(value: Mapping[str, Any]) -> str:
    """The quality of the variants of the paper, VQ and diffusion heads side by side, as Markdown."""
    steps, batch = value["steps"], value["training"]["batch_size"]
    lines = [
        f"{steps:,} steps of {batch} images each; {value['images']:,} images of each evaluated, without guidance.",
        "",
        "| order | attention | tokens at a time | top-1 accuracy, VQ | diffusion | Fréchet distance, VQ | "
        "diffusion | VQ / diffusion |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_setting: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in value["rows"]:
        by_setting.setdefault((row["order"], row["attention"], row["iterations"]), {})[row["head"]] = row
    most = max(iterations for _, _, iterations in by_setting)
    for (order, attention, iterations), heads in by_setting.items():
        vq, diffusion = ({"images": value["images"], **heads[head]} for head in ("vq", "diffusion"))
        lines.append(
            f"| {order} | {attention} | {'one' if iterations == most else f'several ({iterations} iterations)'} | "
            f"{accuracy_cell(vq)} | {accuracy_cell(diffusion)} | {frechet_cell(vq)} | {frechet_cell(diffusion)} | "
            f"{vq['frechet'] / diffusion['frechet']:.2f} |"
        )
    real, quantized = value["real"], value["real_through_codebook"]
    lines += [
        "",
        f"Real training images: {real['top1_accuracy']:.1%}, {real['frechet']:.2f}. The same, every token replaced by "
        f"the nearest of the {value['model']['codebook_size']} codes: {quantized['top1_accuracy']:.1%}, "
        f"{quantized['frechet']:.2f}.",
    ]
    return "\n".join(lines)


def tokenizer_table(value: Mapping[str, Any]) -> str:
    """Runs of `mar train-tokenizer`, by name, and the quality of their reconstructions, as Markdown."""
    lines = [
        "| | steps of | adversarial from | latents of an image | latent scale | PSNR | "
        "Fréchet distance, EfficientNet-Lite0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        training, reconstruction = one["training"], one["reconstruction"]
        lines.append(
            f"| {name} | {training['steps']:,} x {training['batch_size']} | {training['adversarial_from']:,} | "
            f"{' x '.join(map(str, one['latents']))} | {one['latent_scale']:.3f} | "
            f"{reconstruction['psnr']:.2f} dB | {reconstruction['frechet']:.2f}, by {training['eval_count']:,} |"
        )
    return "\n".join(lines)


def training_table(value: Mapping[str, Any]) -> str:
    """Steps of this trainer and of the published one, or of an earlier commit, as Markdown."""
    lines = [
        f"{value['rounds']} steps of {value['batch']} images, in turns; {value['model']}, {value['precision']}, "
        f"threads: {value['threads']}. Commit {value['commit'][:7]}, Python {value['python']}, torch {value['torch']}.",
        "",
        "| | seconds a step: median | least to most | images a second |",
        "|---|---|---|---|",
    ]
    for name, taken in value["times"].items():
        seconds = taken["seconds"]
        lines.append(
            f"| {name} | {statistics.median(seconds):#.3g} | {min(seconds):#.3g} to {max(seconds):#.3g} | "
            f"{value['images_per_second'][name]:.3g} |"
        )
    speedup = value["speedup"]["seconds"]
    lines.append(
        f"| speedup, round by round | {speedup['median']:.2f}x | {speedup['least']:.2f} to {speedup['most']:.2f} | |"
    )
    return "\n".join(lines)


def startup_table(value: Mapping[str, Any]) -> str:
    """Starts and memory of two checkouts, as Markdown."""
    lines = [
        f"{value['rounds']} starts of each in turns, threads: {value['threads']}; engine files "
        f"{value['engine_bytes'] / 2**20:,.0f} MiB. Load average {value['load']['before'][0]:.1f} before and "
        f"{value['load']['after'][0]:.1f} after. Python {value['python']}, onnxruntime {value['onnxruntime']}, "
        f"numpy {value['numpy']}.",
        "",
        "| | first call of the backbone | p10 to p90 | `import runtime` | peak memory: after loading | with an image |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in value["checkouts"].items():
        first, imported = one["seconds"]["first_backbone_call"], one["seconds"]["import_runtime"]
        memory = " | ".join(
            f"{peak / 2**20:,.0f} MiB, {peak / value['engine_bytes']:.2f}x" for peak in one["peak_bytes"].values()
        )
        lines.append(
            f"| {name}, {one['commit'][:7]} | {_time(first, 1)} | {_spread(first, 1)} | {imported['median']:.3f} s | "
            f"{memory} |"
        )
    ratio = value["ratio"]
    lines.append(
        f"| ratio, round by round | {ratio['median']:.2f} | {ratio['least']:.2f} to {ratio['most']:.2f} | | | |"
    )
    return "\n".join(lines)


def few_images_table(value: Mapping[str, Any]) -> str:
    """Short training runs by data and learning rate, as Markdown."""
    lines = [
        f"{value['device']}, Python {value['python']}, torch {value['packages']['torch']}, commit {value['commit']}. "
        "Loss: the mean over 50 steps.",
        "",
        "| data | learning rate | warm-up | steps | images a step | loss at half | loss at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in sorted(value["runs"], key=lambda run: (run["data"], run["learning_rate"], run["warmup_steps"])):
        lines.append(
            f"| {run['data']}, {run['image_size']}x{run['image_size']} | {run['learning_rate']:g} | "
            f"{run['warmup_steps']} | {run['steps']} | {run['batch_size']} | {run['loss_at_half']:.3f} | "
            f"{run['loss']:.3f} |"
        )
    return "\n".join(lines)


def steps_table(value: Mapping[str, Any]) -> str:
    """Reports of `mar optimize-steps`, by the name of the schedule, as Markdown."""
    lines = [
        "| at the iterations of | | head evaluations | ms an image | error | worst |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        for row in one["evaluations"]:
            if row["relative_l2"] is not None:
                lines.append(
                    f"| {name} | {row['name']} | {row['head_evaluations']} | {row['milliseconds']:.0f} | "
                    f"{row['relative_l2']:.4f} | {row['worst']:.4f} |"
                )
    return "\n".join(lines)


def _time(seconds: Mapping[str, float], batch: int) -> str:
    return f"{seconds['median'] / batch:.2f} s"


def _spread(seconds: Mapping[str, float], batch: int) -> str:
    return f"{seconds['p10'] / batch:.2f} to {seconds['p90'] / batch:.2f}"


def _settings(sampling: Mapping[str, Any]) -> str:
    """The sampling settings that differ from the published ones, as text."""
    usual = Sampling()
    differing = []
    for name, value in dataclasses.asdict(Sampling(**sampling)).items():
        if value is not None and value != getattr(usual, name):
            differing.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(differing)


_TABLES = {
    "bench": bench_tables,
    "study": study_table,
    "exports": exports_table,
    "evaluation": evaluation_table,
    "variants": variants_table,
    "tokenizer": tokenizer_table,
    "training": training_table,
    "startup": startup_table,
    "few_images": few_images_table,
    "steps": steps_table,
    "peers": peers_table,
    "policy": policy_table,
    "recap": recap_table,
    "modulation_groups": modulation_groups_table,
    "recap_quality": recap_quality_table,
    "short_chains": short_chains_table,
    **{f"scaling_{axis}": table for axis, table in SCALING_TABLES.items()},
    **{f"serving_{name}": table for name, table in SERVING_TABLES.items()},
    "engines_run": engines_table,
    "operators_run": operators_table,
    "tensorrt_rtx": tensorrt_rtx_table,
    "pins": pins_table,
    "error_growth": growth_table,
    "tokenizer_growth": tokenizer_growth_table,
    "estimators": estimators_table,
    "perfect_images": perfect_table,
    "convergence": convergence_table,
    "determinism": determinism_table,
}

if __name__ == "__main__":
    try:
        for name in sys.argv[2:]:
            render_page(pathlib.Path(name), pathlib.Path(sys.argv[1]))
    except MarError as error:
        sys.exit(f"render_pages: {error}")
