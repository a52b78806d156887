"""A check of all GPU backends of this machine: whether their images are correct, and how fast they are.

    python -m benchmarks.gpu_check --out out/gpu [--model mar_base] [--precision bf16] [--batch 1] [--preset exact]

First, every backend generates the golden cases, with CUDA graphs and without; the results must agree bit for bit. Then
models of the published sizes with random weights are timed against eager PyTorch under autocast: complete images, their
stages by CUDA events, and the rates that these reach beside those of the GPU. A backend that is not installed is
reported and skipped. OUT/gpu.json has the results so far at any time. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mar_export.onnx_export.mixed_precision import DTYPES
from mar_export.torch_backends.torch_gpu import torch_gpu_generator
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends.telemetry import import_library
from runtime.cost.operations import plan_costs
from runtime.distance import relative_l2
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.gpu.clock import StageClock
from runtime.gpu.cuda import Cuda
from runtime.gpu.current_gpu import current_gpu
from runtime.gpu.device_loop import GpuLoop
from runtime.provenance import commit
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, GoldenCase, golden_cases
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.checkpoints.random_weights import random_checkpoint
from training.models.reference_loop import sample

MODELS = ("mar_base", "mar_large", "mar_huge")
PRESETS = ("exact", "balanced", "fast", "turbo")
GUIDANCE = 2.9
CLASS = 207
STAGES = {"backbone": ("backbone",), "head": ("conditioning", "denoise")}
COPY_BYTES = 2**30
PRODUCT_SIZE = 8192


class Backends:
    """The backends that can run a checkpoint on this GPU, by name, with the artifacts that some of them need."""

    def __init__(self, work: pathlib.Path) -> None:
        self._work = work
        self._exported: dict[tuple[str, str, str], pathlib.Path] = {}
        self.openers = {"torch": self._torch, "onnxruntime": self._onnxruntime, "tensorrt": self._tensorrt}

    def incompatibility(self, name: str) -> str | None:
        """Return why a backend cannot run on this machine, or None if it can."""
        needs = {"torch": (), "onnxruntime": ("onnxscript", "onnxruntime"), "tensorrt": ("onnxscript", "tensorrt")}
        for module in needs[name]:
            try:
                import_library(module)
            except (ImportError, OSError) as error:
                return f"{module} does not load: {error}"
        return None

    def open(
        self, name: str, checkpoint: Checkpoint, precision: str, graphs: bool, plans: Sequence[Plan], batch: int
    ) -> Generator:
        """Open a generator for a checkpoint on a backend, with CUDA graphs or without."""
        return self.openers[name](checkpoint, precision, graphs, plans, batch)

    def _torch(self, checkpoint: Checkpoint, precision: str, graphs: bool, *_: Any) -> Generator:
        model = checkpoint.model
        manifest = Manifest(
            model.config, checkpoint.tokenizer, checkpoint.class_names, Sampling(), precision, {}, {}, {}, {}
        )
        return torch_gpu_generator(manifest, model, precision, cuda_graphs=graphs)

    def _onnxruntime(self, checkpoint: Checkpoint, precision: str, graphs: bool, *_: Any) -> Generator:
        artifact = self._artifact(checkpoint, precision)
        return Generator.load(artifact, backend="onnxruntime", device="cuda", cuda_graphs=graphs)

    def _tensorrt(
        self, checkpoint: Checkpoint, precision: str, graphs: bool, plans: Sequence[Plan], batch: int
    ) -> Generator:
        from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines
        from mar_export.tensorrt.engine_builder import TensorRTBuilder

        path = self._artifact(checkpoint, precision)
        builder = TensorRTBuilder("tensorrt", ())
        build_engines(Artifact(path), builder, plans, BuildOptions((1, 1, batch)), print)
        return Generator.load(path, backend="tensorrt", cuda_graphs=graphs)

    def _artifact(self, checkpoint: Checkpoint, precision: str) -> pathlib.Path:
        from mar_export.artifact.export import export_artifact

        # The golden models share a file name, and random weights have no hash.
        key = checkpoint.source, checkpoint.sha256, precision
        if key not in self._exported:
            path = self._work / str(len(self._exported))
            export_artifact(checkpoint, path, print, precision=precision)
            self._exported[key] = path
        return self._exported[key]


@dataclasses.dataclass(frozen=True)
class GpuCase:
    """What is timed.

    Attributes:
        checkpoint: The model.
        precision: The precision, a key of `mixed_precision.DTYPES`.
        backend: The backend, or `eager` for the published loop in PyTorch.
        preset: The name of the sampling preset.
        plan: The plan of the preset.
        batch: The number of images that are generated together.
    """

    checkpoint: Checkpoint
    precision: str
    backend: str
    preset: str
    plan: Plan
    batch: int


class Check:
    """The check: its results are written to a file as soon as they are there."""

    def __init__(self, out: pathlib.Path, backends: Backends, names: Sequence[str], repeats: int) -> None:
        self._file, self._backends, self._repeats = out / "gpu.json", backends, repeats
        self._cuda = Cuda()
        self._report: dict[str, Any] = {"about": about(), "reached": ceilings(self._cuda)}
        self._report |= {"skipped": {}, "golden": [], "times": []}
        for key in ("about", "reached"):
            print(", ".join(f"{name} {value}" for name, value in self._report[key].items()))
        self._names, self._due = [], 0
        for name in names:
            reason = backends.incompatibility(name)
            if reason is None:
                self._names.append(name)
            else:
                self._skip(name, reason)
        self._write()

    @property
    def wrong(self) -> bool:
        """Whether a golden case failed, or could not run although its backend is installed."""
        cases = self._report["golden"]
        return not cases or len(cases) < self._due or not all(case["right"] for case in cases)

    def golden(self, model: str) -> None:
        """Generate the golden cases of a model with every backend, with CUDA graphs and without."""
        folder, cases = GOLDEN / model, [case for case in golden_cases() if case.model == model]
        checkpoint = load_checkpoint(folder / "checkpoint-last.pth", folder / "meta.json")
        for name in self._names:
            self._due += len(cases)
            with self._skipping(f"golden cases of {model}, {name}"):
                graphs, calls = (self._generate(name, checkpoint, cases, graphs) for graphs in (True, False))
                for case, replayed, called in zip(cases, graphs, calls, strict=True):
                    distance = min(relative_l2(replayed, case.latents), 1e30)  # JSON has no infinity
                    same = replayed.tobytes() == called.tobytes()
                    row = {"backend": name, "case": str(case), "relative_l2": distance, "graphs_equal_calls": same}
                    self._report["golden"].append({**row, "right": same and distance <= GOLDEN_TOLERANCE})
                    print(
                        f"{name:12} {case!s:20} {distance:.1e}, {'the same' if same else 'NOT THE SAME'} without graphs"
                    )
        self._write()

    def times(self, model: str, precision: str, batches: Sequence[int], names: Sequence[str]) -> None:
        """Time one model in one precision: eager PyTorch, then every backend."""
        checkpoint = random_checkpoint(model)
        config = checkpoint.model.config
        settings = {name: {"preset": name, "cfg_scale": GUIDANCE} for name in names}
        plans = {name: plan_for(config, resolve_sampling(Sampling(), config, each)) for name, each in settings.items()}
        with self._skipping(f"{model} {precision}, eager"):
            checkpoint.model.cuda()
            for batch in batches:
                seconds = [eager_seconds(checkpoint, plans[names[0]], batch, precision) for _ in range(3)]
                case = GpuCase(checkpoint, precision, "eager", names[0], plans[names[0]], batch)
                self._add_time(case, seconds[1:], {})
        checkpoint.model.cpu()
        for name in self._names:
            release()
            with (
                self._skipping(f"{model} {precision}, {name}"),
                self._backends.open(name, checkpoint, precision, True, list(plans.values()), max(batches)) as generator,
            ):
                for batch in batches:
                    for preset in names:
                        seconds, stages = self._measure(generator, settings[preset], batch)
                        case = GpuCase(checkpoint, precision, name, preset, plans[preset], batch)
                        self._add_time(case, seconds, stages)
        release()

    def report(self) -> None:
        """Print every time, and its ratio to the time of eager PyTorch for the same batch."""
        print(f"\n{'model':10} {'':5} {'backend':12} {'preset':9} batch  ms an image     p10 to p90      speed")
        for row in self._report["times"]:
            same = ("model", "precision", "batch")
            eager = [
                other
                for other in self._report["times"]
                if other["backend"] == "eager" and all(other[key] == row[key] for key in same)
            ]
            low, median, high = (1e3 * row["seconds_an_image"][key] for key in ("p10", "median", "p90"))
            speed = f"{1e3 * eager[0]['seconds_an_image']['median'] / median:.2f}x" if eager else ""
            print(
                f"{row['model']:10} {row['precision']:5} {row['backend']:12} {row['preset']:9} {row['batch']:5} "
                f"{median:12.2f} {low:8.2f} {high:8.2f} {speed:>7}"
            )
        for what, reason in self._report["skipped"].items():
            print(f"skipped: {what}: {reason}")

    def _generate(
        self, name: str, checkpoint: Checkpoint, cases: Sequence[GoldenCase], graphs: bool
    ) -> list[np.ndarray]:
        config = checkpoint.model.config
        plans = [plan_for(config, resolve_sampling(Sampling(), config, case.settings)) for case in cases]
        batch = max(len(case.labels) for case in cases)
        with self._backends.open(name, checkpoint, "fp32", graphs, plans, batch) as generator:
            return [
                generator.generate(case.labels.tolist(), order=case.order, noise=case.noise, **case.settings).latents
                for case in cases
            ]

    def _measure(
        self, generator: Generator, settings: dict[str, Any], batch: int
    ) -> tuple[list[float], dict[str, float]]:
        """Measure the seconds of complete requests, and of the stages of one by CUDA events."""
        labels, seconds, loop = [CLASS] * batch, [], generator.loop
        assert isinstance(loop, GpuLoop)
        for turn in range(self._repeats + 2):  # the first captures, the second is the first to replay
            started = time.perf_counter()
            generator.generate(labels, seed=turn, **settings)
            seconds.append(time.perf_counter() - started)
        loop.clock = clock = StageClock(loop.cuda)
        generator.generate(labels, **settings)
        loop.clock = None
        return seconds[2:], clock.seconds()

    def _add_time(self, case: GpuCase, seconds: Sequence[float], stages: dict[str, float]) -> None:
        """Add the times of a case to the report, with the rates that its stages reach."""
        config, batch = case.checkpoint.model.config, case.batch
        costs = plan_costs(config, case.plan, batch, weight_bytes=DTYPES[case.precision].itemsize)
        reached = {}
        for stage, engines in STAGES.items():
            if stage in stages:
                operations, read = (sum(getattr(costs[e], what) for e in engines) for what in ("operations", "bytes"))
                reached[stage] = {
                    "tflops": operations / stages[stage] / 1e12,
                    "gb_per_second": read / stages[stage] / 1e9,
                }
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]) / batch
        self._report["times"].append(
            {
                "model": case.checkpoint.source,
                "precision": case.precision,
                "backend": case.backend,
                "preset": case.preset,
                "batch": batch,
                "seconds_an_image": {"median": median, "p10": p10, "p90": p90},
                "stages_seconds": stages,
                "stages_reached": reached,
                "memory_bytes": self._cuda.memory_used(),
            }
        )
        stage_times = ", ".join(f"{stage} {1e3 * time_ / batch:.1f}" for stage, time_ in stages.items())
        print(
            f"{case.checkpoint.source} {case.precision} {case.backend} {case.preset} batch {batch}: "
            f"{1e3 * median:.2f} ms an image ({stage_times})"
        )
        self._write()

    @contextlib.contextmanager
    def _skipping(self, what: str) -> Iterator[None]:
        """Continue after a failure of the context, and record the reason."""
        try:
            yield
        except (MarError, RuntimeError, ImportError) as error:  # RuntimeError: PyTorch raises it
            self._skip(what, f"{type(error).__name__}: {error}")
            self._write()

    def _skip(self, what: str, reason: str) -> None:
        self._report["skipped"][what] = reason.splitlines()[0]
        print(f"skipped: {what}: {reason}", file=sys.stderr)

    def _write(self) -> None:
        write_json(self._file, self._report)


def about() -> dict[str, Any]:
    """Return the GPU, the versions of the libraries, and the commit."""
    gpu = current_gpu()
    versions = {}
    for name in ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "gpu": gpu.name,
        "architecture": gpu.architecture,
        "memory_gib": round(gpu.memory_bytes / 2**30, 1),
        "driver_cuda": gpu.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        **versions,
    }


def ceilings(cuda: Cuda) -> dict[str, float]:
    """Measure the rates of this GPU: bytes read and written by a large copy, operations of a large matrix product."""
    rates = {}
    with contextlib.ExitStack() as owner:
        source, target = (cuda.memory(COPY_BYTES, owner) for _ in range(2))
        rates["copy_gb_per_second"] = (
            2 * COPY_BYTES / seconds_of(cuda, lambda: cuda.copy(source, target, COPY_BYTES)) / 1e9
        )
    stream = torch.cuda.ExternalStream(cuda.stream)
    for precision, dtype in DTYPES.items():
        a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda", dtype=dtype) for _ in range(2))
        made = torch.empty_like(a)
        torch.cuda.synchronize()

        def product(a: torch.Tensor = a, b: torch.Tensor = b, made: torch.Tensor = made) -> None:
            with torch.cuda.stream(stream):
                torch.matmul(a, b, out=made)

        rates[f"{precision}_tflops"] = 2 * PRODUCT_SIZE**3 / seconds_of(cuda, product) / 1e12
    return {name: round(value, 1) for name, value in rates.items()}


def seconds_of(cuda: Cuda, work: Callable[[], None]) -> float:
    """Return the median seconds of `work` on the stream, by CUDA events."""
    clock, seconds = StageClock(cuda), []
    for turn in range(12):
        clock.mark("before")
        work()
        clock.mark("work")
        cuda.synchronize()
        time_ = clock.seconds()["work"]
        if turn >= 2:
            seconds.append(time_)
    return float(np.median(seconds))


def eager_seconds(checkpoint: Checkpoint, plan: Plan, batch: int, precision: str) -> float:
    """Time the published loop as its authors run it: on the GPU, under autocast."""
    model = checkpoint.model
    order = seeded_order(0, range(batch), model.config)
    noise = seeded_noise(0, range(batch), plan.diffusion_steps, model.config)
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast("cuda", DTYPES[precision], enabled=precision != "fp32"):
        sample(model, np.full(batch, CLASS), plan, order, noise)
    return time.perf_counter() - started


def release() -> None:
    """Release the memory that PyTorch holds on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Run the check; the exit status is not zero if a golden case is wrong."""
    backends = ("torch", "onnxruntime", "tensorrt")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--model", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--precision", nargs="+", default=("bf16", "fp16", "fp32"), choices=tuple(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--preset", nargs="+", default=("exact", "fast"), choices=PRESETS)
    parser.add_argument("--backend", nargs="+", default=backends, choices=backends)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    try:
        current_gpu()
    except MarError as error:
        sys.exit(f"gpu-check: {error}")
    if not torch.cuda.is_available():
        sys.exit(f"gpu-check: torch {torch.__version__} finds no GPU; install one built for CUDA")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        check = Check(arguments.out, Backends(pathlib.Path(work)), arguments.backend, arguments.repeats)
        for model in ("small", "patch2"):
            check.golden(model)
        for model in arguments.model:
            for precision in arguments.precision:
                check.times(model, precision, arguments.batch, arguments.preset)
        check.report()
    if check.wrong:
        sys.exit("gpu-check: not every golden case is right")


if __name__ == "__main__":
    main()
