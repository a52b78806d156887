"""Images from a simulated GPU: the same as on the host, with and without graphs, and nothing left behind."""

from __future__ import annotations

import functools
import itertools
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.cost.predict import predicted_seconds
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.model.engine_spec import DEVICE
from runtime.requests.inpainting import Edit
from runtime.sampling.plan import Plan
from runtime.sampling.rng import seeded_noise, seeded_order
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt import TensorRTScript
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE, GoldenCase

REQUESTS: list[dict[str, Any]] = [
    {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0},
    {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 1.0},
    {"iterations": 16, "diffusion_steps": 2, "cfg_scale": 3.0, "cfg_interval": (0.2, 0.8)},
    {"iterations": 5, "diffusion_steps": 9, "last_diffusion_steps": 2, "sampler": "dpm++2m", "cfg_scale": 1.5},
    {"iterations": 1, "diffusion_steps": 3, "sampler": "ddim", "eta": 0.5},
    {"preset": "turbo"},
]
LABELS = [3, 0]


def load(path: pathlib.Path, **arguments: Any) -> Generator:
    return Generator.load(path, backend="tensorrt", **arguments)


@pytest.fixture
def gpu(built_artifacts: dict[str, pathlib.Path], tensorrt: TensorRTScript) -> Iterator[Generator]:
    with load(built_artifacts["small"]) as generator:
        yield generator


@pytest.fixture(scope="module")
def host(golden_artifacts: dict[str, pathlib.Path]) -> Generator:
    return Generator.load(golden_artifacts["small"], threads=1)


@pytest.fixture(scope="module")
def latents_of_the_host(host: Generator) -> Callable[[int, int, int], bytes]:
    """What the host generates for a number of LABELS with a seed and one of REQUESTS, each once."""

    @functools.cache
    def generated(count: int, seed: int, request: int) -> bytes:
        return host.generate(LABELS[:count], seed=seed, **REQUESTS[request]).latents.tobytes()

    return generated


@pytest.mark.usefixtures("tensorrt")
def test_a_golden_case_has_the_latents_of_the_published_code(
    built_artifacts: dict[str, pathlib.Path], golden_case: GoldenCase
) -> None:
    with load(built_artifacts[golden_case.model]) as generator:
        found = generator.generate(
            golden_case.labels.tolist(), order=golden_case.order, noise=golden_case.noise, **golden_case.settings
        )
    assert relative_l2(found.latents, golden_case.latents) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "calls"])
def test_an_image_is_the_one_of_the_host_whatever_was_generated_before(
    built_artifacts: dict[str, pathlib.Path],
    latents_of_the_host: Callable[[int, int, int], bytes],
    cuda: SimulatedCuda,
    tensorrt: TensorRTScript,
    cuda_graphs: bool,
    integrated: bool,
) -> None:
    """More forms of plans than are kept, each twice: first captured, or captured again, then replayed."""
    cuda.attributes[18] = int(integrated)
    with load(built_artifacts["small"], cuda_graphs=cuda_graphs) as generator:
        for count in (1, 2):
            for number, request in enumerate(REQUESTS):
                for seed in (count - 1, count):
                    found = generator.generate(LABELS[:count], seed=seed, **request).latents
                    assert found.tobytes() == latents_of_the_host(count, seed, number)
    assert cuda.leaks == []
    assert ("cuGraphLaunch" in cuda.history) is cuda_graphs


QUICK: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}


def same(found: Generator, expected: Generator, labels: list[int], **request: Any) -> bool:
    """Whether both generate the same latents, to the last bit."""
    return found.generate(labels, **request).latents.tobytes() == expected.generate(labels, **request).latents.tobytes()


