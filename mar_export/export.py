"""A checkpoint in, an artifact out: engines, parity report and manifest, all or nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
from collections.abc import Callable

from mar_export.graphs import GRAPHS
from mar_export.onnx_graph import OPSET, export_graph
from mar_export.parity import engine_parity, generation_parity
from runtime import __version__
from runtime.artifact import MANIFEST, Artifact, FileEntry, Manifest, is_artifact
from runtime.backends import open_backend
from runtime.errors import ArtifactError
from runtime.files import replacing_folder, sha256, write_json
from runtime.generator import Generator
from runtime.loop import Engines
from runtime.plan import Sampling, build_plan
from runtime.spec import engine_specs
from training.checkpoint import Checkpoint

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_artifact(
    checkpoint: Checkpoint, out: pathlib.Path, say: Callable[[str], None], sampling: Sampling | None = None
) -> Manifest:
    """Write `checkpoint` as an artifact at `out`, replacing one that is there.

    `sampling` are the settings that the artifact is drawn with where a request names none; the
    published ones by default.

    Every engine and a whole generation are compared with eager PyTorch first. Raises `ParityError`
    when one differs by more than its tolerance, and leaves nothing behind then.
    """
    if out.exists() and not is_artifact(out):
        raise ArtifactError(f"{out} exists and is not an artifact; choose another --out, or remove it yourself")
    model = checkpoint.model
    specs = engine_specs(model.config)
    build_plan(model.config.tokens, sampling or Sampling())  # wrong settings are told before the work
    files = {name: f"{name}.onnx" for name in specs}
    with replacing_folder(out) as folder:
        parity = {}
        runner = open_backend("onnxruntime", "cpu", None)
        engines = {}
        for name, spec in specs.items():
            say(f"{name}: exporting")
            module = GRAPHS[name](model).eval()
            export_graph(module, spec, model.config, folder / files[name])
            engines[name] = runner.load(folder / files[name], spec)
            parity[name] = engine_parity(engines[name], module, spec, model.config)
            say(f"{name}: relative L2 from eager {parity[name]['relative_l2']:.1e}, allowed {spec.tolerance:.0e}")
        manifest = Manifest(
            model=model.config,
            tokenizer=checkpoint.tokenizer,
            class_names=checkpoint.class_names,
            sampling=sampling or Sampling(),
            precision="fp32",
            files={file.name: FileEntry(file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())},
            engines=files,
            provenance=_provenance(checkpoint),
            parity=parity,
        )
        with Generator(manifest, Engines(**engines), runner.description, runner.close) as generator:
            parity["generation"] = generation_parity(generator, model)
        say(f"whole generation: relative L2 from eager {parity['generation']['relative_l2']:.1e}")
        write_json(folder / MANIFEST, manifest.to_dict())
        Artifact(folder).verify()
    return manifest


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
