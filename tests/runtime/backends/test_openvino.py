"""OpenVINO on a CPU gives the images of ONNX Runtime, for every variant of the model, and fails in one line."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.backends import open_backend
from runtime.errors import BackendError, IntegrityError
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, EngineSpec
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN_TOLERANCE, GoldenCase
from tests.helpers.variant_models import variant_artifact

FORMS = ("causal", "raster vq", "causal vq")
REQUEST: dict[str, Any] = {"iterations": 5, "cfg_scale": 2.0, "diffusion_steps": "ddim5"}


def load(artifact: pathlib.Path, backend: str = "openvino") -> Generator:
    return Generator.load(artifact, backend=backend, threads=1)


@pytest.fixture(scope="module")
def generators(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[dict[str, Generator]]:
    loaded = {model: load(path) for model, path in golden_artifacts.items()}
    yield loaded
    for generator in loaded.values():
        generator.close()


def test_a_golden_case_has_the_latents_of_the_published_code(
    generators: dict[str, Generator], golden_case: GoldenCase
) -> None:
    """Which it does not where OpenVINO computes in bf16, as it would by itself on processors that can."""
    found = generators[golden_case.model].generate(
        golden_case.labels.tolist(), order=golden_case.order, noise=golden_case.noise, **golden_case.settings
    )
    assert relative_l2(found.latents, golden_case.latents) <= GOLDEN_TOLERANCE


def test_images_are_the_same_in_a_batch_and_when_repeated(generators: dict[str, Generator]) -> None:
    """Orders of many images are no contiguous array, which an engine is given a copy of."""
    labels = [0, 5, 2, 3, 1]
    together = generators["small"].generate(labels, **REQUEST).latents
    again = generators["small"].generate(labels, **REQUEST).latents
    assert np.array_equal(together, again)
    alone = [generators["small"].generate([label], index=[i], **REQUEST).latents for i, label in enumerate(labels)]
    assert relative_l2(np.concatenate(alone), together) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_another_variant_gives_the_images_of_onnx_runtime(
    form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    artifact, latents = variant_artifact(form, tmp_path_factory), []
    for backend in ("onnxruntime", "openvino"):
        with load(artifact, backend) as generator:
            latents.append(generator.generate([0, 2, 1], cfg_scale=1.5).latents)
    assert relative_l2(latents[1], latents[0]) <= GOLDEN_TOLERANCE


def test_an_output_is_not_overwritten_by_the_next_call(generators: dict[str, Generator]) -> None:
    engines, config = generators["small"].engines, generators["small"].manifest.model
    z = np.ones((2, config.decoder_embed_dim), np.float32)
    (first,) = engines.conditioning(z=z, timesteps=np.array([10.0, 500.0], np.float32))
    before = first.copy()
    engines.conditioning(z=-z, timesteps=np.array([20.0, 700.0], np.float32))
    assert np.array_equal(first, before)


def test_the_description_names_library_and_threads(golden_artifacts: dict[str, pathlib.Path]) -> None:
    version = importlib.import_module("openvino").__version__.split("-")[0]
    with Generator.load(golden_artifacts["small"], backend="openvino", threads=2) as generator:
        assert generator.description == f"openvino {version}, cpu, 2 threads"


def test_it_needs_neither_onnx_runtime_nor_torch(golden_artifacts: dict[str, pathlib.Path]) -> None:
    script = """
import sys
sys.modules.update(dict.fromkeys(["onnxruntime", "torch", "onnx"]))  # import raises
from runtime import Generator
with Generator.load(sys.argv[1], backend="openvino", threads=1) as generator:
    print(generator.generate([0, 1], iterations=2, diffusion_steps="ddim2", cfg_scale=2.0).latents.shape)
"""
    command = [sys.executable, "-c", script, str(golden_artifacts["small"])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout == "(2, 8, 4, 4)\n", ended.stderr


def test_a_signal_after_two_generators_is_handled(golden_artifacts: dict[str, pathlib.Path]) -> None:
    """Which was the end of the process where each had a core of its own."""
    script = """
import signal, sys
from runtime import Generator
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
generators = [Generator.load(sys.argv[1], backend="openvino", threads=1) for _ in range(2)]
while generators:
    generators.pop(0).close()
