"""What the libraries make of exported graphs: every engine and every operator, in every precision, on every backend.

    python -m benchmarks.compatibility engines operators tensorrt-rtx

It exports a small model in every precision into `out/compatibility`, unless that is there, and writes the named parts
of `runtime/compatibility.json`, which `mar doctor` reads, and always the pins. `make benchmark-pages` renders
`docs/compatibility.md` from it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.operator_runs import operators, run_operator
from calibration.quantization.collect import collect
from calibration.quantization.quantize import QuantizationConfig, quantize
from calibration.quantization.statistics import ActivationStatistics
from mar_export.artifact.export import export_artifact
from mar_export.onnx_export.example_inputs import Sizes, example_inputs, parity_sizes
from mar_export.onnx_export.float32_emulation import save_emulation
from mar_export.onnx_export.mixed_precision import DTYPES
from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from mar_export.tensorrt.engine_builder import TensorRTBuilder
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FLOAT_PRECISIONS, QUANTIZED_PRECISIONS
from runtime.backends import open_backend
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.compatibility import FACTS
from runtime.distance import relative_l2
from runtime.errors import BackendError, MarError
from runtime.model.engine_spec import BACKBONE, ENGINES, Engine
from runtime.provenance import commit, processor_name
from runtime.sampling.settings import Sampling
from runtime.storage.files import write_json
from runtime.storage.structured_files import FaultReport, parse_toml, read_json_object
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import load_checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARTIFACTS = pathlib.Path("out", "compatibility")
BACKENDS = ("onnxruntime", "openvino")
ARCHITECTURES = ("sm_86", "sm_89", "sm_120")
_SAMPLING = Sampling(iterations=4, diffusion_steps=5, cfg_scale=2.0)

Artifacts = Mapping[str, Artifact]


def export_all(folder: pathlib.Path) -> Artifacts:
    """Return the small golden model in every precision, exported into `folder` where it is not there yet."""
    for precision in FLOAT_PRECISIONS:
        if not (folder / precision).exists():
            checkpoint = load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json")
            export_artifact(checkpoint, folder / precision, print, precision=precision)
    exact = Artifact(folder / "fp32")
    for precision in QUANTIZED_PRECISIONS:
        if not (folder / precision).exists():
            with tempfile.TemporaryDirectory() as work:
                file = pathlib.Path(work, "statistics.npz")
                collect(exact, 10, file, _SAMPLING, 1, lambda done: None)
                config = QuantizationConfig(precision, engines=ENGINES, sampling=_SAMPLING, target_sqnr=0)
                quantize(exact, ActivationStatistics.load(file), folder / precision, config, print)
    return {precision: Artifact(folder / precision) for precision in (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)}


def engine_results(artifacts: Artifacts) -> list[dict[str, Any]]:
    """Return how far each engine is on each backend from products of the same numbers in float32, or the refusal.

    `empty` is the same for calls without known tokens, without remaining ones, and without both.
    """
    results = []
    for precision, artifact in artifacts.items():
        for name in ENGINES:
            reference = _reference(artifact, name, precision)
            for backend in BACKENDS:
                found: dict[str, Any] = {"precision": precision, "engine": name, "backend": backend}
                try:
                    found |= _distances(open_backend(backend, None, 1).load(artifact, name), reference, artifact, name)
                except BackendError as error:
                    found["refused"] = str(error).replace(f"{artifact.path}/", "")[:300]
                results.append(found)
                print(found)
    return results


def _reference(artifact: Artifact, name: str, precision: str) -> Engine:
    """The engine with every product computed in float32, of the numbers as the graph rounds them."""
    file, spec, library = artifact.engine_file(name), artifact.manifest.specs[name], OnnxRuntime("onnxruntime", 1)
    if precision in QUANTIZED_PRECISIONS:
        return library.load_graph(file, spec, "fp8")  # for which ONNX Runtime keeps Q/DQ pairs as they are
    if precision == "fp32":
        return library.load_graph(file, spec)
    with tempfile.TemporaryDirectory() as work:
        save_emulation(file, pathlib.Path(work, file.name), DTYPES[precision])
        return library.load_graph(pathlib.Path(work, file.name), spec)


def _distances(engine: Engine, reference: Engine, artifact: Artifact, name: str) -> dict[str, float]:
    spec, config = artifact.manifest.specs[name], artifact.manifest.model

    def worst(cases: list[Sizes]) -> float:
        found = []
        for seed, sizes in enumerate(cases):
            inputs = example_inputs(spec, config, sizes, seed)
            found += [relative_l2(*pair) for pair in zip(engine(**inputs), reference(**inputs), strict=True)]
        return max(found)

    distances = {"distance": worst(list(parity_sizes(spec, config)))}
    if name == BACKBONE:
        lengths = [(0, 3), (config.tokens - 5, 5), (0, config.tokens)]
        distances["empty"] = worst(
            [{"B": 2, "GB": 4, "V": known, "K": count, "R": config.tokens - known - count} for known, count in lengths]
        )
    return distances


def operator_results(artifacts: Artifacts) -> list[dict[str, Any]]:
    """Return for each operator and dtypes: the precisions whose graphs have it, and how each backend runs it alone."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for precision, artifact in artifacts.items():
        for name in ENGINES:
            spec, config = artifact.manifest.specs[name], artifact.manifest.model
            inputs = example_inputs(spec, config, parity_sizes(spec, config)[-1], seed=0)
            for operator in operators(artifact.engine_file(name), inputs):
                key = (operator.name, operator.dtypes)
                if key not in results:
                    results[key] = {"operator": key[0], "dtypes": key[1], "precisions": [], **run_operator(operator)}
                    print(results[key])
                if precision not in results[key]["precisions"]:
                    results[key]["precisions"].append(precision)
    return [results[key] for key in sorted(results)]


