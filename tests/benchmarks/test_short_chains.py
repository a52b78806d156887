"""The distances of short chains, and their table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.short_chains import distances, short_chains_table


def test_the_distance_of_each_image_is_relative_to_its_own_latents() -> None:
    reference = np.array([[[[3.0, 4.0]]], [[[30.0, 40.0]]], [[[0.0, 1.0]]]], np.float32)
    off = np.array([[[[0.0, 0.5]]], [[[0.0, 10.0]]], [[[0.0, 0.0]]]], np.float32)
    assert distances(reference + off, reference) == pytest.approx({"median": 0.1, "largest": 0.2})


def test_the_report_becomes_a_table() -> None:
    rows = [{"sampler": "ddim", "steps": 8, "median": 0.25, "largest": 0.5}]
    report = {"processor": "a CPU", "commit": "abc", "preset": "fast", "images": 20, "start": 980, "rows": rows}
    others = {"reference": {"sampler": "dpm++2m", "steps": 400}, "another_seed": {"median": 1.0, "largest": 2.0}}
    assert short_chains_table({**report, **others}).splitlines() == [
        "a CPU, commit abc. 20 images in one iteration without guidance, chains from t = 980: the relative L2 distance "
        "of their latents from those by dpm++2m, 400 steps.",
        "",
        "| sampler | steps | median | largest |",
        "|---|---|---|---|",
        "| ddim | 8 | 0.250 | 0.500 |",
        "",
        "Images of another seed are 1.00 away (largest 2.00).",
    ]