def test_the_values_of_a_request_are_not_part_of_a_graph(gpu: Generator, host: Generator, cuda: SimulatedCuda) -> None:
    gpu.generate([3], **QUICK)
    captured = cuda.history.count("cuStreamBeginCapture_v2")
    assert captured > 0
    for change in (
        {"seed": 5},
        {"cfg_scale": 3.5, "cfg_schedule": "linear"},
        {"temperature": 0.5},
        {"sampler": "dpm++2m"},
        {"token_order": "raster"},
    ):
        launched = cuda.history.count("cuGraphLaunch")
        assert same(gpu, host, [1], **{**QUICK, **change}), change
        assert cuda.history.count("cuGraphLaunch") == launched + 4  # a pass and a chain in each iteration
    assert cuda.history.count("cuStreamBeginCapture_v2") == captured
    assert same(gpu, host, [1], **{**QUICK, "cfg_scale": 1.0})  # half the rows: another plan shape
    assert cuda.history.count("cuStreamBeginCapture_v2") > captured


def test_chains_of_one_size_share_a_graph(gpu: Generator, cuda: SimulatedCuda) -> None:
    plan = gpu.generate([0], iterations=16, diffusion_steps=2, cfg_scale=2.0).plan
    assert {iteration.count for iteration in plan.iterations} == {1}
    assert cuda.history.count("cuStreamBeginCapture_v2") == 16 + 1


def test_the_least_recently_used_plan_shape_is_dropped(gpu: Generator, cuda: SimulatedCuda) -> None:
    gpu.engines.conditioning(
        z=np.zeros((1, gpu.manifest.model.decoder_embed_dim), np.float32), timesteps=np.ones(1, "f4")
    )

    def held() -> tuple[int, ...]:
        """Pieces of memory and their bytes, graphs and execution contexts."""
        kinds = list(cuda.handles.values())
        size = sum(len(content) for content, _ in cuda.memory.values())
        return len(cuda.memory), size, kinds.count("executable"), kinds.count("execution context")

    def newly_captured(iterations: int) -> bool:
        """Whether generating with this number of iterations captures new graphs."""
        before = cuda.history.count("cuStreamBeginCapture_v2")
        gpu.generate([0], iterations=iterations, diffusion_steps=2, cfg_scale=2.0)
        return cuda.history.count("cuStreamBeginCapture_v2") > before

    steps = [held()]
    for iterations in (1, 2, 3, 4):
        assert newly_captured(iterations)
        steps.append(held())
    of_shape = [tuple(np.subtract(after, before)) for before, after in itertools.pairwise(steps)]
    assert all(min(sizes) > 0 for sizes in of_shape)
    assert not newly_captured(1)
    assert held() == steps[-1]
    assert newly_captured(5)  # in place of 2
    of_fifth = np.subtract(held(), np.subtract(steps[-1], of_shape[1]))
    assert min(of_fifth) > 0
    assert not any(newly_captured(iterations) for iterations in (1, 3, 4, 5))
    assert newly_captured(2)  # in place of 1
    assert held() == tuple(np.add(np.subtract(steps[-1], of_shape[0]), of_fifth))


@pytest.mark.parametrize("batch", [1, 2])
def test_an_edit_is_the_one_of_the_host(gpu: Generator, host: Generator, batch: int) -> None:
    config = host.manifest.model
    side = config.img_size // config.vae_stride
    known = np.random.default_rng(4).normal(size=(config.vae_embed_dim, side, side))
    mask = np.zeros((config.grid, config.grid), bool)
    mask[1:3, :2] = True
    edit = Edit(known.astype(np.float32), mask)
    for seed in range(2):
        assert same(gpu, host, [2, 5][:batch], seed=seed, edit=edit, **QUICK)
        assert same(gpu, host, [2, 5][:batch], seed=seed, **QUICK)  # what was known is gone


def test_a_given_order_and_noise_are_used(gpu: Generator, host: Generator) -> None:
    config = host.manifest.model
    order = seeded_order(11, range(2), config, "random")
    noise = seeded_noise(12, range(2), 2, config)
    assert same(gpu, host, [0, 1], order=order, noise=noise, **QUICK)
    by_order = gpu.generate([0, 1], order=order, **QUICK).latents
    assert by_order.tobytes() != gpu.generate([0, 1], order=order, noise=noise, **QUICK).latents.tobytes()
    assert by_order.tobytes() != gpu.generate([0, 1], **QUICK).latents.tobytes()


