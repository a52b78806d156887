"""Writes a copy of a float32 artifact with engines in low precision, within an error budget of its images."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from calibration.quantization.collect import artifact_identity
from calibration.quantization.sensitivity import (
    LayerSensitivity,
    combined_error,
    layers_to_exclude,
    most_sensitive,
    rank_layers,
)
from calibration.quantization.sqnr import SqnrEvaluator
from calibration.quantization.statistics import ActivationStatistics
from calibration.quantization.variants import (
    QdqVariant,
    QuantizedVariant,
    WeightOnlyVariant,
    engines_with_weights_of,
)
from calibration.quantization.weight_only import BITS
from runtime.artifact.artifact_folder import Artifact, check_artifact_target
from runtime.artifact.manifest import CALIBRATED_FOR, MANIFEST, FileEntry, Manifest
from runtime.artifact.replacement import check_replaceable, keep_additions
from runtime.checks import pluralize
from runtime.distance import sqnr_db
from runtime.errors import ArtifactError, CalibrationError
from runtime.progress import Progress
from runtime.sampling.settings import Sampling
from runtime.storage.files import replacing_folder, scratch_beside, sha256, write_json

_MAX_ATTEMPTS = 8  # to reach the target SQNR; each attempt keeps more layers in float32

Log = Callable[[str], None]
Parity = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """What to quantize, and how exact the result must be.

    Attributes:
        precision: One of `runtime.artifact.manifest.QUANTIZED_PRECISIONS`.
        engines: The names of the engines to quantize.
        sampling: The sampling settings of the images that the SQNR is measured on.
        target_sqnr: The least SQNR of the latents, in dB.
        keep_share: The share of layers, 0 to 1, that stay in float32 in any case: the most sensitive ones.
        rank: Measure the sensitivity of every layer even if neither `keep_share` nor the target needs it.
        eval_images: The number of images that the SQNR is measured on.
        images: The number of images that statistics are collected from; 0 if only weights are quantized.
        threads: Number of processor threads.
    """

    precision: str
    engines: Sequence[str]
    sampling: Sampling
    target_sqnr: float
    keep_share: float = 0.0
    rank: bool = False
    eval_images: int = 8
    images: int = 0
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class QuantizationResult:
    """What `quantize` did.

    Attributes:
        manifest: The manifest of the new artifact.
        ranking: The layers, most sensitive first; empty if their sensitivity was not measured.
    """

    manifest: Manifest
    ranking: Sequence[LayerSensitivity]


def check_output(artifact: Artifact, out: pathlib.Path) -> None:
    """Raise `MarError` if `out` is `artifact` itself or no artifact can be written there."""
    check_artifact_target(out)
    if out.exists() and out.samefile(artifact.path):
        raise ArtifactError(
            f"--out {out} is the artifact to quantize, whose float32 engines must stay; choose another --out"
        )


def is_quantized(artifact: Artifact, config: QuantizationConfig, out: pathlib.Path, force: bool) -> bool:
    """Return whether `out` already holds what `quantize` would write there.

    Raises:
        RequestError: `out` holds another artifact, and `force` is false.
    """
    planned = dataclasses.replace(
        artifact.manifest,
        precision=config.precision,
        provenance={**artifact.manifest.provenance, **_origin(artifact, config)},
    )
    return check_replaceable(out, planned, force)


def check_float32(artifact: Artifact) -> None:
    """Raise `CalibrationError` unless the engines of `artifact` are in float32."""
    if artifact.manifest.precision != "fp32":
        raise CalibrationError(f"{artifact.path} is in {artifact.manifest.precision}; calibrate one in fp32")


def quantize(
    artifact: Artifact,
    statistics: ActivationStatistics | None,
    out: pathlib.Path,
    config: QuantizationConfig,
    log: Log,
) -> QuantizationResult:
    """Write a copy of `artifact` with some engines in low precision.

    The manifest of the copy stores the distance of its latents from float32: with each quantized engine alone, and
    with all of them.

    Args:
        artifact: The artifact in float32.
        statistics: Statistics of its activations. None for weight-only quantization.
        out: The new artifact. An artifact that exists there is replaced.
        config: What to quantize.
        log: Called with a line of text about each layer and each result.

    Raises:
        CalibrationError: If the statistics do not fit the artifact, or the target SQNR cannot be reached. Nothing is
            written then.
    """
    check_output(artifact, out)
    check_float32(artifact)
    variant = _variant(artifact, config, statistics, log)
    with (
        replacing_folder(out) as folder,
        scratch_beside(out) as scratch,
        SqnrEvaluator(artifact, config.sampling, config.eval_images, config.threads) as evaluator,
    ):
        search = _TargetSearch(variant, evaluator, scratch, config, log)
        parity, kept, ranking = search.run()
        chosen = set(variant.layers) - kept
        _write_files(folder, artifact, variant, chosen)
        manifest = _quantized_manifest(artifact, folder, config, statistics, parity, kept)
        provenance = {**manifest.provenance, **variant.provenance(chosen)}
        manifest = dataclasses.replace(manifest, provenance=provenance)
        manifest = keep_additions(out, folder, manifest, log)
        write_json(folder / MANIFEST, manifest.to_dict())
        Artifact(folder).verify()
    return QuantizationResult(manifest, ranking)


def _variant(
    artifact: Artifact, config: QuantizationConfig, statistics: ActivationStatistics | None, log: Log
) -> QuantizedVariant:
    if config.precision in BITS:
        return WeightOnlyVariant(artifact, config.engines, config.precision)
    if statistics is None or statistics.artifact != artifact_identity(artifact):
        raise CalibrationError(f"the statistics are of another artifact than {artifact.path}; calibrate again")
    variant = QdqVariant(artifact, config.engines, config.precision, statistics)
    for layer, scale in variant.scales.items():
        log(f"{layer}: {scale.method}, error {scale.error:.2%}, {scale.saturated:.3%} of the values saturate")
    return variant


@dataclasses.dataclass
class _TargetSearch:
    """Keeps more and more layers in float32 until the target SQNR is reached."""

    variant: QuantizedVariant
    evaluator: SqnrEvaluator
    work: pathlib.Path
    config: QuantizationConfig
    log: Log

    def run(self) -> tuple[Parity, set[str], Sequence[LayerSensitivity]]:
        """Return the parity reports for the manifest, the layers kept in float32, and the ranking, maybe empty.

        Raises `CalibrationError` if the target is not reached.
        """
        config, layers = self.config, self.variant.layers
        target = 10 ** (-config.target_sqnr / 20)
        ranking = self._rank() if config.rank or config.keep_share else []
        kept = most_sensitive(ranking, config.keep_share)
        for _ in range(_MAX_ATTEMPTS):
            parity = self._measure(kept)
            distance = parity["generation"]["relative_l2"]
            if distance <= target:
                parity["generation"] = {**parity["generation"], "tolerance": target}
                return parity, kept, ranking
            ranking = ranking or self._rank()
            # If the measured error is larger than the combined one, allow that much less: at least one more layer
            # stays in float32.
            kept |= layers_to_exclude(ranking, target * combined_error(ranking, kept) / distance)
            if len(kept) == len(layers):
                break
            self.log(f"{len(kept)} of {pluralize(len(layers), 'layer')} in float32")
        raise CalibrationError(
            f"in {config.precision} the SQNR of the latents is {sqnr_db(distance):.1f} dB, less than --target-sqnr "
            f"{config.target_sqnr:.1f}; nothing was written, so give a lower target or another --precision"
        )

    def _rank(self) -> Sequence[LayerSensitivity]:
        with Progress(len(self.variant.layers), "ranking layers", unit="layers") as progress:
            return rank_layers(self.variant, self.evaluator, self.work, progress.update)

    def _measure(self, kept: set[str]) -> Parity:
        """The distance of the latents from float32: for each quantized engine alone, and for all ("generation")."""
        config, parity = self.config, {}
        for name in [*config.engines, "generation"] if len(config.engines) > 1 else ["generation"]:
            of_engine = {
                layer for layer in self.variant.layers if name == "generation" or layer.startswith(f"{name}/")
            } - kept
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                report = self.evaluator.report(self.variant.write(pathlib.Path(folder), of_engine))
            parity[name] = report
            subject = "all engines" if name == "generation" else name
            if of_engine:
                self.log(f"{subject} in {config.precision}: SQNR of the latents {report['sqnr_db']:.1f} dB")
            else:
                self.log(f"{subject}: float32")
        parity = dict.fromkeys(config.engines, parity["generation"]) | parity
        manifest = self.variant.artifact.manifest
        same = {name: parity[engine] for engine in config.engines for name in engines_with_weights_of(manifest, engine)}
        return parity | same


def _write_files(folder: pathlib.Path, artifact: Artifact, variant: QuantizedVariant, chosen: set[str]) -> None:
    """Write every file of the new artifact except its manifest: quantized graphs, and copies of all others."""
    graphs = variant.write(folder, chosen)
    replaced = {name for graph, _ in graphs.values() for name in (graph.name, f"{graph.name}.data")}
    for name in artifact.manifest.files:
        if not name.startswith("engines/") and name not in replaced:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, folder / name)


def _quantized_manifest(
    artifact: Artifact,
    folder: pathlib.Path,
    config: QuantizationConfig,
    statistics: ActivationStatistics | None,
    parity: Parity,
    kept: set[str],
) -> Manifest:
    """The manifest of the files in `folder`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return dataclasses.replace(
        artifact.manifest,
        precision=config.precision,
        files={str(file.relative_to(folder)): FileEntry(file.stat().st_size, sha256(file)) for file in files},
        provenance={
            **artifact.manifest.provenance,
            **_origin(artifact, config),
            "kept_in_float32": ", ".join(sorted(kept)) or "none",
            "calibration_images": statistics.images if statistics else 0,
            **({CALIBRATED_FOR: artifact.manifest.describe_plan(config.sampling)} if statistics else {}),
        },
        parity={**artifact.manifest.parity, **parity},
        builds=(),
    )


def _origin(artifact: Artifact, config: QuantizationConfig) -> dict[str, str]:
    """Return the entries of a provenance that tell one quantization of an artifact from another."""
    settings = (
        f"graphs {artifact_identity(artifact)}, {pluralize(config.images, 'image')} for statistics, at least "
        f"{config.target_sqnr:g} dB on {pluralize(config.eval_images, 'image')}, {config.keep_share:.1%} of layers "
        f"kept, {config.sampling.describe()}"
    )
    return {"quantized": f"{config.precision} of {', '.join(config.engines)}", "quantized_with": settings}
