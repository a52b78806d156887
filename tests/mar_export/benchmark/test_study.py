"""The study of quality against time: what is evaluated, and which results are kept."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mar_export.benchmark import study
from mar_export.benchmark.study import Results, open_judges, run_study, summarize_study, time_settings
from mar_export.benchmark.study_settings import STEPS, Setting, Study, preset_settings, sampler_settings
from runtime.errors import MarError, RequestError
from runtime.generator import Generator
from runtime.sampling.presets import PRESETS
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from tests.helpers.studies import Drawn, TinyStudy, ignore
from training.evaluation.feature_networks import extract_features, labelled_batches
from training.evaluation.metrics import frechet_distance


def evaluate(tiny: TinyStudy, folder: pathlib.Path, study_inputs: Study | None = None) -> Results:
    inputs = study_inputs or tiny.inputs
    results = Results(inputs, tiny.judges, folder)
    run_study(inputs, tiny.settings, results, processes=1, threads=1, report=ignore)
    return results


def test_a_setting_is_evaluated_by_the_images_that_it_draws_with_each_seed(
    tiny_study: TinyStudy, tmp_path: pathlib.Path
) -> None:
    inputs, setting = dataclasses.replace(tiny_study.inputs, seeds=2), tiny_study.quick
    results = Results(inputs, tiny_study.judges, tmp_path)
    run_study(inputs, [setting], results, 1, 1, ignore)
    (network,), labels = tiny_study.judges.networks, np.arange(50) % 2
    test = tiny_study.judges.real.compared
    real = extract_features(network, labelled_batches(test, np.arange(40)))
    assert real.images == len(test.labels)
    for seed in (0, 1):
        with Generator.load(setting.artifact, threads=1) as generator:
            images = generator.generate(labels.tolist(), seed=seed, index=range(50), **setting.sampling).images
        assert images is not None
        expected = extract_features(network, [(images[:10], labels[:10])])
        result = results.read(setting, seed)
        assert result is not None
        found = result["features"]["classifier"]["generated"]
        assert found["top1_accuracy"] == expected.top1_accuracy
        assert found["frechet"] == pytest.approx(frechet_distance(expected.moments, real.moments), rel=1e-6)
        assert found["frechet"] > 1


def test_a_model_of_latents_is_evaluated_by_its_decoded_images(
    kl_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 22), ("test", 4)):
        for name in "abcdef":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    inputs = Study(tmp_path / "data", 4, classifier=tmp_path / "classifier.safetensors")
    setting = Setting("quick", kl_artifact, {"iterations": 1, "diffusion_steps": 2})
    results = Results(inputs, open_judges(inputs, [setting]), tmp_path / "out")
    run_study(inputs, [setting], results, 1, 1, ignore)
    result = results.read(setting, 0)
    assert result is not None
    assert result["features"]["classifier"]["generated"]["images"] == 4


def test_every_setting_and_seed_has_a_file_and_is_drawn_once(
    tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path
) -> None:
    two_seeds = dataclasses.replace(tiny_study.inputs, seeds=2)
    evaluate(tiny_study, tmp_path, two_seeds)
    assert drawn == [("3", 0, 10), ("3", 1, 10), ("4", 0, 10), ("4", 1, 10)]
    names = ["dpmpp2m-4-seed-0.json", "dpmpp2m-4-seed-1.json", "quick-seed-0.json", "quick-seed-1.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    evaluate(tiny_study, tmp_path, two_seeds)
    evaluate(tiny_study, tmp_path)  # of one seed only
    assert len(drawn) == 4


@pytest.mark.parametrize(
    "sampling", [{"diffusion_steps": 5}, {"cfg_scale": 2.0}, {"cfg_interval": (0.2, 0.7)}], ids=str
)
def test_other_sampling_is_evaluated_again(
    tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path, sampling: dict[str, Any]
) -> None:
    evaluate(tiny_study, tmp_path)
    quick = tiny_study.quick
    changed = dataclasses.replace(quick, sampling={**quick.sampling, **sampling})
    results = evaluate(dataclasses.replace(tiny_study, quick=changed), tmp_path)
    assert len(drawn) == 3
    assert results.read(quick, 0) is None
    assert results.read(changed, 0) is not None


def test_other_images_networks_and_models_are_evaluated_again(
    tiny_study: TinyStudy, golden_artifacts: dict[str, pathlib.Path], drawn: Drawn, tmp_path: pathlib.Path
) -> None:
    evaluate(tiny_study, tmp_path)
    count = dataclasses.replace(tiny_study.inputs, count=12)
    (network,) = tiny_study.judges.networks
    another = _Renamed(network, sha256="1" * 64)
    networks = dataclasses.replace(tiny_study, judges=tiny_study.judges._replace(networks=[another]))
    train = tiny_study.judges.real.train
    real = dataclasses.replace(tiny_study.judges.real, compared=train)
    images = dataclasses.replace(tiny_study, judges=tiny_study.judges._replace(real=real))
    assert Results(count, tiny_study.judges, tmp_path).read(tiny_study.quick, 0) is None
    for changed in (networks, images):
        assert Results(changed.inputs, changed.judges, tmp_path).read(changed.quick, 0) is None
        with pytest.raises(RequestError, match=r"quick-seed-0.json is the result of another model, of other settings"):
            Results(changed.inputs, changed.judges, tmp_path).check(changed.settings)
    assert Results(tiny_study.inputs, tiny_study.judges, tmp_path).read(tiny_study.quick, 0) is not None


class _Renamed:
    """A network with other weights."""

    def __init__(self, network: Any, sha256: str) -> None:
        self.name, self.sha256, self.knows_classes = network.name, sha256, network.knows_classes


def test_a_damaged_or_altered_result_is_refused(tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path) -> None:
    results = evaluate(tiny_study, tmp_path)
    file = tmp_path / "quick-seed-0.json"
    value = json.loads(file.read_text())
    for content in ('{"features":', json.dumps({**value, "seed": 5}), json.dumps([value])):
        file.write_text(content)
        with pytest.raises(RequestError, match="remove it to evaluate the setting again"):
            results.read(tiny_study.quick, 0)


def test_a_setting_that_failed_is_evaluated_the_next_time(
    tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:

        def fail(*inputs: Any) -> None:
            raise MarError("out of luck")

        failing.setattr(study, "compare_job", fail)
        with pytest.raises(MarError, match="out of luck"):
            evaluate(tiny_study, tmp_path)
    assert len(drawn) == 1  # what has not begun, hours of work, does not begin
    assert list(tmp_path.iterdir()) == []
    evaluate(tiny_study, tmp_path)
    assert len(drawn) == 3


def test_models_of_other_images_are_refused(
    tiny_study: TinyStudy, kl_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    message = r"draws 8x8 pixels in 2 classes and .* 64x64 pixels in 6 classes; a study compares models of the same"
    with pytest.raises(RequestError, match=message):
        open_judges(tiny_study.inputs, [tiny_study.quick, Setting("kl", kl_artifact, {})])
    inputs = dataclasses.replace(tiny_study.inputs, classifier=tmp_path / "c.safetensors")
    with pytest.raises(RequestError, match="has 2 classes, but the model has 6"):
        open_judges(inputs, [Setting("kl", kl_artifact, {})])
    assert not (tmp_path / "c.safetensors").exists()


def test_samplers_are_compared_at_the_same_numbers_of_steps_without_guidance(tiny_study: TinyStudy) -> None:
    settings = sampler_settings(tiny_study.quick.artifact)
    assert len({setting.name for setting in settings}) == len(settings) == len(DIFFUSION_SAMPLERS) * len(STEPS)
    with Generator.load(tiny_study.quick.artifact, threads=1) as generator:
        for setting in settings:
            sampler, steps = setting.name.split()
            sampling = generator.sampling(**setting.sampling)
            assert (sampling.sampler, sampling.diffusion_steps, sampling.start_timestep) == (sampler, int(steps), None)
            assert setting.sampler == sampler
            plan = generator.plan(**setting.sampling)
            assert not any(iteration.guided for iteration in plan.iterations)
            assert plan.head_evaluations == 4 * int(steps)  # of the four tokens that these images have


def test_presets_are_compared_under_their_own_names(
    tiny_study: TinyStudy, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    artifact, small = tiny_study.quick.artifact, golden_artifacts["small"]
    alone = preset_settings([artifact])
    assert [setting.name for setting in alone] == list(PRESETS)
    assert [dict(setting.sampling) for setting in alone] == [{"preset": name} for name in PRESETS]
    two = preset_settings([artifact, small], ["turbo", "fast"])
    assert [setting.artifact for setting in two] == [artifact, artifact, small, small]
    names = [f"{folder.name} {preset}" for folder in (artifact, small) for preset in ("fast", "turbo")]
    assert [setting.name for setting in two] == names
    with pytest.raises(RequestError, match=r"no artifact has a preset 'fastest'; known are exact, balanced, fast,"):
        preset_settings([artifact], ["fast", "fastest"])
    with pytest.raises(RequestError, match=f"several of the artifacts are named {artifact.name}; rename their folders"):
        preset_settings([artifact, artifact])


def test_file_names_of_all_settings_differ(tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path) -> None:
    artifact = tiny_study.quick.artifact
    settings = preset_settings([artifact]) + sampler_settings(artifact)
    run_study(tiny_study.inputs, settings, Results(tiny_study.inputs, tiny_study.judges, tmp_path), 1, 1, ignore)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == len(settings)
    assert all(name.removesuffix(".json").replace("-", "").isalnum() for name in names)


def test_settings_are_timed_in_turn_with_one_image_after_a_warm_up(
    tiny_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    now = [0.0]

    def generate(self: Generator, labels: list[int], **settings: Any) -> None:
        asked.append((labels, settings))
        now[0] += len(asked)

    monkeypatch.setattr(Generator, "generate", generate)
    monkeypatch.setattr(study.time, "perf_counter", lambda: now[0])
    found = time_settings(tiny_study.inputs, tiny_study.settings, threads=1, repeats=3)
    assert asked == [([0], tiny_study.quick.sampling), ([0], tiny_study.other.sampling)] * 4
    assert found == {"quick": [3.0, 5.0, 7.0], "dpm++2m 4": [4.0, 6.0, 8.0]}


def test_the_report_has_the_figures_of_all_seeds_and_the_times(
    tiny_study: TinyStudy, drawn: Drawn, tmp_path: pathlib.Path
) -> None:
    inputs = dataclasses.replace(tiny_study.inputs, seeds=2)
    results = evaluate(tiny_study, tmp_path, inputs)
    seconds = {"quick": [float(number) for number in range(1, 12)], "dpm++2m 4": [1.0]}
    found = summarize_study(inputs, tiny_study.settings, results, seconds)
    assert (found["images"], found["seeds"], found["doubts"]) == (10, 2, ["10 images are few"])
    assert found["real"]["classifier"]["real_training"]["frechet"] == 0.1
    quick, other = found["settings"]
    assert quick["milliseconds"] == pytest.approx({"median": 6000.0, "p10": 2000.0, "p90": 10000.0})
    assert [seed["frechet"] for seed in quick["features"]["classifier"]] == [1.0, 2.0]
    assert [seed["frechet"] for seed in other["features"]["classifier"]] == [3.0, 4.0]
    assert (quick["sampler"], other["sampler"], quick["head_evaluations"]) == (None, "dpm++2m", 6)
    assert quick["sampling"]["cfg_scale"] == 1.5  # of the artifact
    json.dumps(found)
