"""A head of codes: its codebook, its loss, and how it draws."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DataError
from tests.helpers.tiny_runs import TINY, one_sentence, tiny_training, write_idx_dataset
from training.checkpoints.checkpoint import load_checkpoint
from training.config import RunConfig
from training.data.codebook import fit_codebook, kmeans_centers
from training.data.latent_dataset import open_latents
from training.loop.mar_trainer import MarTrainer
from training.models.vq_head import VQLoss, nearest_codes, sample_codes

VQ = dataclasses.replace(TINY, head="vq", codebook_size=6)


def _evenly(count: int) -> torch.Tensor:
    """Normals whose shares of the distribution lie evenly: the middles of `count` equal parts."""
    return torch.tensor([NormalDist().inv_cdf((number + 0.5) / count) for number in range(count)])


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=6), st.sampled_from([0.5, 1.0, 2.0]))
def test_codes_are_sampled_by_their_probability(logits: list[float], temperature: float) -> None:
    count = 2000
    drawn = sample_codes(torch.tensor(logits).expand(count, -1), 1.0, temperature, _evenly(count))
    shares = torch.bincount(drawn, minlength=len(logits)) / count
    torch.testing.assert_close(shares, (torch.tensor(logits) / temperature).softmax(dim=0), rtol=0, atol=2 / count)


def test_guidance_moves_logits_away_from_those_without_a_class() -> None:
    with_class, without = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.5, 0.0])
    count = 1000
    halves = torch.cat([with_class.expand(count, -1), without.expand(count, -1)])
    drawn = sample_codes(halves, 3.0, 1.0, _evenly(count))
    expected = sample_codes((3 * with_class - 2 * without).expand(count, -1), 1.0, 1.0, _evenly(count))
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, sample_codes(with_class.expand(count, -1), 1.0, 1.0, _evenly(count)))


def test_with_temperature_0_the_likeliest_code_is_chosen() -> None:
    drawn = sample_codes(torch.tensor([[0.1, 0.3, 0.2]]).expand(50, -1), 1.0, 0.0, _evenly(50))
    assert set(drawn.tolist()) == {1}


@pytest.mark.parametrize("normal", [-40.0, 40.0])
def test_extreme_normals_give_the_first_and_the_last_code(normal: float) -> None:
    drawn = sample_codes(torch.zeros(1, 5), 1.0, 1.0, torch.tensor([normal]))
    assert drawn.tolist() == [0 if normal < 0 else 4]


def test_the_loss_is_the_cross_entropy_of_the_nearest_code() -> None:
    torch.manual_seed(0)
    head = VQLoss(3, 4, 8, 1, 5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        target, z = torch.randn(7, 3), torch.randn(7, 4)
        codes = [min(range(5), key=lambda code: math.dist(head.codebook[code], token)) for token in target]
        expected = -head.net(z).log_softmax(dim=1)[range(7), codes]
        torch.testing.assert_close(head(target, z, torch.zeros(7), torch.zeros(7, 3)), expected)
    assert nearest_codes(target, head.codebook).tolist() == codes


def test_an_untrained_head_gives_all_codes_the_same_probability() -> None:
    head = VQLoss(3, 4, 8, 2, 5)
    actual = head(torch.randn(4, 3), torch.randn(4, 4), torch.zeros(4), torch.zeros(4, 3))
    torch.testing.assert_close(actual, torch.full((4,), math.log(5)))


def test_kmeans_finds_the_means_of_separate_clusters() -> None:
    random = np.random.default_rng(1)
    middles = np.array([[0, 0], [20, 0], [0, 20], [20, 20]], np.float32)
    points = (middles[np.arange(400) % 4] + random.standard_normal((400, 2))).astype(np.float32)
    actual = kmeans_centers(points, 4, 0)
    expected = np.stack([points[number::4].mean(axis=0) for number in range(4)])
    order = [int(np.square(actual - middle).sum(axis=1).argmin()) for middle in expected]
    np.testing.assert_allclose(actual[order], expected, atol=1e-4)


def test_each_iteration_of_kmeans_reduces_the_distances_of_points_to_their_centers() -> None:
    points = np.random.default_rng(2).standard_normal((300, 3)).astype(np.float32)

    def error(iterations: int) -> float:
        centers = kmeans_centers(points, 8, 7, iterations)
        return float(np.square(points[:, None] - centers).sum(axis=2).min(axis=1).mean())

    errors = [error(iterations) for iterations in (1, 2, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_the_same_seed_gives_the_same_codebook_and_another_seed_another(tmp_path: pathlib.Path) -> None:
    latents = open_latents(write_idx_dataset(tmp_path / "data"), TINY.img_size)
    first, again, other = (fit_codebook(latents, VQ, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_run_has_the_codebook_of_its_data_and_never_changes_it(tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data")
    config = RunConfig(str(data), VQ, tiny_training(3))
    MarTrainer.start(tmp_path / "run", config).train()
    expected = fit_codebook(open_latents(data, TINY.img_size), VQ, config.training.seed)
    actual = load_checkpoint(tmp_path / "run").model.diffloss.codebook
    assert np.array_equal(actual.numpy(), expected)
    assert len(np.unique(expected, axis=0)) == VQ.codebook_size


def test_more_codes_than_different_tokens_are_refused(tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data", images=4)
    with pytest.raises(DataError, match="36 in 4 images; choose a smaller codebook_size") as caught:
        fit_codebook(open_latents(data, TINY.img_size), dataclasses.replace(VQ, codebook_size=40), 0)
    one_sentence(caught)
