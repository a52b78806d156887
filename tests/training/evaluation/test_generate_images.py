"""Generation of many images: the same images by any number of processes, and no image twice."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.artifact.manifest import MANIFEST
from runtime.dataset.draw import Draw
from runtime.errors import DataError, RequestError
from runtime.image_records.record import ImageRecord
from tests.helpers.published_forms import CONFIG, mar_weights, vae_weights, write_json, write_safetensors
from tests.helpers.tiny_runs import one_sentence
from training.checkpoints.checkpoint import Checkpoint, save_run, save_weights
from training.evaluation import generate_images as generation
from training.evaluation.generate_images import (
    GenerationJob,
    generate_images,
    read_images,
)

_SETTINGS = (("cfg_scale", 1.5), ("diffusion_steps", 3), ("iterations", 2))


@pytest.fixture(autouse=True)
def files_of_six(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_IMAGES_PER_FILE", 6)


def _job(source: pathlib.Path, seed: int = 3, **changes: Any) -> GenerationJob:
    return GenerationJob(source, seed, tuple((dict(_SETTINGS) | changes).items()))


def _images(job: GenerationJob, count: int, out: pathlib.Path, processes: int = 1) -> NDArray[np.uint8]:
    generate_images(job, count, out, processes, 1, lambda done: None)
    return np.concatenate([images for images, _ in read_images(job, count, out)])


def test_a_stopped_generation_resumes_with_the_same_images(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, drawn = _job(pixel_artifact), list[int]()
    expected = _images(job, 20, tmp_path / "uninterrupted")
    open_artifact, stop_after = generation.open_artifact, 2

    @contextlib.contextmanager
    def counting(*arguments: Any) -> Iterator[Draw]:
        with open_artifact(*arguments) as draw:

            def counted(records: Sequence[ImageRecord], batch_size: int) -> Iterable[NDArray[np.uint8]]:
                if len(drawn) == stop_after:
                    raise KeyboardInterrupt
                drawn.append(records[0].index)
                return draw(records, batch_size)

            yield counted

    monkeypatch.setattr(generation, "open_artifact", counting)
    with pytest.raises(KeyboardInterrupt):
        _images(job, 20, tmp_path / "stopped")
    stop_after = 4
    progress: list[int] = []
    resumed: list[int] = []
    generate_images(job, 20, tmp_path / "stopped", 1, 1, progress.append, resumed.append)
    assert drawn == [0, 6, 12, 18]  # none twice
    assert (resumed, sum(progress)) == ([12], 8)
    images, labels = (np.concatenate(parts) for parts in zip(*read_images(job, 20, tmp_path / "stopped"), strict=True))
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, np.arange(20) % 2)
    assert expected.shape == (20, 8, 8, 1)
    assert len(np.unique(expected, axis=0)) == 20


def test_a_larger_count_keeps_the_first_images(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = _job(pixel_artifact)
    few = _images(job, 5, tmp_path)
    more = _images(job, 9, tmp_path)
    np.testing.assert_array_equal(more[:5], few)


@pytest.mark.parametrize("changes", [{"seed": 4}, {"diffusion_steps": 4}])
def test_images_of_other_settings_have_a_folder_of_their_own(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, int]
) -> None:
    one = _images(_job(pixel_artifact), 4, tmp_path)
    other = _images(_job(pixel_artifact, **changes), 4, tmp_path)
    assert (one != other).any()
    np.testing.assert_array_equal(_images(_job(pixel_artifact), 4, tmp_path), one)


@pytest.mark.parametrize("other", ["tokenizer", "scale", "config"])
def test_images_with_another_tokenizer_or_config_have_a_folder_of_their_own(tmp_path: pathlib.Path, other: str) -> None:
    """The hash of the checkpoint's weights is the same, so the folder must depend on more."""
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

    def job(name: str) -> GenerationJob:
        files = (("tokenizer", tmp_path / f"{name}.safetensors"), ("config_file", tmp_path / f"{name}.json"))
        return GenerationJob(checkpoint, 3, _SETTINGS, checkpoint=files)

    one, another = (_images(job(name), 2, tmp_path) for name in ("usual", other))
    assert (one != another).any()
    np.testing.assert_array_equal(_images(job("usual"), 2, tmp_path), one)


def test_images_of_an_artifact_with_another_manifest_have_a_folder_of_their_own(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    artifact = pathlib.Path(shutil.copytree(pixel_artifact, tmp_path / "artifact"))
    before = _job(artifact).resolved.inputs
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["model"]["encoder_num_heads"] *= 2
    write_json(artifact / MANIFEST, manifest)
    assert _job(artifact).resolved.inputs != before


def test_a_checkpoint_and_its_artifact_generate_the_same_images(
    pixel_artifact: pathlib.Path, pixel_checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    save_run(tmp_path / "run", pixel_checkpoint)
    eager = _images(_job(tmp_path / "run"), 6, tmp_path)
    exported = _images(_job(pixel_artifact), 6, tmp_path)
    assert np.abs(eager.astype(int) - exported).max() <= 1  # rounding of a value between two levels


def test_a_damaged_file_is_one_line(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = _job(pixel_artifact)
    _images(job, 4, tmp_path)
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="remove it, and it is made again") as caught:
        _images(job, 4, tmp_path)
    assert file.name in one_sentence(caught)


def test_images_that_were_altered_or_exchanged_are_refused(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = _job(pixel_artifact)
    _images(job, 12, tmp_path)
    one, two = sorted(tmp_path.rglob("*.npz"))[:2]
    with np.load(one) as saved:
        arrays = dict(saved)
    np.savez_compressed(one, **{**arrays, "images": arrays["images"] ^ 1})
    with pytest.raises(DataError, match=r"altered.*remove it, and it is made again") as caught:
        _images(job, 12, tmp_path)
    assert one.name in one_sentence(caught)
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataError, match=r"altered.*remove it, and it is made again"):
        _images(job, 12, tmp_path)


def test_wrong_settings_are_refused_before_the_work(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match="iterations"):
        generate_images(_job(pixel_artifact, iterations=1000), 4, tmp_path, 1, 1, lambda done: None)
    assert not list(tmp_path.iterdir())
