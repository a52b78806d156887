"""The comparison of bits, and the process that generates the images."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.numerics.determinism import Setting, compare, measure_determinism, run_probe
from runtime.errors import MarError


def arrays(**changed: Any) -> dict[str, Any]:
    usual = {
        "latents": np.ones((2, 1, 4, 4), np.float32),
        "images": np.full((2, 4, 4, 1), 200, np.uint8),
        "order": np.arange(8),
        "noise": np.zeros((2, 8), np.float32),
    }
    return usual | changed


def test_the_same_arrays_have_the_same_bits() -> None:
    found = compare(arrays(), arrays())
    assert found == {"random_numbers": True, "latents": True, "distance": 0, "differ": 0, "levels": 0}


def test_a_number_that_differs_in_its_sign_alone_has_other_bits() -> None:
    found = compare(arrays(noise=-np.zeros((2, 8), np.float32)), arrays())
    assert (found["random_numbers"], found["latents"]) == (False, True)


def test_pixels_that_differ_are_counted() -> None:
    latents, images = np.ones((2, 1, 4, 4), np.float32), np.full((2, 4, 4, 1), 200, np.uint8)
    latents[0, 0, 0, 0], images[0, 0, 0, 0] = 1.5, 203
    found = compare(arrays(latents=latents, images=images), arrays())
    assert not found["latents"]
    assert found["distance"] == pytest.approx(0.5 / 32**0.5)
    assert (found["differ"], found["levels"]) == (1 / 32, 3)


def test_settings_are_compared_with_the_baseline_and_failures_are_told(
    pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = [
        Setting("baseline", "1 thread"),
        Setting("repetition", "again"),
        Setting("batch", "batches of 1", ("--batch", "1")),
        Setting("threads", "none", ("--threads", "0")),
    ]
    baseline, again, alone, failed = measure_determinism({"fp32": pixel_artifact}, settings, tmp_path)
    assert baseline["latents"]
    assert again["latents"]
    assert alone["random_numbers"]
    assert alone["distance"] < 1e-4
    assert "threads" in failed["failed"]
    assert "latents" not in failed


def test_a_probe_that_fails_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(MarError, match=r"^again ended with 1: .*") as error:
        run_probe(tmp_path / "nothing", Setting("repetition", "again"), tmp_path)
    assert "\n" not in str(error.value)
