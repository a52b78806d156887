"""Pictures from a simulated GPU: the same as on the host, with and without graphs, and nothing left behind."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from runtime.generator import Generator
from tests.conftest import relative_l2
from tests.golden_cases import GOLDEN_TOLERANCE, GoldenCase
from tests.runtime.gpu.simulated_cuda import SimulatedCuda
from tests.runtime.gpu.simulated_tensorrt import Simulation

REQUESTS: list[dict[str, Any]] = [
    {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0},
    {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 1.0},
    {"iterations": 16, "diffusion_steps": 2, "cfg_scale": 3.0, "cfg_interval": (0.2, 0.8)},
    {"iterations": 5, "diffusion_steps": 9, "last_diffusion_steps": 2, "sampler": "dpm++2m", "cfg_scale": 1.5},
    {"iterations": 1, "diffusion_steps": 3, "sampler": "ddim", "eta": 0.5},
    {"preset": "turbo"},
]


def load(path: pathlib.Path, **arguments: Any) -> Generator:
    return Generator.load(path, backend="tensorrt", **arguments)


@pytest.fixture
def host(golden_artifacts: dict[str, pathlib.Path]) -> Generator:
    return Generator.load(golden_artifacts["small"], threads=1)


@pytest.mark.usefixtures("tensorrt")
def test_a_golden_case_comes_out_as_the_published_code_has_it(
    built_artifacts: dict[str, pathlib.Path], golden_case: GoldenCase
) -> None:
    with load(built_artifacts[golden_case.model]) as generator:
        found = generator.generate(
            golden_case.labels.tolist(), order=golden_case.order, noise=golden_case.noise, **golden_case.settings
        )
    assert relative_l2(found.latents, golden_case.latents) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_a_picture_is_that_of_the_host_whatever_was_drawn_before(
    built_artifacts: dict[str, pathlib.Path],
    host: Generator,
    cuda: SimulatedCuda,
    tensorrt: Simulation,
    cuda_graphs: bool,
    integrated: bool,
) -> None:
    """More forms of plans than are kept, each twice: first captured, or captured again, then replayed."""
    cuda.attributes[18] = int(integrated)
    with load(built_artifacts["small"], cuda_graphs=cuda_graphs) as generator:
        for seed in range(2):
            for request in REQUESTS:
                labels = [3, 0, 5][: 1 + seed]
                for turn in range(2):
                    asked = {"seed": seed + turn, **request}
                    expected = host.generate(labels, **asked).latents
                    assert generator.generate(labels, **asked).latents.tobytes() == expected.tobytes()
    assert cuda.leaks == []
    assert ("cuGraphLaunch" in cuda.told) is cuda_graphs
