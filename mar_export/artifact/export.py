"""Export of a checkpoint to an artifact: engines, parity with eager PyTorch, and the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
import pathlib
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from mar_export.artifact.first_pass import check_first_pass, write_first_pass
from mar_export.artifact.parity import (
    ENGINE_TOLERANCES,
    Trajectory,
    eager_outputs,
    eager_trajectory,
    engine_parity,
    generation_parity,
)
from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.exporter import OPSET, export_graph
from mar_export.onnx_export.float32_emulation import save_emulation
from mar_export.onnx_export.fp16_ranges import check_fp16, largest_values
from mar_export.onnx_export.mixed_precision import DTYPES, attention_in_products, to_precision
from mar_export.torch_backends.torch_cpu import torch_engine
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FIRST_PASS, MANIFEST, TEXT_TOKENIZER, FileEntry, Manifest
from runtime.artifact.replacement import check_replaceable, keep_additions
from runtime.artifact.shared_weights import share_weights
from runtime.backends import available_threads
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.backends.openvino import OpenVino
from runtime.distance import tolerance_text
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, ENCODER, TEXT_ENCODER, Array, Engine, EngineSpec
from runtime.model.families import RECAP, check_supported, engine_specs, loop_specs, optional_specs, tokenizer_specs_of
from runtime.model.recap_engines import FULL
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.settings import Sampling
from runtime.storage.files import replacing_folder, scratch_beside, sha256, write_json
from runtime.version import __version__
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.mapped_weights import (
    move_to_file,
    release,
    release_files,
    released_after_calls,
    trim,
)
from training.checkpoints.tensor_files import tensors_sha256
from training.checkpoints.text_encoder import LoadedTextEncoder
from training.models.autoencoder import AutoencoderKL

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_artifact(
    checkpoint: Checkpoint,
    out: pathlib.Path,
    report: Callable[[str], None],
    sampling: Sampling | None = None,
    *,
    precision: str = "fp32",
    optional: Collection[str] = (),
    text_encoder: LoadedTextEncoder | None = None,
    force: bool = False,
) -> Manifest:
    """Export a checkpoint as an artifact, and compare every engine and a complete generation with eager PyTorch.

    Returns the manifest; if `out` holds this export already, nothing is done. After a failure `out` is as before.
    All large weights lie in mapped files, to which those that the engines change are moved, and each part of a module
    gives its weights back after its calls: see `training.checkpoints.mapped_weights`. So the export takes about as much
    memory as its largest engine.

    Args:
        checkpoint: The model, and its tokenizer if it has one.
        out: The artifact folder to write.
        report: Called with a line of text for each step.
        sampling: The sampling settings of requests that name none; None for the default.
        precision: The precision of weights and matrix products, one of `runtime.artifact.manifest.FLOAT_PRECISIONS`.
        optional: What the artifact has too. Engines by name: the encoder of the tokenizer, for editing images, and
            those of `runtime.model.recap_engines`, for local iterations. `FIRST_PASS` of the manifest: the first pass
            of each class, see `runtime.loops.first_pass`.
        text_encoder: What turns prompts into the embeddings that the model reads; it becomes an engine too.
        force: Whether an artifact at `out` is replaced, see `runtime.artifact.replacement`.

    Raises:
        ParityError: An engine or the generation differs by more than the tolerance, or fp16 cannot hold a value.
        RequestError: The settings are invalid, there is no encoder to export, or `out` is another artifact.
        ArtifactError: `out` is something else than an artifact folder.
    """
    modules = _modules(checkpoint, optional, text_encoder)
    base = _manifest(checkpoint, sampling, precision, text_encoder, modules, FIRST_PASS in optional)
    tokenizer = None if text_encoder is None else text_encoder.tokenizer
    if check_replaceable(out, base, force):
        report(f"{out} holds this export already; --force exports it again")
        return Artifact(out).manifest
    with replacing_folder(out) as folder, scratch_beside(out) as scratch:
        trajectory = _trajectory(checkpoint.model, modules, base, scratch, report)
        del checkpoint, text_encoder
        if tokenizer is not None:
            (folder / TEXT_TOKENIZER).write_bytes(tokenizer)
        manifest = _export_compared(modules, base, folder, scratch, trajectory, FIRST_PASS in optional, report)
        _write_manifest(folder, manifest := keep_additions(out, folder, manifest, report))
    report(f"artifact written to {out}")
    return manifest


def _trajectory(
    model: Any,
    modules: Mapping[str, nn.Module],
    manifest: Manifest,
    scratch: pathlib.Path,
    report: Callable[[str], None],
) -> Trajectory:
    """Move all weights to files, generate an image in eager PyTorch, and check the range of fp16 with it."""
    for name, module in {"model": model, **modules}.items():
        move_to_file(module, scratch / f"{name}.weights")
    report("generating an image in eager PyTorch, to compare with")
    with released_after_calls([model]):
        trajectory = eager_trajectory(model, manifest.precision, FULL in modules)
    _check_ranges(modules, trajectory, manifest)
    return trajectory


def _export_compared(
    modules: dict[str, nn.Module],
    base: Manifest,
    folder: pathlib.Path,
    scratch: pathlib.Path,
    trajectory: Trajectory,
    first_pass: bool,
    report: Callable[[str], None],
) -> Manifest:
    """Export every module into `folder`, and return the manifest of what is there, with all comparisons."""
    openvino = _openvino(base.precision, report)
    engines, parity, runnable = _export_engines(modules, base, folder, scratch, openvino, report)
    if first_pass:
        report(f"{FIRST_PASS}: computing the first pass of each class")
        # With weights that are packed, as a generator has them: from mapped ones z differs in the last bits.
        with contextlib.closing(OnnxRuntime("onnxruntime", available_threads())) as backend:
            backbone = backend.load_graph(runnable[BACKBONE], engine_specs(base.model)[BACKBONE])
            write_first_pass(folder / FIRST_PASS, backbone, base.model)
    files = {file.name: FileEntry(file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}
    manifest = dataclasses.replace(base, files=files, engines=engines, parity=parity)
    parity["generation"] = _generation_parity(manifest, folder, runnable, trajectory, openvino)
    report(f"complete generation: {_describe(parity['generation'])}")
    return manifest


def _modules(
    checkpoint: Checkpoint, optional: Collection[str], text_encoder: LoadedTextEncoder | None
) -> dict[str, nn.Module]:
    """Return the module of each engine.

    Raises `RequestError` if there is no encoder of images to export, or if the family has no engines of ReCAP.
    """
    encoder, recap = ENCODER in optional, FULL in optional
    if recap:
        check_supported(checkpoint.model.config, RECAP)
    if encoder:
        check_supported(checkpoint.model.config, "mar export --encoder")
        if checkpoint.vae is None:
            raise RequestError(
                f"an encoder belongs to a KL tokenizer, but {checkpoint.source} has none; see --tokenizer"
            )
    modules = graph_modules(checkpoint.model, checkpoint.vae, encoder, recap)
    if text_encoder is not None:
        modules[TEXT_ENCODER] = text_encoder.module
    return modules


def _write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, manifest.to_dict())
    Artifact(folder).verify()


def _export_engines(
    modules: dict[str, nn.Module],
    manifest: Manifest,
    folder: pathlib.Path,
    scratch: pathlib.Path,
    openvino: OpenVino | None,
    report: Callable[[str], None],
) -> tuple[dict[str, str], dict[str, dict[str, Any]], dict[str, pathlib.Path]]:
    """Export every module to `folder`, remove it from `modules`, and compare its engine with it, also on `openvino`.

    Returns:
        By the name of the engine: the name of its file, its parity, and a file that ONNX Runtime runs on a CPU with the
        results of a device. The latter is an emulation in `scratch` for low precision.
    """
    config, precision = manifest.model, manifest.precision
    specs = {**engine_specs(config), **optional_specs(config), **tokenizer_specs_of(config)}
    engines = {name: f"{name}.onnx" for name in modules}
    parity: dict[str, dict[str, Any]] = {}
    runnable: dict[str, pathlib.Path] = {}
    for name, file_name in engines.items():
        report(f"{name}: exporting")
        module = modules.pop(name)
        with released_after_calls([module]):
            expected = eager_outputs(module, specs[name], manifest.model)
        runnable[name] = file = folder / file_name
        _export_module(module, specs[name], manifest, file)
        if (owner := specs[name].weights_of) is not None:
            share_weights(file, folder / engines[owner])
        if precision != "fp32":
            runnable[name] = scratch / file_name
            save_emulation(file, runnable[name], DTYPES[precision])
            gc.collect()  # a graph has reference cycles, also to the file of its weights
        # One backend for each engine, to release its memory; a comparison may evaluate the module once more.
        with contextlib.closing(_cpu_backend(precision)) as backend, released_after_calls([module]):
            engine = backend.load_graph(runnable[name], specs[name])
            parity[name] = engine_parity(engine, expected, specs[name], manifest.model, precision)
        if openvino:
            with contextlib.closing(openvino), released_after_calls([module]):
                engine, on = openvino.load_graph(file, specs[name]), openvino.description
                on_openvino = engine_parity(engine, expected, specs[name], manifest.model, precision, on)
            parity[name]["openvino"] = on_openvino | _computed_by(openvino)
        report(f"{name}: {_describe(parity[name])}")
    return engines, parity, runnable


def _generation_parity(
    manifest: Manifest,
    folder: pathlib.Path,
    runnable: Mapping[str, pathlib.Path],
    trajectory: Trajectory,
    openvino: OpenVino | None,
) -> dict[str, Any]:
    """Return the parity of the engines in `runnable` on ONNX Runtime, and of those in `folder` on `openvino`."""
    usual = ENGINE_TOLERANCES[manifest.precision]
    widening = max(report["tolerance"] / usual for report in manifest.parity.values())
    parity = _compare_generation(manifest, runnable, trajectory, widening, _cpu_backend(manifest.precision))
    if openvino:
        graphs = {name: folder / file for name, file in manifest.engines.items()}
        parity["openvino"] = _compare_generation(manifest, graphs, trajectory, widening, openvino)
    return parity


def _compare_generation(
    manifest: Manifest,
    runnable: Mapping[str, pathlib.Path],
    trajectory: Trajectory,
    widening: float,
    backend: OnnxRuntime | OpenVino,
) -> dict[str, Any]:
    """Generate the image of `trajectory` with the engines in the files `runnable`; return its parity."""
    specs = loop_specs(manifest.model, manifest.engines)
    engines = {name: backend.load_graph(runnable[name], spec) for name, spec in specs.items()}
    engines = _one_in_memory(engines, [f"{file}.data" for file in runnable.values()])
    with Generator(manifest, Engines(**engines), backend.description, backend.close) as generator:
        parity = generation_parity(generator, trajectory, manifest.precision, widening)
    return parity | (_computed_by(backend) if isinstance(backend, OpenVino) else {})


def _one_in_memory(engines: Mapping[str, Engine], weights: Sequence[str]) -> dict[str, Engine]:
    """Return engines of which only the one that was called last has its weights in memory, of those in mapped files.

    Args:
        engines: The engines by name.
        weights: The paths of all files of weights; several engines may share one.
    """
    called_last = ""

    def with_turn(name: str, engine: Engine) -> Engine:
        def call(**inputs: Array) -> tuple[Array, ...]:
            nonlocal called_last
            if called_last != name:
                release_files(weights)
            called_last = name
            return engine(**inputs)

        return call

    return {name: with_turn(name, engine) for name, engine in engines.items()}


def _openvino(precision: str, report: Callable[[str], None]) -> OpenVino | None:
    """Open OpenVINO for graphs in bf16, which only it runs on a CPU. Return None if it is not installed."""
    if precision != "bf16":
        return None
    try:
        return OpenVino("openvino", available_threads())
    except BackendError as error:
        report(f"bf16 is compared by emulation alone, since {error}")
        return None


def _computed_by(openvino: OpenVino) -> dict[str, str]:
    """What computed a parity, for the manifest: on a processor without bf16 OpenVINO computes bf16 in float32."""
    return {"backend": openvino.description, "products": "bf16" if openvino.has_bf16 else "fp32"}


def _cpu_backend(precision: str) -> OnnxRuntime:
    """Open ONNX Runtime for graphs in float32, or for emulations, whose weights become float32 one at a time."""
    return OnnxRuntime("onnxruntime", available_threads(), map_weights=True, fold_constants=precision == "fp32")


def _export_module(module: nn.Module, spec: EngineSpec, manifest: Manifest, file: pathlib.Path) -> None:
    """Write a module in the precision of the manifest, and release the memory of the export."""
    precision = manifest.precision
    converted = attention_in_products(module) if precision == "fp32" else to_precision(module, DTYPES[precision])
    export_graph(converted, spec, manifest.model, file)
    release(converted.parameters())
    gc.collect()  # tracing leaves reference cycles that contain every weight
    trim()


def _check_ranges(modules: Mapping[str, nn.Module], trajectory: Trajectory, manifest: Manifest) -> None:
    """For fp16, generate the image of `trajectory` in float32, and check that fp16 can hold all values of products."""
    if manifest.precision != "fp16":
        return
    observed = {name: to_precision(module, DTYPES["fp32"]) for name, module in modules.items()}
    config = manifest.model
    specs = {**engine_specs(config), **optional_specs(config), **tokenizer_specs_of(config)}
    engines = {name: torch_engine(module, specs[name]) for name, module in observed.items()}
    of_loop = dataclasses.replace(manifest, engines=dict.fromkeys(loop_specs(config, modules), ""))
    with largest_values(observed) as largest, released_after_calls(observed.values()):
        trajectory.generate_with(Generator(of_loop, Engines(**engines), "torch"))
    check_fp16(largest)


def _manifest(
    checkpoint: Checkpoint,
    sampling: Sampling | None,
    precision: str,
    text_encoder: LoadedTextEncoder | None,
    engines: Collection[str],
    first_pass: bool,
) -> Manifest:
    """Return a manifest that lists no files or parity yet, and no files of its engines.

    Raises `RequestError` for invalid settings, for some that need other engines, or for a first pass that is not of a
    class.
    """
    config = checkpoint.model.config
    if first_pass:
        check_first_pass(config)
    sampling = sampling or default_sampling(config)
    plan_for(config, sampling)
    if sampling.recap and FULL not in engines:
        raise RequestError("recap_local_iterations needs engines of its own; add --recap, or leave it out")
    return Manifest(
        model=config,
        tokenizer=checkpoint.tokenizer,
        class_names=checkpoint.class_names,
        sampling=sampling,
        precision=precision,
        files={},
        engines=dict.fromkeys(engines, ""),
        provenance={
            **_provenance(checkpoint),
            **_text_encoder_provenance(text_encoder),
            **({"first_pass": "of each class"} if first_pass else {}),
        },
        parity={},
    )


def _describe(parity: Mapping[str, Any]) -> str:
    openvino = parity.get("openvino")
    return (
        f"relative L2 from eager {parity['relative_l2']:.1e} ({parity['sqnr_db']:.0f} dB), "
        f"allowed {tolerance_text(parity['tolerance'])}"
        + (f"; on OpenVINO with products in {openvino['products']} {openvino['relative_l2']:.1e}" if openvino else "")
    )


def _provenance(checkpoint: Checkpoint) -> dict[str, str | int]:
    versions: dict[str, str | int] = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "checkpoint": checkpoint.source,
        "checkpoint_sha256": checkpoint.sha256,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "mar": __version__,
        "opset": OPSET,
        "python": platform.python_version(),
        **versions,
        **({} if checkpoint.vae is None else _tokenizer_provenance(checkpoint.vae)),
    }


def _text_encoder_provenance(text_encoder: LoadedTextEncoder | None) -> dict[str, str]:
    if text_encoder is None:
        return {}
    return {"text_encoder": text_encoder.source, "text_encoder_sha256": text_encoder.sha256}


def _tokenizer_provenance(vae: AutoencoderKL) -> dict[str, str]:
    return {"latent_scale": vae.describe_scale(), "tokenizer_sha256": tensors_sha256(vae.state_dict())}