def test_progress_is_called_after_every_iteration(gpu: Generator, cuda: SimulatedCuda) -> None:
    seen = []

    def progress(done: int, of: int) -> None:
        assert not any(cuda.queues.values()), "the iteration is still to run"
        seen.append((done, of))

    gpu.generate([0], progress=progress, **{**QUICK, "iterations": 3})
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_after_each_iteration_the_known_tokens_are_those_of_the_host(gpu: Generator, host: Generator) -> None:
    def seen(generator: Generator) -> list[NDArray[np.float32]]:
        tokens_after: list[NDArray[np.float32]] = []
        loop = generator.loop

        def watched(plan: Plan, *arrays: Any) -> NDArray[np.float32]:
            def after_iteration(done: int, total: int, tokens: Callable[[], NDArray[np.float32]]) -> None:
                last = plan.iterations[done - 1]
                tokens_after.append(tokens()[: last.known + last.count].copy())

            return loop(plan, *arrays[:-1], after_iteration)

        Generator(generator.manifest, generator.engines, "watched", loop=watched).generate([2, 5], seed=1, **QUICK)
        return tokens_after

    pairs = list(zip(seen(gpu), seen(host), strict=True))
    assert len(pairs) > 1
    for on_gpu, on_host in pairs:
        assert relative_l2(on_gpu, on_host) <= GOLDEN_TOLERANCE


def test_without_progress_the_host_waits_only_at_the_end(gpu: Generator, cuda: SimulatedCuda) -> None:
    gpu.generate([0], **QUICK)
    before = cuda.history.count("cuStreamSynchronize")
    gpu.generate([0], **QUICK)
    assert cuda.history.count("cuStreamSynchronize") == before + 1


def test_an_interrupt_between_iterations_does_not_change_later_images(gpu: Generator, host: Generator) -> None:
    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.generate([0], progress=interrupt, **QUICK)
    assert same(gpu, host, [4], **QUICK)


def test_latents_that_are_not_finite_are_an_error(gpu: Generator, host: Generator, tensorrt: TensorRTScript) -> None:
    tensorrt.infinite = True
    with pytest.raises(BackendError, match="values that are not finite"):
        gpu.generate([0], **QUICK)
    tensorrt.infinite = False
    assert same(gpu, host, [0], **QUICK)


CLOSED = "an engine was used after its generator was closed"


