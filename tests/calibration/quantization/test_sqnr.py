"""The distance of quantized engines from float32."""

from __future__ import annotations

import pathlib

import pytest

from calibration.quantization.sqnr import SqnrEvaluator
from calibration.quantization.statistics import ActivationStatistics
from calibration.quantization.variants import QdqVariant
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import BACKBONE
from tests.helpers.quantized_artifacts import SAMPLING


def test_the_report_has_the_distance_of_the_latents_and_of_the_tokens_of_each_iteration(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    """A token never changes after its iteration, so the squares of all iterations add up to those of the image."""
    variant = QdqVariant(small, [BACKBONE], "int8", statistics)
    with SqnrEvaluator(small, SAMPLING, 3, 1) as evaluator:
        report = evaluator.report(variant.write(tmp_path, variant.layers))
        assert report["relative_l2"] == pytest.approx(evaluator.relative_l2(variant.write(tmp_path, variant.layers)))
    assert [entry["iteration"] for entry in report["drift"]] == [1, 2, 3, 4]
    distances = [entry["relative_l2"] for entry in report["drift"]]
    assert min(distances) <= report["relative_l2"] <= max(distances)
    assert len(set(distances)) == len(distances)
