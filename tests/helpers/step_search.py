"""A small model and a schedule for the tests of the search for diffusion steps."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from runtime.generator import Generator
from runtime.sampling.settings import Sampling

SCHEDULE = Sampling(iterations=3, cfg_scale=2.0)


@pytest.fixture(scope="session")
def small_generator(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    """The golden model of 16 tokens on the CPU."""
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        yield generator