signal.raise_signal(signal.SIGUSR1)
"""
    command = [sys.executable, "-c", script, str(golden_artifacts["small"])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


# What goes wrong.


def test_a_closed_generator_refuses_calls(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with load(golden_artifacts["small"]) as generator:
        pass
    with pytest.raises(BackendError, match="closed"):
        generator.generate([0], **REQUEST)
    generator.close()  # twice is once


def test_the_error_without_openvino_names_what_to_install(
    golden_artifacts: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino is not installed .*; pip install 'mar-runtime\[openvino\]'"):
        load(golden_artifacts["small"])


def test_a_file_that_is_no_graph_is_refused_in_one_line(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "denoise.onnx"
    path.write_bytes(b"\x08\x0a not a graph")
    spec = Artifact(golden_artifacts["small"]).manifest.specs[DENOISE]
    with pytest.raises(BackendError) as refusal:
        open_backend("openvino", None, 1).load_graph(path, spec)  # type: ignore[attr-defined]
    assert str(refusal.value).startswith(f"{path}: openvino cannot load it (")
    assert "\n" not in str(refusal.value)


def test_an_operator_that_openvino_does_not_know_is_named(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    node = onnx.helper.make_node("Foo", ["x"], ["y"], domain="com.example")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "foo", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.example", 1)]
    path = tmp_path / "foo.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)
    spec = Artifact(golden_artifacts["small"]).manifest.specs[DENOISE]
    with pytest.raises(BackendError, match=r"com\.example\.Foo") as refusal:
        open_backend("openvino", None, 1).load_graph(path, spec)  # type: ignore[attr-defined]
    assert "\n" not in str(refusal.value)


def test_the_description_names_no_more_threads_than_processors(golden_artifacts: dict[str, pathlib.Path]) -> None:
    with Generator.load(golden_artifacts["small"], backend="openvino", threads=1024) as generator:
        assert generator.description.endswith(f"cpu, {os.cpu_count()} thread{'s' * (os.cpu_count() != 1)}")


def _renamed(spec: EngineSpec) -> EngineSpec:
    first, *others = spec.inputs
    return dataclasses.replace(spec, inputs=(dataclasses.replace(first, name="something"), *others))


def _of_integers(spec: EngineSpec) -> EngineSpec:
    first, *others = spec.inputs
    return dataclasses.replace(spec, inputs=(dataclasses.replace(first, dtype="int64"), *others))


def _wider(spec: EngineSpec) -> EngineSpec:
    (output, *others) = spec.outputs
    return dataclasses.replace(spec, outputs=(dataclasses.replace(output, shape=(*output.shape[:-1], 999)), *others))


@pytest.mark.parametrize("engine", [BACKBONE, CONDITIONING, DENOISE])
@pytest.mark.parametrize("change", [_renamed, _of_integers, _wider])
def test_a_graph_that_differs_from_its_spec_is_refused(
    golden_artifacts: dict[str, pathlib.Path], engine: str, change: Any
) -> None:
    artifact = Artifact(golden_artifacts["small"])
    path, spec = artifact.engine_file(engine), artifact.manifest.specs[engine]
    runner: Any = open_backend("openvino", None, 1)
    runner.load_graph(path, spec)
    with pytest.raises(BackendError, match=r"the graph has .* where its spec has .*; export again"):
        runner.load_graph(path, change(spec))


def test_the_error_of_an_engine_that_fails_names_engine_and_reason(generators: dict[str, Generator]) -> None:
    engines, config = generators["small"].engines, generators["small"].manifest.model
    with pytest.raises(BackendError) as refusal:
        engines.conditioning(
            z=np.ones((2, config.decoder_embed_dim + 1), np.float32), timesteps=np.zeros(1, np.float32)
        )
    assert str(refusal.value).startswith("engine conditioning failed in openvino: ")
    assert "\n" not in str(refusal.value)


def test_a_changed_file_is_refused_before_openvino_reads_it(
    golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    artifact = pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))
    graph = artifact / "denoise.onnx"
    changed = bytearray(graph.read_bytes())
    changed[len(changed) // 2] ^= 1
    graph.write_bytes(bytes(changed))
    with pytest.raises(IntegrityError, match=r"denoise\.onnx"):
        load(artifact)