def test_a_closed_generator_refuses_calls_and_can_be_closed_again(
    built_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    generator = load(built_artifacts["small"])
    generator.generate([0], **QUICK)
    z = np.zeros((1, generator.manifest.model.decoder_embed_dim), np.float32)
    generator.close()
    assert cuda.leaks == []  # though the generator is still there
    calls: dict[str, Callable[[], Any]] = {
        "this generator was closed; load its artifact again": lambda: generator.generate([0], **QUICK),
        CLOSED: lambda: generator.engines.conditioning(z=z, timesteps=np.ones(1, np.float32)),
    }
    for message, call in calls.items():
        with pytest.raises(BackendError) as caught:
            call()
        assert str(caught.value) == message
    before = len(cuda.history)
    generator.close()
    assert cuda.history[before:] == []


def test_a_generator_may_be_loaded_used_and_closed_by_different_threads(
    built_artifacts: dict[str, pathlib.Path], host: Generator, cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    def in_a_thread(work: Callable[[], Any]) -> Any:
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join()
        return results[0]

    generator = in_a_thread(lambda: load(built_artifacts["small"]))
    expected = host.generate([0], **QUICK).latents
    for _ in range(2):
        found: NDArray[np.float32] = in_a_thread(lambda: generator.generate([0], **QUICK).latents)
        assert found.tobytes() == expected.tobytes()
    z = np.ones((1, generator.manifest.model.decoder_embed_dim), np.float32)
    timesteps = np.ones(1, np.float32)
    expected_modulation = host.engines.conditioning(z=z, timesteps=timesteps)[0]
    modulation = in_a_thread(lambda: generator.engines.conditioning(z=z, timesteps=timesteps)[0])
    assert modulation.tobytes() == expected_modulation.tobytes()
    in_a_thread(generator.close)
    assert cuda.leaks == []


def test_every_generator_has_its_own_stream(
    built_artifacts: dict[str, pathlib.Path], host: Generator, cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    with load(built_artifacts["small"]) as first, load(built_artifacts["small"]) as second:
        streams = []
        for generator in (first, second):
            tensorrt.history.clear()
            assert same(generator, host, [1], **QUICK)
            streams.append({stream for _, stream in tensorrt.calls("execute_async_v3")})
        assert all(len(each) == 1 for each in streams)
        assert not streams[0] & streams[1]
        assert 0 not in streams[0] | streams[1]  # the default one
        first.close()
        assert same(second, host, [2], **QUICK)
    assert cuda.leaks == []


@pytest.mark.parametrize("batch", [1, 2])
def test_the_predicted_time_of_a_plan_is_measured_with_the_loop(
    gpu: Generator, tensorrt: TensorRTScript, cuda: SimulatedCuda, batch: int
) -> None:
    plan = gpu.plan(**QUICK)
    seconds = predicted_seconds(gpu, plan, batch)
    assert [list(each) for each in seconds] == [[DEVICE]] * 2
    assert all(each[DEVICE] > 0 for each in seconds)
    # What it drew stands ready for images: nothing was called in another way, or at other sizes.
    captured, contexts = cuda.history.count("cuStreamBeginCapture_v2"), len(tensorrt.calls("create_execution_context"))
    gpu.generate([0] * batch, **QUICK)
    assert cuda.history.count("cuStreamBeginCapture_v2") == captured
    assert len(tensorrt.calls("create_execution_context")) == contexts


def test_an_engine_reads_modulation_at_aligned_addresses_for_any_number_of_rows(
    built_artifacts: dict[str, pathlib.Path], cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    """A row of it is no multiple of 256 bytes in this model, and without guidance rows may be odd in number."""
    path = built_artifacts["pixel"]
    with load(path) as generator, Generator.load(path, threads=1) as expected:
        assert 4 * generator.manifest.model.modulation_channels % 256
        request: dict[str, Any] = {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 1.0}
        assert any(iteration.count % 2 for iteration in generator.plan(**request).iterations)
        assert same(generator, expected, [1], **request)


@pytest.mark.parametrize("sizes", [8, 9])
def test_an_engine_called_from_the_host_keeps_the_sizes_used_last(
    gpu: Generator, host: Generator, tensorrt: TensorRTScript, sizes: int
) -> None:
    rng = np.random.default_rng(0)
    contexts = []
    for size in [*range(1, sizes + 1), 1]:
        z = rng.normal(size=(size, host.manifest.model.decoder_embed_dim)).astype(np.float32)
        timesteps = np.full(1, size, np.float32)
        found, expected = (each.engines.conditioning(z=z, timesteps=timesteps)[0] for each in (gpu, host))
        assert found.tobytes() == expected.tobytes()
        contexts.append(len(tensorrt.calls("create_execution_context")))
    assert contexts[-1] - contexts[-2] == (0 if sizes == 8 else 1)


def test_an_output_stays_when_the_engine_is_called_again(gpu: Generator) -> None:
    z = np.ones((1, gpu.manifest.model.decoder_embed_dim), np.float32)
    first = gpu.engines.conditioning(z=z, timesteps=np.ones(1, np.float32))[0]
    kept = first.copy()
    second = gpu.engines.conditioning(z=z, timesteps=np.full(1, 900, np.float32))[0]
    assert (first == kept).all()
    assert not (first == second).all()


def test_shared_memory_is_not_copied(
    built_artifacts: dict[str, pathlib.Path], host: Generator, cuda: SimulatedCuda, tensorrt: TensorRTScript
) -> None:
    cuda.attributes[18] = 1
    with load(built_artifacts["small"]) as generator:
        assert same(generator, host, [1, 2], **QUICK)
        plan = generator.plan(**QUICK)
        predicted_seconds(generator, plan, 1)
    assert not {name for name in cuda.history if name.startswith(("cuMemcpyHtoD", "cuMemcpyDtoH"))}
    assert "cuMemHostGetDevicePointer_v2" in cuda.history
    assert cuda.leaks == []
