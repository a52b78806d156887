"""A checkpoint in, an artifact out: engines, parity report and manifest, all or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
import pathlib
import platform
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mar_export.artifact.parity import Trajectory, eager_outputs, eager_trajectory, engine_parity, generation_parity
from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.exporter import OPSET, export_graph
from mar_export.onnx_export.float32_emulation import save_emulation
from mar_export.onnx_export.fp16_ranges import check_fp16, largest_values
from mar_export.onnx_export.mixed_precision import DTYPES, attention_in_products, lowered
from mar_export.torch_backends.torch_cpu import torch_engine
from runtime import __version__
from runtime.artifact.artifact_folder import Artifact, check_artifact_target
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.backends import available_threads
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import RequestError
from runtime.files import replacing_folder, sha256, write_json
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import ENGINES, EngineSpec, engine_specs, tokenizer_specs
from runtime.sampling.constraints import default_sampling
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling
from training.checkpoints.checkpoint import Checkpoint

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_artifact(
    checkpoint: Checkpoint,
    out: pathlib.Path,
    say: Callable[[str], None],
    sampling: Sampling | None = None,
    *,
    precision: str = "fp32",
    encoder: bool = False,
) -> Manifest:
    """Write `checkpoint` as an artifact at `out`, replacing one that is there.

    `sampling` are the settings that the artifact is drawn with where a request names none, those of its
    head by default. `precision`, one of `runtime.artifact.manifest.FLOAT_PRECISIONS`, is that of weights and matrix
    products; `encoder` adds the engine that reads images, for editing.

    Every engine and a whole generation are compared with eager PyTorch in float32. Raises `ParityError`
    when one differs by more than the tolerance of its precision, or where fp16 cannot hold what a layer
    makes, and leaves nothing behind then.

    Weights are let go once their engine is written: where the caller keeps no `checkpoint` either, the
    comparison of whole images does without them.
    """
    check_artifact_target(out)
    if encoder and checkpoint.vae is None:
        raise RequestError(f"an encoder belongs to a KL tokenizer, but {checkpoint.source} has none; see --tokenizer")
    base = _manifest(checkpoint, sampling or default_sampling(checkpoint.model.config), precision)
    build_plan(base.model.tokens, base.sampling)  # wrong settings are told before the work
    say("drawing an image in eager PyTorch, to compare with")
    trajectory = eager_trajectory(checkpoint.model, precision)
    modules = graph_modules(checkpoint.model, checkpoint.vae, encoder)
    del checkpoint
    if precision == "fp16":
        _check_ranges(modules, trajectory, base)
    specs = {**engine_specs(base.model), **tokenizer_specs(base.model)}
    files = {name: f"{name}.onnx" for name in modules}
    with (
        replacing_folder(out) as folder,
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as emulations,
    ):
        parity: dict[str, dict[str, Any]] = {}
        runnable = {}  # by ONNX Runtime on a CPU, as devices compute
        for name, written in files.items():
            say(f"{name}: exporting")
            expected = eager_outputs(modules[name], specs[name], base.model)
            runnable[name] = file = folder / written
            _export(modules.pop(name), specs[name], base.model, precision, file)
            if precision != "fp32":
                runnable[name] = pathlib.Path(emulations) / file.name
                save_emulation(file, runnable[name], DTYPES[precision])
                gc.collect()  # a graph refers to itself, and to the file of its weights
            with contextlib.closing(_runner()) as runner:  # what it takes to run a decoder is let go with it
                engine = runner.load_graph(runnable[name], specs[name])
                parity[name] = engine_parity(engine, expected, specs[name], base.model, precision)
            say(f"{name}: {_told(parity[name])}")
        entries = {file.name: FileEntry(file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}
        manifest = dataclasses.replace(base, files=entries, engines=files, parity=parity)
        runner = _runner()
        engines = Engines(**{name: runner.load_graph(runnable[name], specs[name]) for name in ENGINES})
        with Generator(manifest, engines, runner.description, runner.close) as generator:
            parity["generation"] = generation_parity(generator, trajectory, precision)
        say(f"whole generation: {_told(parity['generation'])}")
        write_json(folder / MANIFEST, manifest.to_dict())
        Artifact(folder).verify()
    return manifest


def _runner() -> OnnxRuntime:
    return OnnxRuntime("onnxruntime", available_threads(), map_weights=True)


def _export(module: nn.Module, spec: EngineSpec, config: ModelConfig, precision: str, file: pathlib.Path) -> None:
    """Write `module` in `precision`, and keep nothing of what that took: the next step needs the memory."""
    form = attention_in_products(module) if precision == "fp32" else lowered(module, DTYPES[precision])
    export_graph(form, spec, config, file)
    gc.collect()  # what tracing leaves refers to itself, and to every weight


def _check_ranges(modules: Mapping[str, nn.Module], trajectory: Trajectory, manifest: Manifest) -> None:
    """Draw `trajectory` in float32 at the places where fp16 would be, and refuse what it could not hold."""
    watched = {name: lowered(module, DTYPES["fp32"]) for name, module in modules.items()}
    engines = {name: torch_engine(module) for name, module in watched.items()}
    with largest_values(watched) as largest:
        trajectory.drawn_by(Generator(manifest, Engines(**engines), "torch"))
    check_fp16(largest)


def _manifest(checkpoint: Checkpoint, sampling: Sampling, precision: str) -> Manifest:
    """What is known before anything is written."""
    return Manifest(
        model=checkpoint.model.config,
        tokenizer=checkpoint.tokenizer,
        class_names=checkpoint.class_names,
        sampling=sampling,
        precision=precision,
        files={},
        engines={},
        provenance=_provenance(checkpoint),
        parity={},
    )


def _told(parity: Mapping[str, Any]) -> str:
    return (
        f"relative L2 from eager {parity['relative_l2']:.1e} ({parity['sqnr_db']:.0f} dB), "
        f"allowed {parity['tolerance']:.0e}"
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
    }
