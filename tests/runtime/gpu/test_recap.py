"""ReCAP on a simulated GPU: keys and values stay there, with and without graphs."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from runtime.generator import Generator
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt import TensorRTScript
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE
from tests.helpers.recap_cases import CASES, EDGES, SHORT, recap_case
from tests.helpers.simulated_gpu import build, left_on

LABELS = [3, 0]


@pytest.fixture(scope="module")
def built(recap_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = pathlib.Path(shutil.copytree(recap_artifact, tmp_path_factory.mktemp("built") / "artifact"))
    build(folder, requests=[{**SHORT, **edge} for edge in EDGES.values()])
    return folder


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("file", CASES)
def test_a_golden_case_has_the_latents_of_the_released_sampler(built: pathlib.Path, file: str) -> None:
    case = recap_case(file)
    with Generator.load(built, backend="tensorrt") as generator:
        found = generator.generate(**case.request())
    assert relative_l2(found.latents, case.arrays["latents_float64"]) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_an_image_is_the_one_of_the_host_to_the_bit(
    built: pathlib.Path, cuda: SimulatedCuda, tensorrt: TensorRTScript, cuda_graphs: bool
) -> None:
    """More forms of plans than are kept, captured and then replayed with other values, and plans without groups."""
    with (
        Generator.load(built, threads=1) as host,
        Generator.load(built, backend="tensorrt", cuda_graphs=cuda_graphs) as gpu,
    ):
        for settings in (*EDGES.values(), {"recap_local_iterations": 0}):
            request = {**SHORT, **settings}
            for seed in (1, 2):
                found, expected = (each.generate(LABELS, seed=seed, **request).latents for each in (gpu, host))
                assert found.tobytes() == expected.tobytes(), settings
    assert left_on(cuda) == []
    assert ("cuGraphLaunch" in cuda.history) is cuda_graphs
