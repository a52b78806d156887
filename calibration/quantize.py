"""An artifact in float32 and statistics of its activations in, the same engines in int8 or fp8 out."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.collect import identity
from calibration.kept import is_kept
from calibration.products import products
from calibration.quantized_graph import quantize_graph
from calibration.scales import Scale, activation_scale
from calibration.statistics import Statistics
from runtime.artifact import MANIFEST, Artifact, FileEntry, Manifest, is_artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import ArtifactError, CalibrationError
from runtime.files import replacing_folder, sha256, write_json
from runtime.generator import Generator
from runtime.loop import Engines

_JUDGED = 8  # pictures
_SEED = 2**30  # apart from those that statistics are of, and those that people draw


def quantize(
    artifact: Artifact,
    statistics: Statistics,
    out: pathlib.Path,
    precision: str,
    engines: Sequence[str],
    target_sqnr: float,
    threads: int,
    say: Callable[[str], None],
) -> Manifest:
    """Write `artifact` with the products of `engines` in `precision`, replacing an artifact at `out`.

    What every quantized engine alone, and all together, do to the latents of a few pictures goes into the
    manifest. Raises `CalibrationError` where all together miss `target_sqnr`, in dB, and leaves nothing then.
    """
    if out.exists() and not is_artifact(out):
        raise ArtifactError(f"{out} exists and is not an artifact; choose another --out, or remove it yourself")
    if artifact.manifest.precision != "fp32":
        raise CalibrationError(f"{artifact.path} is in {artifact.manifest.precision}; calibrate one in fp32")
    if statistics.artifact != identity(artifact):
        raise CalibrationError(f"the statistics are of another artifact than {artifact.path}; calibrate again")
    manifest = artifact.manifest
    with replacing_folder(out) as folder:
        for name in manifest.files:
            if not name.startswith("engines/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / name, folder / name)
        for name in engines:
            scales = engine_scales(artifact, name, statistics, precision, say)
            graph = folder / manifest.engines[name]
            for file in (graph, graph.with_name(f"{graph.name}.data")):
                file.unlink(missing_ok=True)
            values = {layer: scale.scale for layer, scale in scales.items()}
            quantize_graph(artifact.engine_file(name), graph, precision, values)
        parity = {**manifest.parity, **_judged(artifact, folder, precision, engines, statistics, threads, say)}
        found = -20 * math.log10(max(parity["generation"]["relative_l2"], 1e-15))
        if found < target_sqnr:
            raise CalibrationError(
                f"in {precision} the latents keep {found:.1f} dB, where --target-sqnr asks for {target_sqnr:.1f}; "
                "nothing was written"
            )
        parity["generation"]["tolerance"] = 10 ** (-target_sqnr / 20)
        written = sorted(file for file in folder.rglob("*") if file.is_file())
        quantized = dataclasses.replace(
            manifest,
            precision=precision,
            files={str(file.relative_to(folder)): FileEntry(file.stat().st_size, sha256(file)) for file in written},
            provenance={
                **manifest.provenance,
                "quantized": f"{precision} of {', '.join(engines)}",
                "calibration_pictures": statistics.pictures,
            },
            parity=parity,
            builds=(),
        )
        write_json(folder / MANIFEST, quantized.to_dict())
        Artifact(folder).verify()
    return quantized


def engine_scales(
    artifact: Artifact, engine: str, statistics: Statistics, precision: str, say: Callable[[str], None]
) -> dict[str, Scale]:
    """The scale of the activation of every layer of `engine` that is to be quantized."""
    scales = {}
    for product in products(ir.load(artifact.engine_file(engine)).graph):
        layer = f"{engine}/{product.name}"
        if is_kept(layer):
            continue
        if layer not in statistics.layers:
            raise CalibrationError(f"the statistics know nothing of {layer}; calibrate again")
        scale = activation_scale(statistics.layers[layer], np.asarray(product.weights), precision)
        say(f"{layer}: {scale.method}, error {scale.error:.2%}")
        scales[product.name] = scale
    return scales


def _judged(
    artifact: Artifact,
    folder: pathlib.Path,
    precision: str,
    engines: Sequence[str],
    statistics: Statistics,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The distance of latents from float32's: each quantized engine alone, and all of them."""
    manifest = artifact.manifest
    labels = [number % manifest.model.class_num for number in range(_JUDGED)]
    runner = OnnxRuntime("onnxruntime", threads)
    exact = {name: runner.load(artifact, name) for name in manifest.specs}
    low = {
        name: runner.load_graph(folder / manifest.engines[name], manifest.specs[name], precision) for name in engines
    }

    def drawn(changed: Mapping[str, Any]) -> NDArray[np.float32]:
        with Generator(manifest, Engines(**{**exact, **changed}), "") as generator:
            return generator.generate(labels, seed=_SEED, **statistics.sampling).latents

    expected = drawn({})
    parity = {}
    for name, changed in {**{name: {name: low[name]} for name in engines}, "generation": low}.items():
        distance = float(np.linalg.norm(drawn(changed) - expected) / np.linalg.norm(expected))
        sqnr = -20 * math.log10(max(distance, 1e-15))
        parity[name] = {"relative_l2": distance, "sqnr_db": sqnr, "tolerance": 1.0, "of": "latents"}
        say(f"{name if name != 'generation' else 'all'} in {precision}: the latents keep {sqnr:.1f} dB")
    runner.close()
    return parity
