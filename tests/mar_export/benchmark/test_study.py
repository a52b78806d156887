"""Quality against time: what is judged, what is kept of it, and how it is shown."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mar_export.benchmark import study
from mar_export.benchmark.study import (
    Setting,
    Study,
    evaluate_setting,
    preset_settings,
    run_study,
    sampler_settings,
    summarize_study,
    time_settings,
)
from mar_export.benchmark.study_chart import save_study_chart
from mar_export.cli import study as study_cli
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError, RequestError
from runtime.generator import Generator
from runtime.sampling.presets import PRESETS, resolve_sampling
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from tests.helpers.tiny_runs import write_idx
from training.checkpoints.checkpoint import WEIGHTS_FILE, Checkpoint, save_weights, write_run_config
from training.evaluation.feature_networks import (
    FeatureNetwork,
    FeatureStatistics,
    LabelledBatch,
    extract_features,
    labelled_batches,
)
from training.models.model_sizes import model_config

QUICK = Setting("quick", {"iterations": 2, "diffusion_steps": 3})
OTHER = Setting("dpm++2m 4", {"iterations": 2, "sampler": "dpm++2m", "diffusion_steps": 4, "cfg_scale": 1.0})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    study._load_study.cache_clear()


@pytest.fixture(scope="module")
def made(pixel_checkpoint: Checkpoint, pixel_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A run folder, the artifact of its weights, and 8x8 images in two classes: dark, and light below."""
    folder = tmp_path_factory.mktemp("study")
    run, data = folder / "run", folder / "data"
    run.mkdir()
    data.mkdir()
    write_run_config(
        run, {"model": pixel_checkpoint.model.config.to_dict(), "tokenizer": "pixel", "class_names": ["cat", "dog"]}
    )
    save_weights(run / WEIGHTS_FILE, pixel_checkpoint.model.state_dict())
    random = np.random.default_rng(0)
    for split, count in (("train", 256), ("t10k", 40)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        pixels = random.integers(0, 90, (count, 8, 8), dtype=np.uint8)
        pixels[labels == 1, 4:] += 150
        write_idx(data / f"{split}-images-idx3-ubyte", pixels)
        write_idx(data / f"{split}-labels-idx1-ubyte", labels)
    artifact = pathlib.Path(shutil.copytree(pixel_artifact, folder / "artifact"))
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["provenance"]["checkpoint_sha256"] = study.load_checkpoint(run).sha256
    (artifact / MANIFEST).write_text(json.dumps(manifest))
    return Study(artifact, run, folder / "classifier.safetensors", data, count=10)


class Judged(list[tuple[str, int]]):
    """The settings that were judged, each with the number of images."""


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Judges every setting at once, in this process."""
    seen = Judged()

    def judge(inputs: Study, setting: Setting) -> dict[str, Any]:
        seen.append((setting.name, inputs.count))
        manifest = Artifact(inputs.artifact).manifest
        sampling = resolve_sampling(manifest.sampling, manifest.model, setting.sampling)
        found = figures(
            setting.name, json.loads(json.dumps(dataclasses.asdict(sampling))), inputs.count, float(len(seen))
        )
        return {**found, "checkpoint_sha256": manifest.provenance["checkpoint_sha256"]}

    def pool(processes: int, mp_context: Any) -> concurrent.futures.Executor:
        assert mp_context.get_start_method() == "spawn"
        return concurrent.futures.ThreadPoolExecutor(processes)

    monkeypatch.setattr(study, "evaluate_setting", judge)
    monkeypatch.setattr(study, "_load_study", lambda inputs: None)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", pool)
    return seen


def figures(name: str, sampling: dict[str, Any], images: int, frechet: float) -> dict[str, Any]:
    return {
        "name": name,
        "sampling": sampling,
        "images": images,
        "top1_accuracy": 0.5,
        "frechet": frechet,
        "head_evaluations": 160,
        "engines": "fakes",
        "seconds": 1.0,
    }


def _out_of_luck(inputs: Study, setting: Setting) -> dict[str, Any]:
    raise MarError("out of luck")


def told(text: str) -> None:
    """What a study says of a setting that is judged."""


# Judging.


def test_a_setting_is_evaluated_by_the_images_that_it_generates(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[LabelledBatch] = []

    def recording_extract(network: FeatureNetwork, batches: Iterable[LabelledBatch]) -> FeatureStatistics:
        generated.extend(batches)
        return extract_features(network, generated)

    generator, classifier, real = study._load_study(made)
    monkeypatch.setattr(study, "extract_features", recording_extract)
    monkeypatch.setattr(study, "_BATCH", 4)
    found = evaluate_setting(made, QUICK)
    for (images, _), index in zip(generated, ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]), strict=True):
        alone = generator.generate([number % 2 for number in index], index=index, **QUICK.sampling).images
        np.testing.assert_array_equal(images, alone)
    assert np.concatenate([labels for _, labels in generated]).tolist() == [0, 1] * 5
    expected = extract_features(classifier, generated)
    assert found["top1_accuracy"] == expected.top1_accuracy
    assert found["frechet"] == study.frechet_distance(expected.moments, real.moments)
    assert found["frechet"] > 0
    assert (found["name"], found["images"], found["head_evaluations"]) == ("quick", 10, 6)
    assert "bfloat16" in found["engines"]
    assert (found["sampling"]["iterations"], found["sampling"]["diffusion_steps"]) == (2, 3)
    assert found["sampling"]["cfg_scale"] == 1.5  # of the artifact
    json.dumps(found)


def test_real_images_are_those_of_the_test_split(made: Study) -> None:
    _, classifier, real = study._load_study(made)
    assert real.sample.shape == (40, 64)
    test = study.open_dataset(made.data, 8, "test")
    statistics = extract_features(classifier, labelled_batches(test, np.arange(40)))
    assert (statistics.sample == real.sample).all()
    assert statistics.top1_accuracy is not None
    assert statistics.top1_accuracy > 0.9  # it can distinguish the classes
    assert made.classifier.is_file()


def test_another_checkpoint_than_the_artifacts_is_refused(
    made: Study, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = dataclasses.replace(made, artifact=pixel_artifact, classifier=tmp_path / "c.safetensors")
    with pytest.raises(RequestError, match="is not the checkpoint that"):
        study._load_study(other)
    assert not (tmp_path / "c.safetensors").exists()


# Running.


def test_every_way_is_a_json_of_its_own_and_is_judged_once(made: Study, judged: Judged, tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    out = tmp_path / "new" / "out"
    run_study(made, [QUICK, OTHER], out, 2, said.append)
    assert sorted(judged) == [("dpm++2m 4", 10), ("quick", 10)]
    assert sorted(path.name for path in out.iterdir()) == ["dpmpp2m-4.json", "quick.json"]
    assert json.loads((out / "quick.json").read_text())["name"] == "quick"
    assert sorted(line.split("  ")[0] for line in said) == ["dpm++2m 4", "quick"]
    assert all("top-1 accuracy 50.0%, Fréchet distance " in line for line in said)
    run_study(made, [QUICK, OTHER], out, 2, said.append)
    assert len(judged) == len(said) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"setting": {"diffusion_steps": 5}},
        {"setting": {"cfg_scale": 2.0}},
        {"setting": {"cfg_interval": (0.2, 0.7)}},
        {"images": 12},
        {"images": 8},
    ],
    ids=str,
)
def test_other_settings_or_numbers_of_images_are_judged_anew(
    made: Study, judged: Judged, tmp_path: pathlib.Path, change: dict[str, Any]
) -> None:
    run_study(made, [QUICK, OTHER], tmp_path, 1, told)
    images = change.get("images", 10)
    changed = dataclasses.replace(made, count=images)
    setting = Setting("quick", {**QUICK.sampling, **change.get("setting", {})})
    judged.clear()
    run_study(changed, [setting, OTHER], tmp_path, 1, told)
    assert judged == [("quick", images)] + ([("dpm++2m 4", images)] if images != 10 else [])
    judged.clear()
    run_study(changed, [setting, OTHER], tmp_path, 1, told)
    assert judged == []


def test_a_result_that_cannot_be_read_is_judged_anew(made: Study, judged: Judged, tmp_path: pathlib.Path) -> None:
    (tmp_path / "quick.json").write_text('{"sampling":')
    run_study(made, [QUICK], tmp_path, 1, told)
    assert judged == [("quick", 10)]


def test_results_of_another_model_are_judged_anew(made: Study, judged: Judged, tmp_path: pathlib.Path) -> None:
    run_study(made, [QUICK], tmp_path / "out", 1, told)
    other = pathlib.Path(shutil.copytree(made.artifact, tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["provenance"]["checkpoint_sha256"] = "1" * 64
    (other / MANIFEST).write_text(json.dumps(manifest))
    run_study(dataclasses.replace(made, artifact=other), [QUICK], tmp_path / "out", 1, told)
    assert len(judged) == 2


def test_a_way_that_fails_is_told_and_judged_the_next_time(
    made: Study, judged: Judged, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = study.evaluate_setting
    monkeypatch.setattr(study, "evaluate_setting", _out_of_luck)
    with pytest.raises(MarError, match="out of luck"):
        run_study(made, [QUICK], tmp_path, 1, told)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(study, "evaluate_setting", judge)
    run_study(made, [QUICK], tmp_path, 1, told)
    assert judged == [("quick", 10)]


def test_a_failure_ends_the_study(
    made: Study, judged: Judged, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being drawn may end; what has not begun, hours of work, must not begin."""
    judge = study.evaluate_setting

    def judge_slowly(inputs: Study, setting: Setting) -> dict[str, Any]:
        if setting == OTHER:
            _out_of_luck(inputs, setting)
        time.sleep(0.1)
        return judge(inputs, setting)

    monkeypatch.setattr(study, "evaluate_setting", judge_slowly)
    settings = [OTHER, *(Setting(f"quick {number}", QUICK.sampling) for number in range(8))]
    with pytest.raises(MarError, match="out of luck"):
        run_study(made, settings, tmp_path, 1, told)
    assert len(judged) < 4


def test_ways_are_judged_in_processes_of_their_own(made: Study, tmp_path: pathlib.Path) -> None:
    """The real thing, once: figures from another process are those of this one."""
    run_study(made, [QUICK], tmp_path, 1, told)
    found, expected = json.loads((tmp_path / "quick.json").read_text()), evaluate_setting(made, QUICK)
    for same in ("name", "images", "head_evaluations", "engines", "top1_accuracy"):
        assert found[same] == expected[same]
    assert found["frechet"] == pytest.approx(expected["frechet"], rel=1e-3)


# The settings.


def test_samplers_are_compared_at_the_same_numbers_of_steps_without_guidance(made: Study) -> None:
    settings = sampler_settings(model_config("pixel_small"))
    assert len({setting.name for setting in settings}) == len(settings) == len(DIFFUSION_SAMPLERS) * len(study.STEPS)
    with Generator.load(made.artifact, threads=1) as generator:
        for setting in settings:
            sampler, steps = setting.name.split()
            overrides = {**setting.sampling, "iterations": 4}  # of the four tokens that these images have
            sampling = generator.sampling(**overrides)
            assert (sampling.sampler, sampling.diffusion_steps, sampling.start_timestep) == (sampler, int(steps), None)
            plan = generator.plan(**overrides)
            assert not any(iteration.guided for iteration in plan.iterations)
            assert plan.head_evaluations == 4 * int(steps)


def test_presets_are_compared_under_their_own_names() -> None:
    settings = preset_settings(())
    assert [setting.name for setting in settings] == list(PRESETS)
    assert [dict(setting.sampling) for setting in settings] == [{"preset": name} for name in PRESETS]


def test_file_names_of_all_ways_differ(tmp_path: pathlib.Path) -> None:
    settings = preset_settings(()) + sampler_settings(model_config("pixel_small"))
    files = {study._file(tmp_path, setting).name for setting in settings}
    assert len(files) == len(settings)
    assert all(name.removesuffix(".json").replace("-", "").isalnum() for name in files)


# Times and tables.


def test_ways_are_timed_in_turn_one_image_at_a_time_after_a_warm_up(
    made: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    now = [0.0]

    def generate(self: Generator, labels: list[int], **settings: Any) -> None:
        drawn.append((labels, settings))
        now[0] += len(drawn)

    monkeypatch.setattr(Generator, "generate", generate)
    monkeypatch.setattr(study.time, "perf_counter", lambda: now[0])
    found = time_settings(made, [QUICK, OTHER], threads=1, repeats=3)
    assert drawn == [([0], QUICK.sampling), ([0], OTHER.sampling)] * 4
    assert found == {"quick": [3.0, 5.0, 7.0], "dpm++2m 4": [4.0, 6.0, 8.0]}


def test_the_summary_has_the_figures_and_times_of_what_is_judged(
    made: Study, judged: Judged, tmp_path: pathlib.Path
) -> None:
    run_study(made, [QUICK], tmp_path, 1, told)
    seconds = {"quick": [float(number) for number in range(1, 12)], "dpm++2m 4": [1.0]}
    found = summarize_study(made, [OTHER, QUICK], tmp_path, seconds)
    assert found["images"] == 10
    (only,) = found["settings"]
    assert only["milliseconds"] == pytest.approx({"median": 6000.0, "p10": 2000.0, "p90": 10000.0})
    assert {**json.loads((tmp_path / "quick.json").read_text()), "milliseconds": only["milliseconds"]} == only
    assert summarize_study(dataclasses.replace(made, count=11), [QUICK], tmp_path, seconds)["settings"] == []


def test_the_chart_shows_every_sampler_and_every_preset(tmp_path: pathlib.Path) -> None:
    settings = []
    for number, setting in enumerate(preset_settings(()) + sampler_settings(model_config("pixel_small"))):
        steps = setting.sampling.get("diffusion_steps", 100)
        one = figures(setting.name, {"diffusion_steps": steps}, 10, frechet=10.0 / (1 + number % 7))
        settings.append({**one, "milliseconds": {"median": 10.0 * steps, "p10": 1.0, "p90": 1e4}})
    counts = []
    for shown in (
        settings,
        [setting for setting in settings if not setting["name"].startswith("dpm")],
        settings[: len(PRESETS)],
    ):
        save_study_chart({"images": 10, "settings": shown}, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).astype(int)
        left, right = np.array_split(pixels, 2, axis=1)
        colorful = [int((half.max(axis=-1) - half.min(axis=-1) > 60).sum()) for half in (left, right)]
        counts.append(colorful)
    assert counts[0][0] > 1.3 * counts[1][0] > 1000
    assert counts[2][0] == 0
    assert min(right for _, right in counts) > 200


# The command.


@pytest.fixture
def command(made: Study, judged: Judged, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that are needed; judged and timed at once."""

    def timed(inputs: Study, settings: list[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
        return {setting.name: [0.1 * (1 + number)] * repeats for number, setting in enumerate(settings)}

    monkeypatch.setattr(study_cli, "time_settings", timed)
    options = {
        "--checkpoint": made.checkpoint,
        "--data": made.data,
        "--classifier": made.classifier,
        "--out": tmp_path / "out",
        "--count": 10,
        "--threads": 1,
    }
    return [str(made.artifact), *(str(part) for option in options.items() for part in option)]


def run(line: list[str]) -> str:
    result = CliRunner().invoke(study_cli.study, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_a_row_for_every_way_and_writes_the_same(
    command: list[str], judged: Judged, tmp_path: pathlib.Path
) -> None:
    json_file, chart = tmp_path / "new" / "study.json", tmp_path / "study.png"
    output = run([*command, "--presets-only", "--json", str(json_file), "--chart", str(chart)])
    value = json.loads(json_file.read_text())
    assert sorted(judged) == sorted((name, 10) for name in PRESETS)
    assert [setting["name"] for setting in value["settings"]] == list(PRESETS)
    rows = [line.split() for line in output.splitlines()[-len(PRESETS) :]]
    assert rows == [
        [name, "160", f"{100 * (1 + number)}", "50.0%", f"{setting['frechet']:.3f}"]
        for number, (name, setting) in enumerate(zip(PRESETS, value["settings"], strict=True))
    ]
    with Image.open(chart) as image:
        assert image.convert("L").getextrema()[0] < 50
    run([*command, "--presets-only"])
    assert len(judged) == len(PRESETS)


def test_the_command_judges_samplers_too(command: list[str], judged: Judged) -> None:
    """At fewer iterations than usual: these images have four tokens only."""
    run(command)
    assert sorted(name for name, _ in judged) == sorted(
        setting.name for setting in preset_settings(()) + sampler_settings(model_config("pixel_small", img_size=8))
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--count", "1"], "--count must be at least 2, found 1"),
        (["--json", "{folder}"], "it is a folder"),
        (["--chart", "{folder}"], "it is a folder"),
    ],
)
def test_a_wrong_use_is_told_before_anything_is_judged(
    command: list[str], judged: Judged, tmp_path: pathlib.Path, line: list[str], message: str
) -> None:
    with pytest.raises(MarError, match=message):
        run([*command, *(part.format(folder=tmp_path) for part in line)])
    assert judged == []
    assert list(tmp_path.iterdir()) == []
