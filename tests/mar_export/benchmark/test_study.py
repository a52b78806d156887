"""The study of quality against time: what is evaluated, and which results are kept."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import pickle
import shutil
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from mar_export.benchmark import study
from mar_export.benchmark.study import (
    Setting,
    Study,
    evaluate_setting,
    run_study,
)
from runtime.artifact.manifest import MANIFEST
from runtime.errors import MarError, RequestError
from runtime.workers.worker_group import Workers
from tests.helpers.studies import OTHER, QUICK, EvaluatedSettings, fail, ignore
from training.evaluation.feature_networks import (
    FeatureNetwork,
    FeatureStatistics,
    LabelledBatch,
    extract_features,
    labelled_batches,
)

pytestmark = pytest.mark.usefixtures("study_is_not_kept")


def test_setting_is_evaluated_by_the_images_that_it_generates(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated: list[LabelledBatch] = []

    def recording_extract(network: FeatureNetwork, batches: Iterable[LabelledBatch]) -> FeatureStatistics:
        generated.extend(batches)
        return extract_features(network, generated)

    generator, classifier, real = study._load_study(tiny_study)
    monkeypatch.setattr(study, "extract_features", recording_extract)
    monkeypatch.setattr(study, "_BATCH", 4)
    found = evaluate_setting(tiny_study, QUICK)
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


def test_real_images_are_those_of_the_test_split(tiny_study: Study) -> None:
    _, classifier, real = study._load_study(tiny_study)
    assert real.sample.shape == (40, 64)
    test = study.open_dataset(tiny_study.data, 8, "test")
    statistics = extract_features(classifier, labelled_batches(test, np.arange(40)))
    assert (statistics.sample == real.sample).all()
    assert statistics.top1_accuracy is not None
    assert statistics.top1_accuracy > 0.9  # it can distinguish the classes
    assert tiny_study.classifier.is_file()


def test_checkpoint_of_another_model_is_refused(
    tiny_study: Study, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = dataclasses.replace(tiny_study, artifact=pixel_artifact, classifier=tmp_path / "c.safetensors")
    with pytest.raises(RequestError, match="is not the checkpoint that"):
        study._load_study(other)
    assert not (tmp_path / "c.safetensors").exists()


def test_a_model_of_latents_is_refused(tiny_study: Study, kl_artifact: pathlib.Path) -> None:
    with pytest.raises(RequestError, match=r"is a model of latents, mar study is for pixels; use mar evaluate"):
        study._load_study(dataclasses.replace(tiny_study, artifact=kl_artifact))


def test_every_setting_has_a_file_and_is_evaluated_once(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path
) -> None:
    said: list[str] = []
    out = tmp_path / "new" / "out"
    run_study(tiny_study, [QUICK, OTHER], out, Workers(), said.append)
    assert sorted(evaluated) == [("dpm++2m 4", 10), ("quick", 10)]
    assert sorted(path.name for path in out.iterdir()) == ["dpmpp2m-4.json", "quick.json"]
    assert json.loads((out / "quick.json").read_text())["name"] == "quick"
    assert sorted(line.split("  ")[0] for line in said) == ["dpm++2m 4", "quick"]
    assert all("top-1 accuracy 50.0%, Fréchet distance " in line for line in said)
    run_study(tiny_study, [QUICK, OTHER], out, Workers(), said.append)
    assert len(evaluated) == len(said) == 2


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
def test_other_sampling_or_count_is_evaluated_again(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path, change: dict[str, Any]
) -> None:
    run_study(tiny_study, [QUICK, OTHER], tmp_path, Workers(), ignore)
    images = change.get("images", 10)
    changed = dataclasses.replace(tiny_study, count=images)
    setting = Setting("quick", {**QUICK.sampling, **change.get("setting", {})})
    evaluated.clear()
    run_study(changed, [setting, OTHER], tmp_path, Workers(), ignore)
    assert evaluated == [("quick", images)] + ([("dpm++2m 4", images)] if images != 10 else [])
    evaluated.clear()
    run_study(changed, [setting, OTHER], tmp_path, Workers(), ignore)
    assert evaluated == []


def test_a_damaged_or_altered_result_is_refused(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path
) -> None:
    run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    file = tmp_path / "quick.json"
    value = json.loads(file.read_text())
    for content in ('{"sampling":', json.dumps({**value, "frechet": 0.5}), json.dumps([value])):
        file.write_text(content)
        with pytest.raises(RequestError, match="remove it to evaluate the setting again"):
            run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    assert evaluated == [("quick", 10)]


def test_results_of_another_model_are_evaluated_again(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path
) -> None:
    run_study(tiny_study, [QUICK], tmp_path / "out", Workers(), ignore)
    other = pathlib.Path(shutil.copytree(tiny_study.artifact, tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["provenance"]["checkpoint_sha256"] = "1" * 64
    (other / MANIFEST).write_text(json.dumps(manifest))
    run_study(dataclasses.replace(tiny_study, artifact=other), [QUICK], tmp_path / "out", Workers(), ignore)
    assert len(evaluated) == 2


def test_failed_setting_is_evaluated_the_next_time(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = study.evaluate_setting
    monkeypatch.setattr(study, "evaluate_setting", fail)
    with pytest.raises(MarError, match="out of luck"):
        run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(study, "evaluate_setting", judge)
    run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    assert evaluated == [("quick", 10)]


def test_failure_ends_the_study(
    tiny_study: Study, evaluated: EvaluatedSettings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being drawn may end; what has not begun, hours of work, must not begin."""
    judge = study.evaluate_setting

    def judge_slowly(inputs: Study, setting: Setting) -> dict[str, Any]:
        if setting == OTHER:
            fail(inputs, setting)
        time.sleep(0.1)
        return judge(inputs, setting)

    monkeypatch.setattr(study, "evaluate_setting", judge_slowly)
    settings = [OTHER, *(Setting(f"quick {number}", QUICK.sampling) for number in range(8))]
    with pytest.raises(MarError, match="out of luck"):
        run_study(tiny_study, settings, tmp_path, Workers(), ignore)
    assert len(evaluated) < 4


def test_a_worker_gets_the_evaluation_pickled(tiny_study: Study, tmp_path: pathlib.Path) -> None:
    """As Ray passes it to other processes, and their figures back: they are those of this one."""
    task = pickle.loads(pickle.dumps(functools.partial(study._evaluating, tiny_study, 1)))
    with task() as evaluate:
        found = pickle.loads(pickle.dumps(evaluate(pickle.loads(pickle.dumps(QUICK)))))
    run_study(tiny_study, [QUICK], tmp_path, Workers(), ignore)
    expected = json.loads((tmp_path / "quick.json").read_text())
    for same in ("name", "images", "head_evaluations", "engines", "top1_accuracy", "frechet"):
        assert found[same] == expected[same]
