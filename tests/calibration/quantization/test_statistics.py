"""Activation statistics: what is counted, how it is saved, and how collecting resumes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.quantization.collect import collect
from calibration.quantization.statistics import BINS, ROWS, ActivationStatistics, LayerStatistics
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import CalibrationError
from runtime.sampling.settings import Sampling
from tests.helpers.quantized_artifacts import SAMPLING

PARTS = ("channel_max", "iteration_max", "timestep_max", "histogram", "rows")


def filled(batches: list[NDArray[np.float32]]) -> LayerStatistics:
    layer, random = LayerStatistics(batches[0].shape[-1], 3, 2), np.random.default_rng(0)
    for number, batch in enumerate(batches):
        layer.update(batch, number % 3, range(number % 2, number % 2 + 1), random)
    return layer


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_maxima_cover_every_activation(seed: int, sizes: list[float]) -> None:
    random = np.random.default_rng(seed)
    batches = [(random.standard_normal((4, 3, 5)) * size).astype(np.float32) for size in sizes]
    layer = filled(batches)
    every = np.abs(np.stack(batches))  # [n, 4, 3, 5]
    assert (layer.channel_max == every.max(axis=(0, 1, 2))).all()
    for iteration in range(3):
        expected = every[iteration::3].max(initial=0)
        assert layer.iteration_max[iteration] == expected
    for step in range(2):
        assert layer.timestep_max[step] == every[step::2].max(initial=0)
    assert layer.histogram.sum() == every.size
    assert layer.width * BINS > every.max()


def test_a_histogram_whose_bins_were_widened_has_the_same_counts_as_a_wide_one() -> None:
    values = np.linspace(0, 1, 1000, dtype=np.float32).reshape(-1, 10)
    layer = filled([values[:2], values[2:40], values[40:]])
    expected = np.bincount((values / layer.width).astype(int).ravel(), minlength=BINS)
    assert layer.histogram.sum() == values.size
    # a value on the border of two narrow bins may be counted one bin off
    assert np.abs(np.cumsum(layer.histogram) - np.cumsum(expected)).max() <= 2


def test_the_sample_of_rows_comes_from_all_calls() -> None:
    batches = [np.full((2, 3), number, np.float32) for number in range(1, 4 * ROWS)]
    layer = filled(batches)
    assert layer.sample.shape == (ROWS, 3)
    assert (layer.sample == layer.sample[:, :1]).all()
    assert layer.sample.min() >= 1
    assert np.median(layer.sample) == pytest.approx(2 * ROWS, rel=0.2)


def test_an_activation_without_rows_is_ignored() -> None:
    layer = filled([np.zeros((0, 4), np.float32)])
    assert layer.seen == 0
    assert layer.sample.shape == (0, 4)


def test_every_layer_is_observed_in_every_iteration_and_those_of_the_head_in_every_step(
    statistics: ActivationStatistics,
) -> None:
    assert statistics.images == 10
    assert len(statistics.timesteps) == SAMPLING.diffusion_steps
    for name, layer in statistics.layers.items():
        empty_at_first = name == "backbone/model.z_proj"  # the first iteration has no known tokens
        assert (layer.iteration_max[empty_at_first:] > 0).all(), name
        head = not name.startswith("backbone") and "cond_embed" not in name
        assert (layer.timestep_max > 0).all() or not head, name
        assert (layer.timestep_max == 0).all() or not name.startswith("backbone"), name


def test_a_saved_file_is_read_back_unchanged(statistics: ActivationStatistics, tmp_path: pathlib.Path) -> None:
    statistics.save(tmp_path / "again.npz")
    again = ActivationStatistics.load(tmp_path / "again.npz")
    assert again.layers.keys() == statistics.layers.keys()
    for name, layer in statistics.layers.items():
        other = again.layers[name]
        assert (other.width, other.seen) == (layer.width, layer.seen)
        for part in PARTS:
            assert getattr(other, part).tobytes() == getattr(layer, part).tobytes()
    for field in ("artifact", "sampling", "timesteps", "images"):
        assert getattr(again, field) == getattr(statistics, field)


def test_altered_statistics_are_refused(statistics_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "altered.npz"
    with np.load(statistics_file) as saved:
        arrays = dict(saved)
    name = next(name for name in arrays if name.endswith(":channel_max"))
    np.savez(file, **{**arrays, name: arrays[name] * np.float32(2)})
    with pytest.raises(CalibrationError, match=r"altered.*remove the file to collect the statistics again"):
        ActivationStatistics.load(file)


def test_collecting_resumes_from_the_file(
    golden_artifacts: dict[str, pathlib.Path], statistics_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "more.npz"
    file.write_bytes(statistics_file.read_bytes())
    done: list[int] = []
    found = collect(Artifact(golden_artifacts["small"]), 12, file, SAMPLING, 1, done.append)
    assert (found.images, sum(done)) == (12, 2)
    assert ActivationStatistics.load(file).images == 12


def test_an_interrupted_collection_ends_as_an_undisturbed_one(
    golden_artifacts: dict[str, pathlib.Path], statistics: ActivationStatistics, tmp_path: pathlib.Path
) -> None:
    artifact, file = Artifact(golden_artifacts["small"]), tmp_path / "statistics.npz"

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(artifact, 10, file, SAMPLING, 1, stop)
    assert ActivationStatistics.load(file).images == 8
    resumed = collect(artifact, 10, file, SAMPLING, 1, lambda done: None)
    for name, layer in statistics.layers.items():
        assert vars(resumed.layers[name]).keys() == vars(layer).keys()
        for part in PARTS:
            assert getattr(resumed.layers[name], part).tobytes() == getattr(layer, part).tobytes()
        assert (resumed.layers[name].width, resumed.layers[name].seen) == (layer.width, layer.seen)


def test_statistics_of_another_plan_or_artifact_are_refused(
    golden_artifacts: dict[str, pathlib.Path], statistics_file: pathlib.Path
) -> None:
    small, patch2 = (Artifact(golden_artifacts[name]) for name in ("small", "patch2"))
    with pytest.raises(CalibrationError, match="another plan"):
        collect(small, 12, statistics_file, Sampling(iterations=5), 1, lambda done: None)
    with pytest.raises(CalibrationError, match="another artifact"):
        collect(patch2, 12, statistics_file, SAMPLING, 1, lambda done: None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing"])
def test_a_file_without_statistics_is_refused_in_one_line(tmp_path: pathlib.Path, content: bytes) -> None:
    file = tmp_path / "wrong.npz"
    file.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        ActivationStatistics.load(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
