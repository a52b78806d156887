"""Latents that are asked for alone are not decoded."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_codec import ImageCodec
from tests.helpers.command_line import Mar

FAST: dict[str, Any] = {"iterations": 2, "diffusion_steps": "ddim2"}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every call of a decoder."""
    calls: list[int] = []
    decode = ImageCodec.decode

    def counting(self: ImageCodec, latents: NDArray[np.float32], batch_size: int) -> NDArray[np.uint8] | None:
        calls.append(len(latents))
        return decode(self, latents, batch_size)

    monkeypatch.setattr(ImageCodec, "decode", counting)
    return calls


def test_latents_alone_are_not_decoded(kl_artifact: pathlib.Path, decoded: list[int]) -> None:
    with Generator.load(kl_artifact, threads=1) as generator:
        result = generator.generate([0, 5, 2], decode_batch=0, **FAST)
        batches = [batch.images for batch in generator.generate_batches([0, 5, 2], 2, decode_batch=0, **FAST)]
        assert (decoded, result.images, batches) == ([], None, [None] * 2)
        np.testing.assert_array_equal(result.latents, generator.generate([0, 5, 2], **FAST).latents)
    with pytest.raises(RequestError, match=r"^there are no images: .* or decode_batch was 0; use result\.latents$"):
        result.pil()


@pytest.mark.parametrize(("option", "images"), [("", 0), ("--out {folder}/grid.png", 2)])
def test_mar_generate_decodes_images_only_if_they_are_written(
    mar: Mar, kl_artifact: pathlib.Path, tmp_path: pathlib.Path, decoded: list[int], option: str, images: int
) -> None:
    latents = tmp_path / "latents.npy"
    quick = "--count 2 --iterations 2 --diffusion-steps ddim2 --threads 1"
    ended = mar(f"generate {kl_artifact} {quick} --save-latents {latents} {option.format(folder=tmp_path)}")
    assert (ended.code, sum(decoded)) == (0, images), ended.err
    assert len(np.load(latents)) == 2
