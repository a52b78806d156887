"""`mar train` of NOVA and UVA: a run that learned its file by heart draws it again by the loop of the runtime."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.manifest import Manifest
from runtime.errors import ConfigError, DataError, MarError
from runtime.generator import Generator
from runtime.model.nova_config import DDPM, FLOW
from runtime.policy import Policy
from runtime.recordings.captions import Captions
from runtime.recordings.chunks import Chunks
from runtime.sampling.constraints import default_sampling
from tests.helpers.command_line import Command
from tests.helpers.distance import relative_l2
from tests.helpers.tiny_runs import logged, one_thread, tiny_training
from training.checkpoints.checkpoint import load_checkpoint
from training.config import RunConfig
from training.data.caption_batches import CaptionBatches
from training.distributed import Processes
from training.loop.recorded_trainer import RecordedTrainer
from training.models.model_sizes import model_config

COPIES = 8
"""How often each example is in a file, so that a batch has many masks and noises of it."""
NOVA = {"image_stride": 8, "width": 64, "heads": 2, "condition_depth": 1, "image_depth": 2}
NOVA |= {"head_width": 128, "head_depth": 2}
UVA = {"encoder_embed_dim": 16, "encoder_depth": 1, "encoder_num_heads": 2}
UVA |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "diffloss_act_w": 64}


def write_captions(path: pathlib.Path, **changes: Any) -> dict[str, NDArray[Any]]:
    """Two images of 2 x 4 tokens, each with a caption, eight times."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "prompt_embeds": random.standard_normal((2, 4, 8), np.float32),
        "lengths": np.array([3, 4]),
        "latents": random.standard_normal((2, 1, 4, 8), np.float32),
    }
    return write(path, {name: np.concatenate([array] * COPIES) for name, array in arrays.items()} | changes)


def write_chunks(path: pathlib.Path, copies: int = COPIES, **changes: Any) -> dict[str, NDArray[Any]]:
    """Two smooth paths of two values, one of them far from -1..1, each with frames and a text, eight times."""
    random = np.random.default_rng(0)
    time = np.linspace(0, 2 * np.pi, 16)[None, :, None] + np.array([[[0.0, 1.0]], [[2.0, 3.0]]])
    arrays: dict[str, Any] = {
        "latents": random.standard_normal((2, 4, 16, 16, 16), np.float32),
        "text": random.standard_normal((2, 8), np.float32),
        "actions": np.sin(time) * [1.0, 30.0] + [0.0, 500.0],
    }
    return write(path, {name: np.concatenate([array] * copies) for name, array in arrays.items()} | changes)


def write(path: pathlib.Path, arrays: dict[str, Any]) -> dict[str, NDArray[Any]]:
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def config_of(data: pathlib.Path, size: str, fields: dict[str, Any], steps: int, **training: Any) -> RunConfig:
    settings = {"flip": False, "learning_rate": 3e-3, "warmup_steps": 10, "decay_share": 0.7, "ema_rate": 0.5}
    settings |= {"checkpoint_every": 1000}
    return RunConfig(str(data), model_config(size, **fields), tiny_training(steps, **{**settings, **training}))


def trained(run: pathlib.Path, config: RunConfig) -> Generator:
    with one_thread():
        RecordedTrainer.start(run, config).train()
    return generator_of(run)


def generator_of(run: pathlib.Path) -> Generator:
    """The averaged model of a run, called by the loop of the runtime."""
    checkpoint = load_checkpoint(run, any_family=True)
    model = checkpoint.model.config
    manifest = Manifest(model, checkpoint.tokenizer, (), default_sampling(model), "fp32", {}, {}, {}, {})
    return eager_generator(manifest, checkpoint.model)


# The noise itself takes longer to learn than a velocity: its error grows a hundredfold at the first steps of a chain.
@pytest.mark.parametrize("scheduler", [{"kind": FLOW}, {"kind": DDPM, "prediction_type": "v_prediction"}], ids=str)
def test_a_nova_draws_the_image_of_a_caption_that_it_learned(tmp_path: pathlib.Path, scheduler: Any) -> None:
    arrays = write_captions(tmp_path / "captions.npz")
    settings: Any = {"batch_size": 16, "learning_rate": 5e-3}
    config = config_of(tmp_path / "captions.npz", "nova_small", {**NOVA, "scheduler": scheduler}, 320, **settings)
    with one_thread(), trained(tmp_path / "run", config) as generator:
        prompts = [rows[:length] for rows, length in zip(arrays["prompt_embeds"][:2], (3, 4), strict=True)]
        drawn = generator.generate(prompt_embeds=prompts, iterations=3, cfg_scale=1.0, seed=1).latents
    distances = [[relative_l2(drawn[i], arrays["latents"][j]) for j in range(2)] for i in range(2)]
    losses = list(logged(tmp_path / "run", "loss").values())
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:20])
    for image in range(2):
        assert distances[image][image] < 0.35, distances
        assert distances[image][1 - image] > 1, distances


def test_a_uva_repeats_the_chunks_that_it_learned_in_the_units_of_the_robot(tmp_path: pathlib.Path) -> None:
    arrays = write_chunks(tmp_path / "chunks.npz", copies=2)
    settings: Any = {"batch_size": 4, "learning_rate": 0.01, "decay_share": 0.5}
    config = config_of(tmp_path / "chunks.npz", "uva_small", UVA, 120, **settings)
    with one_thread(), Policy(trained(tmp_path / "run", config)) as policy:
        seen = {name: arrays[name][:2] for name in ("latents", "text")}
        actions = policy.act(seen, sampler="ddim", diffusion_steps=25)
        swapped = policy.act({name: array[::-1] for name, array in seen.items()}, sampler="ddim", diffusion_steps=25)
    recorded, unit = arrays["actions"][:2], np.array([1.0, 30.0])
    assert np.abs((actions - recorded) / unit).mean() < 0.1
    assert np.abs((swapped - recorded[::-1]) / unit).mean() < 0.1  # what a robot sees decides its path
    assert np.abs((recorded - recorded[::-1]) / unit).mean() > 0.4


