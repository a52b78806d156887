"""How the error of low precision grows over a whole generation: by iteration, by timestep, by engine and by layer.

Every generation starts from the same orders and noise as the one in float32. *Accumulated* errors are those of a
generation in low precision. For errors *of its own*, every iteration reads the tokens of float32, so nothing is handed
from one iteration to the next. fp16 and bf16 are emulated (`benchmarks.numerics.rounding`); int8 and fp8 are the
graphs of `mar calibrate`, on ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.numerics.recording import Recording, record
from benchmarks.numerics.rounding import product_layers, rounding_module
from calibration.quantization.collect import collect
from calibration.quantization.sensitivity import LayerSensitivity
from calibration.quantization.statistics import ActivationStatistics
from calibration.quantization.variants import QdqVariant
from mar_export.graphs.engine_modules import Decoder, loop_modules
from mar_export.onnx_export.mixed_precision import DTYPES, products, to_precision
from mar_export.torch_backends.torch_cpu import torch_engine
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.distance import relative_l2
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import ENGINES, Engine, EngineSpec
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.published_files import load_vae
from training.data.datasets import open_dataset

EMULATED, QUANTIZED = ("fp16", "bf16"), ("int8", "fp8")
_STATISTICS_IMAGES = 8
_LAYERS_SHOWN = 5

OpenEngines = Callable[[Collection[str]], contextlib.AbstractContextManager[Engines]]
"""Opens the engines of a precision with some layers, "engine/layer", in it and all others in float32."""


@dataclasses.dataclass(frozen=True)
class Precision:
    """One low precision of a model.

    Attributes:
        name: Such as `bf16`.
        layers: Every layer that can be in it, as "engine/layer".
        open: Opens the engines with some of the layers in it.
    """

    name: str
    layers: list[str]
    open: OpenEngines

    def layers_of(self, engine: str) -> list[str]:
        """Return the layers of one engine."""
        return [layer for layer in self.layers if layer.startswith(f"{engine}/")]


def emulated_precision(name: str, modules: Mapping[str, nn.Module], specs: Mapping[str, EngineSpec]) -> Precision:
    """Return fp16 or bf16 for the modules of the engines of the loop."""

    @contextlib.contextmanager
    def open_engines(chosen: Collection[str]) -> Iterator[Engines]:
        engines: dict[str, Engine] = {}
        for engine, module in modules.items():
            own = {layer.partition("/")[2] for layer in chosen if layer.startswith(f"{engine}/")}
            engines[engine] = torch_engine(rounding_module(module, DTYPES[name], own), specs[engine])
        yield Engines(**engines)

    return Precision(name, product_layers(modules), open_engines)


def quantized_precision(name: str, variant: QdqVariant) -> Precision:
    """Return int8 or fp8 for an artifact, by graphs on ONNX Runtime."""
    artifact = variant.artifact

    @contextlib.contextmanager
    def open_engines(chosen: Collection[str]) -> Iterator[Engines]:
        with (
            contextlib.closing(OnnxRuntime("onnxruntime", 1)) as backend,
            tempfile.TemporaryDirectory() as folder,
        ):
            engines = {engine: backend.load(artifact, engine) for engine in ENGINES}
            for engine, (graph, precision) in variant.write(pathlib.Path(folder), chosen).items():
                engines[engine] = backend.load_graph(graph, artifact.manifest.specs[engine], precision)
            yield Engines(**engines)

    return Precision(name, variant.layers, open_engines)


def measure_growth(
    precision: Precision, manifest: Manifest, settings: Mapping[str, Any], images: int
) -> dict[str, Any]:
    """Measure the errors of each engine alone in a low precision, and of all engines.

    Args:
        precision: The precision.
        manifest: The manifest of the model.
        settings: The sampling settings of the images.
        images: The number of images.

    Returns:
        For each engine, and for `all`: the relative L2 distance from float32 of the `latents`; of the tokens of each
        iteration, `accumulated` and `own`; and of the states after each diffusion step over all iterations, `chain`.
    """
    with precision.open([]) as engines:
        expected = record(engines, manifest, settings, images)
    known, found = np.concatenate(expected.tokens), {}
    for part in (*ENGINES, "all"):
        chosen = precision.layers if part == "all" else precision.layers_of(part)
        with precision.open(chosen) as engines:
            free = record(engines, manifest, settings, images)
            forced = record(engines, manifest, settings, images, known)
        found[part] = {
            "latents": relative_l2(np.concatenate(free.tokens), known),
            "accumulated": by_iteration(free, expected),
            "own": by_iteration(forced, expected),
            "chain": by_step(forced, expected),
        }
    return found


def by_iteration(found: Recording, expected: Recording) -> list[float]:
    """Return the relative L2 distance of the tokens of each iteration, [I]."""
    return [relative_l2(one, other) for one, other in zip(found.tokens, expected.tokens, strict=True)]


def by_step(found: Recording, expected: Recording) -> list[float]:
    """Return the relative L2 distance of the states after each diffusion step, over all iterations, [T]."""
    steps = range(len(expected.states[0]))
    pairs = list(zip(found.states, expected.states, strict=True))
    return [
        relative_l2(
            np.concatenate([one[step] for one, _ in pairs]), np.concatenate([other[step] for _, other in pairs])
        )
        for step in steps
    ]


def rank(precision: Precision, manifest: Manifest, settings: Mapping[str, Any], images: int) -> list[LayerSensitivity]:
    """Return every layer, each alone in low precision, by the error of the finished latents, the largest first."""

    def tokens(chosen: Collection[str]) -> NDArray[np.float32]:
        with precision.open(chosen) as engines:
            return np.concatenate(record(engines, manifest, settings, images).tokens)

    expected = tokens([])
    errors = [LayerSensitivity(layer, relative_l2(tokens([layer]), expected)) for layer in precision.layers]
    return sorted(errors, key=lambda each: -each.relative_l2)


def ranking_entry(ranking: list[LayerSensitivity]) -> dict[str, Any]:
    """Return the first layers of a ranking and their shares of the sum of all squared errors, for JSON."""
    total = sum(each.relative_l2**2 for each in ranking)
    return {
        "count": len(ranking),
        "layers": [
            {"layer": each.layer, "relative_l2": each.relative_l2, "share": each.relative_l2**2 / total}
            for each in ranking[:_LAYERS_SHOWN]
        ],
    }


def measure_example(
    artifact: Artifact,
    checkpoint: pathlib.Path,
    growth: Mapping[str, Any],
    ranked: Mapping[str, Any],
    images: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every precision of an example.

    Args:
        artifact: Its artifact in float32.
        checkpoint: The checkpoint of the artifact.
        growth: The sampling settings of the generation whose errors are followed.
        ranked: The sampling settings of the images by which layers are ranked.
        images: The number of images.
        report: Called with a line for each precision.

    Returns:
        For each precision the entries of `measure_growth` and, as `ranking`, of `ranking_entry`.
    """
    manifest, modules = artifact.manifest, loop_modules(load_checkpoint(checkpoint).model)
    of_growth, of_ranking = (_statistics(artifact, settings) for settings in (growth, ranked))

    def precision(name: str, statistics: ActivationStatistics) -> Precision:
        if name in EMULATED:
            return emulated_precision(name, modules, manifest.specs)
        return quantized_precision(name, QdqVariant(artifact, ENGINES, name, statistics))

    found = {}
    for name in (*EMULATED, *QUANTIZED):
        entry = measure_growth(precision(name, of_growth), manifest, growth, images)
        entry["ranking"] = ranking_entry(rank(precision(name, of_ranking), manifest, ranked, images))
        report(f"{name}: {entry['all']['latents']:.2e}, {entry['ranking']['layers'][0]}")
        found[name] = entry
    return found


