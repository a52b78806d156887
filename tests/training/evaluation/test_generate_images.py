"""Images in bulk: the same ones however they are drawn, and each of them only once."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.artifact.manifest import MANIFEST
from runtime.errors import DataError, RequestError
from tests.helpers.published_forms import CONFIG, mar_weights, vae_weights, write_json, write_safetensors
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import Checkpoint, save_run, save_weights
from training.evaluation import generate_images as drawing
from training.evaluation.generate_images import Drawing, draw, drawn, labels_of

_SETTINGS = (("cfg_scale", 1.5), ("diffusion_steps", 3), ("iterations", 2))


@pytest.fixture(autouse=True)
def files_of_six(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_A_FILE", 6)


def _drawing(subject: pathlib.Path, seed: int = 3, **changes: Any) -> Drawing:
    return Drawing(subject, seed, tuple((dict(_SETTINGS) | changes).items()))


def _images(of: Drawing, count: int, out: pathlib.Path, processes: int = 1) -> NDArray[np.uint8]:
    draw(of, count, out, processes, 1, lambda done: None)
    return np.concatenate([images for images, _ in drawn(of, count, out)])


def test_a_stopped_drawing_goes_on_to_the_same_images(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, begun = _drawing(pixel_artifact), list[int]()
    whole = _images(of, 20, tmp_path / "whole")
    kept = drawing._draw_file

    def stopped(of: Drawing, folder: pathlib.Path, start: int, threads: int) -> None:
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(start)
        kept(of, folder, start, threads)

    monkeypatch.setattr(drawing, "_draw_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        _images(of, 20, tmp_path / "stopped")
    monkeypatch.setattr(drawing, "_draw_file", lambda *given: (begun.append(given[2]), kept(*given)))
    told: list[int] = []
    draw(of, 20, tmp_path / "stopped", 1, 1, told.append)
    assert begun == [0, 6, 12, 18]  # none twice
    assert (told[0], sum(told)) == (12, 20)
    images, labels = (np.concatenate(parts) for parts in zip(*drawn(of, 20, tmp_path / "stopped"), strict=True))
    np.testing.assert_array_equal(images, whole)
    np.testing.assert_array_equal(labels, labels_of(of, 20))
    assert whole.shape == (20, 8, 8, 1)
    assert len(np.unique(whole, axis=0)) == 20


def test_more_of_the_same_images_begin_with_those_there_are(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    of = _drawing(pixel_artifact)
    few = _images(of, 5, tmp_path)
    more = _images(of, 9, tmp_path)
    np.testing.assert_array_equal(more[:5], few)
    assert labels_of(of, 5).tolist() == [0, 1, 0, 1, 0]


def test_two_processes_draw_what_one_does(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    of = _drawing(pixel_artifact)
    drawing._A_FILE = 50  # what a process of its own has
    np.testing.assert_array_equal(_images(of, 120, tmp_path / "two", processes=2), _images(of, 120, tmp_path / "one"))


@pytest.mark.parametrize("changes", [{"seed": 4}, {"diffusion_steps": 4}])
def test_other_images_lie_apart(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, int]) -> None:
    one = _images(_drawing(pixel_artifact), 4, tmp_path)
    other = _images(_drawing(pixel_artifact, **changes), 4, tmp_path)
    assert (one != other).any()
    np.testing.assert_array_equal(_images(_drawing(pixel_artifact), 4, tmp_path), one)


@pytest.mark.parametrize("other", ["tokenizer", "scale", "config"])
def test_images_of_one_checkpoint_with_another_tokenizer_or_config_lie_apart(
    tmp_path: pathlib.Path, other: str
) -> None:
    """With the same weights: a file of them alone tells neither."""
    weights, changed = vae_weights(), vae_weights()
    changed["decoder.conv_out.bias"] += 0.5
    for name, (tensors, scale, heads) in {
        "usual": (weights, "0.2325", 3),
        "tokenizer": (changed, "0.2325", 3),
        "scale": (weights, "0.5", 3),
        "config": (weights, "0.2325", 6),
    }.items():
        save_weights(tmp_path / f"{name}.safetensors", tensors, {"latent_scale": scale})
        write_json(tmp_path / f"{name}.json", {**CONFIG.to_dict(), "encoder_num_heads": heads})
    checkpoint = write_safetensors(tmp_path / "model.safetensors", mar_weights())

    def of(name: str) -> Drawing:
        files = (("tokenizer", tmp_path / f"{name}.safetensors"), ("config_file", tmp_path / f"{name}.json"))
        return Drawing(checkpoint, 3, _SETTINGS, checkpoint=files)

    one, another = (_images(of(name), 2, tmp_path) for name in ("usual", other))
    assert (one != another).any()
    np.testing.assert_array_equal(_images(of("usual"), 2, tmp_path), one)


def test_images_of_an_artifact_whose_manifest_tells_another_model_lie_apart(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    artifact = pathlib.Path(shutil.copytree(pixel_artifact, tmp_path / "artifact"))
    before = _drawing(artifact).described[2]
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["model"]["encoder_num_heads"] *= 2
    write_json(artifact / MANIFEST, manifest)
    assert _drawing(artifact).described[2] != before


def test_a_checkpoint_draws_what_its_artifact_does(
    pixel_artifact: pathlib.Path, pixel_checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    save_run(tmp_path / "run", pixel_checkpoint)
    eager = _images(_drawing(tmp_path / "run"), 6, tmp_path)
    exported = _images(_drawing(pixel_artifact), 6, tmp_path)
    assert np.abs(eager.astype(int) - exported).max() <= 1  # a colour that lies between two


def test_a_damaged_file_is_told(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    of = _drawing(pixel_artifact)
    _images(of, 4, tmp_path)
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="remove it") as caught:
        _images(of, 4, tmp_path)
    assert file.name in one_sentence(caught)


def test_wrong_settings_are_told_before_the_work(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match="iterations"):
        draw(_drawing(pixel_artifact, iterations=1000), 4, tmp_path, 1, 1, lambda done: None)
    assert not list(tmp_path.iterdir())
