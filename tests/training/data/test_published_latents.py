"""Latents that the published code cached are called that, with the command that caches latents here."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.helpers.command_line import Mar


@pytest.mark.parametrize("layout", ["classes", "split", "flat"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_published_latents_are_called_that(mar: Mar, tmp_path: pathlib.Path, layout: str, suffix: str) -> None:
    folders = {"classes": ["a", "b"], "split": ["train/a", "train/b"], "flat": ["."]}[layout]
    for name in folders:
        folder = tmp_path / "cached" / name
        folder.mkdir(parents=True, exist_ok=True)
        moments = np.zeros((32, 2, 2), np.float32)
        if suffix == ".npz":
            np.savez(folder / "n01440764_18.JPEG.npz", moments=moments, moments_flip=moments)
        else:
            np.save(folder / "n01440764_18.npy", moments)
    options = ["--model", "pixel_small", "--data", tmp_path / "cached", "--image-size", 32, "--steps", 1]
    code, _, err = mar("train", *options, "--out", tmp_path / "run")
    assert code == 1
    assert err.count("\n") == 1
    assert "of arrays (.npz, .npy), as the published code caches latents" in err
    assert "mar cache-latents" in err
    assert not (tmp_path / "run").exists()