def _statistics(artifact: Artifact, settings: Mapping[str, Any]) -> ActivationStatistics:
    """Return statistics of the activations under these sampling settings."""
    sampling = artifact.manifest.resolve_sampling(dict(settings))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "statistics.npz")
        return collect(artifact, _STATISTICS_IMAGES, file, sampling, 1, lambda done: None)


def measure_tokenizer(tokenizer: pathlib.Path, data: pathlib.Path, images: int) -> dict[str, Any]:
    """Measure the decoder of a KL tokenizer in fp16 and bf16, on the latents of real images.

    Args:
        tokenizer: The file of the tokenizer.
        data: A dataset with a test split.
        images: The number of images.

    Returns:
        For each precision the relative L2 distance of the `pixels` from float32, their `psnr` in dB and the largest
        difference in `levels` of 8 bits; `depth`, that of the output of every product in the order of execution; and
        the `ranking` of the layers by the error that each alone makes in the pixels.
    """
    vae = load_vae(tokenizer)
    dataset = open_dataset(data, 64, "test")
    chosen = np.random.default_rng(0).choice(len(dataset.labels), images, replace=False)
    pixels = torch.from_numpy(dataset.images(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoder = Decoder(vae).eval()
    with torch.inference_mode():
        latents = vae.encode(pixels)
    exact = to_precision(decoder, torch.float32)
    expected, expected_outputs = _with_outputs(exact, latents)
    found = {}
    for name in EMULATED:
        dtype = DTYPES[name]
        image, outputs = _with_outputs(rounding_module(decoder, dtype), latents)
        ranking = []
        for layer, _ in products(exact):
            alone, _ = _with_outputs(rounding_module(decoder, dtype, [layer]), latents)
            ranking.append(LayerSensitivity(layer, relative_l2(alone, expected)))
        difference = image.clip(-1, 1) - expected.clip(-1, 1)
        found[name] = {
            "pixels": relative_l2(image, expected),
            "psnr": float(-10 * np.log10(np.square(difference / 2).mean())),
            "levels": float(np.abs(difference).max() * 127.5),
            "depth": [
                {"layer": layer, "relative_l2": relative_l2(outputs[layer], expected_outputs[layer])}
                for layer in expected_outputs
            ],
            "ranking": ranking_entry(sorted(ranking, key=lambda each: -each.relative_l2)),
        }
    return found


def _with_outputs(module: nn.Module, latents: torch.Tensor) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return the image of a decoder, and the output of each of its products, in the order of execution."""
    outputs: dict[str, NDArray[Any]] = {}
    hooks = [
        product.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output.numpy()}))
        for name, product in products(module)
    ]
    with torch.inference_mode():
        image = module(latents).numpy()
    for hook in hooks:
        hook.remove()
    return image, outputs