def tensorrt_rtx_results(artifacts: Artifacts) -> list[dict[str, Any]]:
    """Return for each precision and architecture whether TensorRT-RTX compiles all engines, or the refusal."""
    results = []
    for precision, artifact in artifacts.items():
        for architecture in ARCHITECTURES:
            found: dict[str, Any] = {"precision": precision, "architecture": architecture}
            with tempfile.TemporaryDirectory() as work:
                copy = Artifact(pathlib.Path(shutil.copytree(artifact.path, pathlib.Path(work, "artifact"))))
                plans = plans_to_build(copy, {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0})
                try:
                    builder = TensorRTBuilder("tensorrt-rtx", [architecture])
                    build_engines(copy, builder, plans, BuildOptions((1, 1, 2)), lambda _: None)
                except MarError as error:
                    found["refused"] = str(error).replace(str(copy.path), "the artifact")[:300]
            results.append(found)
            print(found)
    return results


def pins() -> dict[str, dict[str, str | None]]:
    """Return for each direct dependency the oldest version of pyproject.toml and the one of constraints.txt."""
    project = parse_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    newest = {canonicalize_name(each.name): str(each.specifier)[2:] for each in map(Requirement, lines)}
    found: dict[str, dict[str, str | None]] = {}
    for extra, requirements in groups.items():
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            oldest = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
            if oldest and extra not in ("dev", "docs", "release"):
                found[name] = {"oldest": oldest[0], "newest": newest.get(name)}
    return dict(sorted(found.items()))


_PARTS: dict[str, Callable[[Artifacts], list[dict[str, Any]]]] = {
    "engines": engine_results,
    "operators": operator_results,
    "tensorrt-rtx": tensorrt_rtx_results,
}


def main(parts: list[str]) -> None:
    """Measure the named parts, and write them into the file of the facts with the pins of now."""
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        sys.exit(f"benchmarks.compatibility has {', '.join(_PARTS)}, not {unknown[0]}")
    found = dict(read_json_object(FACTS, FaultReport(MarError, "remove it"))) if FACTS.exists() else {}
    artifacts = export_all(ARTIFACTS) if parts else {}
    for part in parts:
        found[part.replace("-", "_")] = _PARTS[part](artifacts)
        packages = ("numpy", "onnx", "onnxruntime", "openvino", "tensorrt_rtx_cu12", "torch")
        found.setdefault("about", {})[part] = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "commit": commit(),
            "processor": processor_name(),
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        }
    write_json(FACTS, {**found, "pins": pins()})


if __name__ == "__main__":
    main(sys.argv[1:])