def test_a_run_of_images_has_samples_resumes_and_draws_images(tmp_path: pathlib.Path, train: Command) -> None:
    """Two steps and two more; the tiny model comes from a TOML file, the sizes from the images."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 64, 3), np.uint8)
    write_captions(tmp_path / "captions.npz", latents=None, images=images)
    fields = {**NOVA, "image_stride": 1}
    lines = ["[model]", 'name = "nova_small"', *(f"{name} = {value}" for name, value in fields.items())]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    options = ("--data", tmp_path / "captions.npz", "--out", tmp_path / "run", "--batch-size", 4, "--threads", 1)
    ended = train("--config", tmp_path / "run.toml", *options, "--steps", 2)
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "samples" / "step-000002.png").exists()
    assert 0 < logged(tmp_path / "run", "sample_distance")[2] < 10
    ended = train("--resume", tmp_path / "run", "--steps", 4)
    assert ended.code == 0, ended.err
    with generator_of(tmp_path / "run") as generator:
        config: Any = generator.manifest.model
        drawn = generator.generate(prompt_embeds=[np.zeros((2, 8), np.float32)], iterations=2, diffusion_steps=2)
    assert (config.latent_shape, config.text_token_len, config.text_token_dim) == ((3, 32, 64), 4, 8)
    assert drawn.images is not None
    assert drawn.images.shape == (1, 32, 64, 3)


def test_batches_are_the_same_however_they_are_split(tmp_path: pathlib.Path) -> None:
    write_captions(tmp_path / "captions.npz")
    config, data = RecordedTrainer.fit_to_data(config_of(tmp_path / "captions.npz", "nova_small", NOVA, 2))
    whole, *halves = (CaptionBatches(data, config.model, config.training, r, n) for r, n in ((0, 1), (0, 2), (1, 2)))
    for name, axis in (("latents", 0), ("order", 0), ("noise", 1)):
        expected = getattr(whole[1].batch, name).numpy()
        parts = [getattr(half[1].batch, name).numpy() for half in halves]
        assert np.array_equal(np.concatenate(parts, axis), expected), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": None}, "the array lengths is missing"),
        ({"labels": np.zeros(16)}, "the array 'labels' is not one of prompt_embeds, lengths, images, latents"),
        ({"latents": None}, "expected one of the arrays images and latents"),
        ({"lengths": np.full(16, 5)}, "lengths must be 1 to 4, the rows of prompt_embeds, found 5 to 5"),
        ({"lengths": np.full(3, 1)}, "a row for each caption, found prompt_embeds 16, lengths 3, latents 16 rows"),
        ({"prompt_embeds": np.full((16, 4, 8), np.nan)}, "prompt_embeds holds a number that is not finite"),
        (
            {"prompt_embeds": np.zeros((16, 4), np.float32)},
            r"array 'prompt_embeds' cannot .*\[16, 4\]",
        ),
        ({"latents": np.zeros((16, 1, 8, 9), np.float32)}, "image_width 72 is not a multiple of 32"),
        ({"latents": None, "images": np.zeros((16, 32, 32, 3), np.uint8)}, "image_stride 1.*found 8"),
    ],
)
def test_a_bad_file_of_captions_is_one_line(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    write_captions(tmp_path / "captions.npz", **changes)
    with pytest.raises(MarError, match=message) as caught:
        RecordedTrainer.fit_to_data(config_of(tmp_path / "captions.npz", "nova_small", NOVA, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((16, 8, 2))}, r"'actions' cannot be read .*\[16, 8, 2\]"),
        ({"state": np.zeros((16, 5, 3))}, "state must have 4 or 16 steps a chunk, found 5"),
    ],
)
def test_a_bad_file_of_chunks_is_one_line(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    write_chunks(tmp_path / "chunks.npz", **changes)
    with pytest.raises(DataError, match=message):
        Chunks(tmp_path / "chunks.npz")


def test_a_folder_and_an_empty_file_are_no_captions(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"a folder, expected an \.npz file with the arrays prompt_embeds"):
        Captions(tmp_path)
    empty = {name: array[:0] for name, array in write_captions(tmp_path / "captions.npz").items()}
    write(tmp_path / "captions.npz", empty)
    with pytest.raises(DataError, match="there is no caption in it"):
        Captions(tmp_path / "captions.npz")


def test_values_that_never_change_are_normalized_to_zero(tmp_path: pathlib.Path) -> None:
    write_chunks(tmp_path / "chunks.npz", actions=np.full((16, 16, 2), 7.0))
    config, chunks = RecordedTrainer.fit_to_data(config_of(tmp_path / "chunks.npz", "uva_small", UVA, 2))
    assert not chunks.normalized([0, 1], config.model).any()


def test_settings_without_meaning_and_data_of_other_sizes_are_one_line(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "captions.npz"
    write_captions(data)
    config = config_of(data, "nova_small", NOVA, 2)
    with pytest.raises(ConfigError, match=r"^flip is not supported for the training of a NOVA; train without it"):
        RecordedTrainer.fit_to_data(config.with_training({"flip": True}))
    fitted, _ = RecordedTrainer.fit_to_data(config)
    other = dataclasses.replace(fitted, model=dataclasses.replace(fitted.model, text_token_dim=16))
    with pytest.raises(DataError, match="text_token_dim is 8, but the model was made for 16"):
        RecordedTrainer(tmp_path / "run", other, RecordedTrainer.open_data(other), Processes())
