"""The measured tables of docs/numbers.md, written from the JSON of `mar bench`, `study`, `evaluate` and others.

    python -m benchmarks.numbers docs/numbers.md docs/numbers

A line `<!-- KIND NAME -->` in the page, KIND being a key of `_TABLES`, begins what is replaced, from
`docs/numbers/NAME.json`, and `<!-- end -->` ends it. `make numbers` measures first.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from runtime.errors import MarError, RequestError
from runtime.files import replacing
from runtime.model.engine_spec import DECODER, ENGINES
from runtime.sampling.settings import Sampling


def rewrite(page: pathlib.Path, folder: pathlib.Path) -> None:
    """Replace every marked region of `page` by the tables of its JSON in `folder`."""
    begin = re.compile(r"<!-- \w+ [\w-]+ -->\n")
    a_region = re.compile(r"(<!-- (\w+) ([\w-]+) -->\n)((?:(?!<!-- ).)*)(<!-- end -->)", re.DOTALL)

    def region(found: re.Match[str]) -> str:
        if found[2] not in _TABLES:
            raise RequestError(f"{page} has a table of kind {found[2]}; known are {', '.join(_TABLES)}")
        file = folder / f"{found[3]}.json"
        try:
            value = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RequestError(f"{page} names {file}, which cannot be read ({error}); run make numbers") from None
        return f"{found[1]}{_TABLES[found[2]](value)}\n{found[5]}"

    before = page.read_text()
    text, replaced = a_region.subn(region, before)
    if replaced != len(begin.findall(before)):
        raise RequestError(f"{page}: a region is not ended by <!-- end -->")
    with replacing(page) as temporary:
        temporary.write_text(text)


def bench_tables(value: Mapping[str, Any]) -> str:
    """What `mar bench` measured, as Markdown."""
    machine, versions, batch = value["machine"], value["versions"], value["batch"]
    lines = [
        f"{value['title']}, {value['repeats']} times each in turn. Commit {versions['commit']}; "
        f"Python {versions['python']}, torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, "
        f"numpy {versions['numpy']}. In the same run the machine ({machine['processor']}) reached "
        f"{machine['gflops']:.0f} GFLOP/s in a large "
        f"matrix product and read {machine['read_gb_per_second']:.1f} GB/s.",
        "",
        "| | median | p10 to p90 | least | reached | useful GFLOP/s | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in value["cases"]:
        least = value["plans"][case["preset"]]["roofline_seconds"]
        share = case["share_of_roofline"]
        reached = " | " if share is None else f"{sum(least.values()) / batch:.2f} s | {share:.0%}"
        lines.append(
            f"| **{case['runner']}, {case['preset']}** | **{_time(case['seconds'], batch)}** | "
            f"{_spread(case['seconds'], batch)} | {reached} | "
            f"{case['useful_gflops']:.0f} | **{case['times_the_baseline']:.2f}x** |"
        )
        for stage, seconds in case["stage_seconds"].items():
            limit = (
                f"{least[stage] / batch:.2f} s | {least[stage] / seconds['median']:.0%}" if stage in least else " | "
            )
            lines.append(f"| {stage} | {_time(seconds, batch)} | {_spread(seconds, batch)} | {limit} | | |")
    baseline = value["baseline"]
    lines += ["", f"Seconds an image; speed against {baseline['runner']}, {baseline['preset']}. The plans:", ""]
    lines += ["| plan | iterations | head evaluations | TFLOP | settings |", "|---|---|---|---|---|"]
    for name, plan in value["plans"].items():
        lines.append(
            f"| {name} | {plan['iterations']} | {plan['head_evaluations']} | "
            f"{sum(plan['operations'].values()) / 1e12:.2f} | {_settings(plan['sampling'])} |"
        )
    lines += ["", "| | runs on | peak memory |", "|---|---|---|"]
    for name, one in value["runners"].items():
        lines.append(f"| {name} | {one['runs_on']} | {one['peak_memory_bytes'] / 2**20:,.0f} MiB |")
    startup = value["startup_seconds"]
    lines += [
        "",
        f"Engine files: {value['engine_bytes'] / 2**20:,.0f} MiB. `import runtime`: {startup['import_runtime']:.2f} s. "
        f"From the start of `mar generate`'s process to the first call of the backbone, every hash checked: "
        f"{startup['first_backbone_call']:.2f} s.",
    ]
    return "\n".join(lines)


def study_table(value: Mapping[str, Any]) -> str:
    """What `mar study` found, as Markdown."""
    exact = next((setting["frechet"] for setting in value["settings"] if setting["name"] == "exact"), None)
    lines = [
        f"{value['images']:,} images each.",
        "",
        "| | recognised | Fréchet distance | against exact | head evaluations | ms an image | settings |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in value["settings"]:
        sampler_alone = " " in setting["name"]  # without guidance, so beside others of its kind only
        against = f"{setting['frechet'] / exact - 1:+.1%}" if exact is not None and not sampler_alone else ""
        lines.append(
            f"| {setting['name']} | {setting['top1_accuracy']:.1%} | {setting['frechet']:.3f} | {against} | "
            f"{setting['head_evaluations']} | {setting['milliseconds']['median']:.0f} | {_settings(setting['sampling'])} |"
        )
    return "\n".join(lines)


def exports_table(value: Mapping[str, Any]) -> str:
    """What exporting took and how far the result is from eager float32, as Markdown."""
    versions = value["versions"]
    lines = [
        f"Python {versions['python']}, torch {versions['torch']}.",
        "",
        "| | commit | time | processor time | peak memory | artifact | backbone | conditioning | denoise | decoder | "
        "a whole image, by every 8th iteration |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in value["exports"].items():
        parity = one["parity"]
        engines = [f"{parity[engine]['sqnr_db']:.0f} dB" for engine in (*ENGINES, DECODER)]
        drift = ", ".join(f"{part['sqnr_db']:.0f} dB" for part in parity["generation"]["drift"])
        lines.append(
            f"| {name.replace(':', ', ')} | {one['commit']} | {one['seconds']:.0f} s | "
            f"{one['processor_seconds']:.0f} s | {one['peak_memory_bytes'] / 1e9:.1f} GB | "
            f"{one['artifact_bytes'] / 1e9:.2f} GB | {' | '.join(engines)} | {drift} |"
        )
    return "\n".join(lines)


def evaluation_table(value: Mapping[str, Any]) -> str:
    """What `mar evaluate` found of several subjects, by name, as Markdown."""
    lines = [
        "| | images | features | Fréchet distance | precision | recall | recognised | drawn with |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        for network, figures in one["features"].items():
            rows = {name: figures["generated"], "real, training": figures.get("real_training")}
            for what, row in rows.items():
                if row is not None:
                    share = "" if row["top1_accuracy"] is None else f"{row['top1_accuracy']:.1%}"
                    settings = _settings(one["sampling"]) if what == name else ""
                    lines.append(
                        f"| {what} | {row['images']:,} against {figures['real']['images']:,} | {network} | "
                        f"{row['frechet']:.3f} | {row['precision']:.3f} | {row['recall']:.3f} | {share} | {settings} |"
                    )
    return "\n".join(lines)


def variants_table(value: Mapping[str, Any]) -> str:
    """What the variants of the paper came to, side by side by the loss of their heads, as Markdown."""
    steps, batch = value["steps"], value["training"]["batch_size"]
    lines = [
        f"{steps:,} steps of {batch} images each; {value['images']:,} images of each judged, without guidance.",
        "",
        "| order | attention | tokens at a time | recognised, codes | diffusion | Fréchet distance, codes | "
        "diffusion | codes / diffusion |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_way: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in value["rows"]:
        by_way.setdefault((row["order"], row["attention"], row["iterations"]), {})[row["head"]] = row
    most = max(iterations for _, _, iterations in by_way)
    for (order, attention, iterations), heads in by_way.items():
        codes, diffusion = heads["vq"], heads["diffusion"]
        lines.append(
            f"| {order} | {attention} | {'one' if iterations == most else f'several ({iterations} iterations)'} | "
            f"{codes['top1_accuracy']:.1%} | {diffusion['top1_accuracy']:.1%} | {codes['frechet']:.2f} | "
            f"{diffusion['frechet']:.2f} | {codes['frechet'] / diffusion['frechet']:.2f} |"
        )
    real, coded = value["real"], value["real_through_codebook"]
    lines += [
        "",
        f"Real training images: {real['top1_accuracy']:.1%}, {real['frechet']:.2f}. The same, every token replaced by "
        f"the nearest of the {value['model']['codebook_size']} codes: {coded['top1_accuracy']:.1%}, {coded['frechet']:.2f}.",
    ]
    return "\n".join(lines)


def tokenizer_table(value: Mapping[str, Any]) -> str:
    """Runs of `mar train-tokenizer`, by name, and what their reconstructions are like, as Markdown."""
    lines = [
        "| | steps of | adversarial from | latents of an image | latent scale | PSNR | "
        "Fréchet distance, EfficientNet-Lite0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        training, judged = one["training"], one["judged"]
        lines.append(
            f"| {name} | {training['steps']:,} x {training['batch_size']} | {training['adversarial_from']:,} | "
            f"{' x '.join(map(str, one['latents']))} | {one['latent_scale']:.3f} | "
            f"{judged['psnr']:.2f} dB | {judged['frechet']:.2f}, by {training['judged']:,} |"
        )
    return "\n".join(lines)


def training_table(value: Mapping[str, Any]) -> str:
    """Steps of this trainer and of the published one, as Markdown."""
    lines = [
        f"{value['rounds']} steps of {value['batch']} images, in turns; {value['preset']}, {value['precision']}, "
        f"threads: {value['threads']}. Commit {value['commit'][:7]}, Python {value['python']}, torch {value['torch']}.",
        "",
        "| | seconds a step: median | least to most | images a second |",
        "|---|---|---|---|",
    ]
    for name, taken in value["times"].items():
        seconds = taken["seconds"]
        lines.append(
            f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} | "
            f"{value['images_per_second'][name]:.3f} |"
        )
    gain = value["gain"]["seconds"]
    lines.append(f"| gain, round by round | {gain['median']:.2f}x | {gain['least']:.2f} to {gain['most']:.2f} | |")
    return "\n".join(lines)


def steps_table(value: Mapping[str, Any]) -> str:
    """What `mar calibrate --steps` found, by the name of its schedule, as Markdown."""
    lines = [
        "| at the iterations of | | head evaluations | ms an image | error | worst |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in value.items():
        for row in one["judged"]:
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
    """What is not as published, in a few words."""
    usual = Sampling()
    told = []
    for name, value in dataclasses.asdict(Sampling(**sampling)).items():
        if value is not None and value != getattr(usual, name):
            told.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(told)


_TABLES = {
    "bench": bench_tables,
    "study": study_table,
    "exports": exports_table,
    "evaluation": evaluation_table,
    "variants": variants_table,
    "tokenizer": tokenizer_table,
    "training": training_table,
    "steps": steps_table,
}

if __name__ == "__main__":
    try:
        rewrite(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    except MarError as error:
        sys.exit(f"numbers: {error}")
