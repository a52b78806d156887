"""The artifacts that `benchmarks.scaling` measures: a model in each precision, for each number of tokens."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from calibration.quantization.collect import collect
from calibration.quantization.quantize import QuantizationConfig, quantize
from mar_export.artifact.export import export_artifact
from mar_export.benchmark.runners import RunnerInputs, open_checkpoint
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.backends import available_threads
from runtime.model.families import engine_specs
from runtime.provenance import commit
from runtime.sampling.constraints import short_chain_settings
from runtime.storage.files import scratch_folder
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.resize import resize_model

FOLDER = pathlib.Path("out/scaling")


@dataclasses.dataclass(frozen=True)
class Engines:
    """Exports a model, into a folder for each commit: the engines of another version of this code are others.

    Attributes:
        source: Names the weights; its other fields are not used.
        name: The name of the weights, for folders.
        settings: The sampling settings that int8 engines are calibrated for, but for the iterations.
    """

    source: RunnerInputs
    name: str
    settings: Mapping[str, Any]

    def artifact(self, precision: str, tokens: int) -> pathlib.Path:
        """Return the artifact in a precision, `fp32` or `int8`, for images of so many tokens.

        It is exported unless it is there.
        """
        folder = FOLDER / commit()
        out = folder / f"{self.name}-{tokens}-{precision}"
        if not is_artifact(out):
            folder.mkdir(parents=True, exist_ok=True)
            if precision == "int8":
                _quantize(self.artifact("fp32", tokens), out, self.settings)
            else:
                export_artifact(_resized(open_checkpoint(self.source), tokens), out, print)
        return out


def _resized(checkpoint: Checkpoint, tokens: int) -> Checkpoint:
    config: Any = checkpoint.model.config
    if tokens == config.tokens:
        return checkpoint
    size = math.isqrt(tokens) * config.img_size // config.grid
    return dataclasses.replace(checkpoint, model=resize_model(checkpoint.model, size))


def _quantize(source: pathlib.Path, out: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Write a copy of an artifact in int8. Its scales are those of one short image, which is enough to measure time."""
    artifact, threads = Artifact(source), available_threads()
    model = artifact.manifest.model
    sampling = artifact.manifest.resolve_sampling({**settings, "iterations": 2, **short_chain_settings(model, 3)})
    with scratch_folder() as folder:
        statistics = collect(artifact, 1, folder / "statistics.npz", sampling, threads, lambda images: None)
    engines = list(engine_specs(model))
    config = QuantizationConfig("int8", engines, sampling, 0.0, eval_images=1, images=1, threads=threads)
    quantize(artifact, statistics, out, config, lambda line: None)
