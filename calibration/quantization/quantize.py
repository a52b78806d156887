"""An artifact in float32 in, the same engines in low precision out, judged by the images they draw."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibration.quantization.collect import identity
from calibration.quantization.sensitivity import Sensitivity, most_sensitive, ranked_layers, together, too_sensitive
from calibration.quantization.sqnr import Judge, judging
from calibration.quantization.statistics import Statistics
from calibration.quantization.variants import Form, QuantizedProducts, QuantizedWeights
from calibration.quantization.weight_only import BITS
from runtime.artifact.artifact_folder import Artifact, check_artifact_target
from runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from runtime.distance import sqnr_db
from runtime.errors import ArtifactError, CalibrationError
from runtime.files import replacing_folder, sha256, write_json

_ATTEMPTS = 8  # to meet a target, each leaving out more layers


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What is asked for.

    `precision` is one of `runtime.artifact.manifest.QUANTIZED_PRECISIONS`; the latents of `images` images, drawn with
    the settings `sampling`, must keep `target_sqnr` dB; `keep_share` of the layers, the most sensitive ones, stay
    in float32, and more where the target asks for it. `rank` finds out how sensitive each is in any case.
    """

    precision: str
    engines: Sequence[str]
    sampling: Mapping[str, Any]
    target_sqnr: float
    keep_share: float = 0.0
    rank: bool = False
    images: int = 8
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The manifest that was written, and the layers by their sensitivity where that was found out."""

    manifest: Manifest
    ranking: Sequence[Sensitivity]


def check_apart(artifact: Artifact, out: pathlib.Path) -> None:
    """Refuse to write a quantized artifact over `artifact` itself, or where no artifact can be. Raises `MarError`."""
    check_artifact_target(out)
    if out.exists() and out.samefile(artifact.path):
        raise ArtifactError(
            f"{out} is the artifact that is quantized, whose float32 engines stay; choose another --out"
        )


def quantize(
    artifact: Artifact,
    statistics: Statistics | None,
    out: pathlib.Path,
    asked: Quantization,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Quantized:
    """Write `artifact` with the layers of some engines in low precision, replacing an artifact at `out`.

    `statistics` are needed where activations are quantized too. What every engine alone, and all together, do to
    the latents goes into the manifest. Raises `CalibrationError` where the target is missed even so, and leaves
    nothing then. `progress` is told of layers ranked, and their number.
    """
    check_apart(artifact, out)
    check_float32(artifact)
    form = _form(artifact, asked, statistics, say)
    with (
        replacing_folder(out) as folder,
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch,
        judging(artifact, asked.sampling, asked.images, asked.threads) as judge,
    ):
        work = pathlib.Path(scratch)
        parity, kept, ranking = _within_target(form, judge, work, asked, say, progress)
        _fill(folder, artifact, form, set(form.layers) - kept)
        written = sorted(file for file in folder.rglob("*") if file.is_file())
        made = dataclasses.replace(
            artifact.manifest,
            precision=asked.precision,
            files={str(file.relative_to(folder)): FileEntry(file.stat().st_size, sha256(file)) for file in written},
            provenance={
                **artifact.manifest.provenance,
                "quantized": f"{asked.precision} of {', '.join(asked.engines)}",
                "kept_in_float32": ", ".join(sorted(kept)) or "none asked for",
                "calibration_images": statistics.images if statistics else 0,
            },
            parity={**artifact.manifest.parity, **parity},
            builds=(),
        )
        write_json(folder / MANIFEST, made.to_dict())
        Artifact(folder).verify()
    return Quantized(made, ranking)


def check_float32(artifact: Artifact) -> None:
    """Raise `CalibrationError` where weights are rounded already."""
    if artifact.manifest.precision != "fp32":
        raise CalibrationError(f"{artifact.path} is in {artifact.manifest.precision}; calibrate one in fp32")


def _form(artifact: Artifact, asked: Quantization, statistics: Statistics | None, say: Callable[[str], None]) -> Form:
    if asked.precision in BITS:
        return QuantizedWeights(artifact, asked.engines, asked.precision)
    if statistics is None or statistics.artifact != identity(artifact):
        raise CalibrationError(f"the statistics are of another artifact than {artifact.path}; calibrate again")
    form = QuantizedProducts(artifact, asked.engines, asked.precision, statistics)
    for layer, scale in form.scales.items():
        say(f"{layer}: {scale.method}, error {scale.error:.2%}")
    return form


def _within_target(
    form: Form,
    judge: Judge,
    work: pathlib.Path,
    asked: Quantization,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, dict[str, Any]], set[str], Sequence[Sensitivity]]:
    """What goes into the manifest, the layers that stay in float32 so that it does, and their ranking if any."""
    target = 10 ** (-asked.target_sqnr / 20)
    ranking: Sequence[Sensitivity] = []

    def rank() -> Sequence[Sensitivity]:
        done = iter(range(1, len(form.layers) + 1))
        return ranked_layers(form, judge, work, lambda _: progress(next(done), len(form.layers)))

    if asked.rank or asked.keep_share:
        ranking = rank()
    kept = most_sensitive(ranking, asked.keep_share)
    for _ in range(_ATTEMPTS):
        parity = _judged(form, judge, work, asked, kept, say)
        found = parity["generation"]["relative_l2"]
        if found <= target:
            parity["generation"] = {**parity["generation"], "tolerance": target}
            return parity, kept, ranking
        ranking = ranking or rank()
        # Where layers do more together than each alone lets expect, so much less is allowed: at least one more stays.
        kept |= too_sensitive(ranking, target * together(ranking, kept) / found)
        if len(kept) == len(form.layers):
            break
        say(f"{len(kept)} of {len(form.layers)} layers stay in float32")
    raise CalibrationError(
        f"in {asked.precision} the latents keep {sqnr_db(found):.1f} dB, where --target-sqnr asks for "
        f"{asked.target_sqnr:.1f}; nothing was written"
    )


def _judged(
    form: Form, judge: Judge, work: pathlib.Path, asked: Quantization, kept: set[str], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The distance of latents from float32's: each quantized engine alone, and all of them."""
    parity = {}
    for name in [*asked.engines, "generation"] if len(asked.engines) > 1 else ["generation"]:
        chosen = {layer for layer in form.layers if name == "generation" or layer.startswith(f"{name}/")} - kept
        with tempfile.TemporaryDirectory(dir=work) as folder:
            parity[name] = told = judge.report(form.write(pathlib.Path(folder), chosen))
        said = "all" if name == "generation" else name
        say(f"{said} in {asked.precision}: the latents keep {told['sqnr_db']:.1f} dB" if chosen else f"{said}: float32")
    return dict.fromkeys(asked.engines, parity["generation"]) | parity


def _fill(folder: pathlib.Path, artifact: Artifact, form: Form, chosen: set[str]) -> None:
    """Every file of an artifact but its manifest and builds: those that stay, and those in low precision."""
    changed = form.write(folder, chosen)
    replaced = {name for graph, _ in changed.values() for name in (graph.name, f"{graph.name}.data")}
    for name in artifact.manifest.files:
        if not name.startswith("engines/") and name not in replaced:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, folder / name)
