"""`mar generate` and `mar inspect`: what runs on a device."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
import zipfile

import click
import numpy as np
from numpy.typing import NDArray

from runtime.artifact import Artifact
from runtime.errors import RequestError
from runtime.files import replacing
from runtime.generator import Generator, Result
from runtime.images import save_grid
from runtime.options import PATH, sampling_options
from runtime.plan import Sampling
from runtime.request import check_labels, check_noise, check_order

_MAX_COUNT = 100_000
_GRID_COLUMNS = 8


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--class", "classes", type=int, multiple=True, help="A class to draw; give it again for more. Default: all."
)
@click.option("--count", type=int, help="Pictures in all, the classes in turn. Default: one a class.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=PATH, help="Where to write the grid of pictures, as PNG.")
@click.option("--save-latents", type=PATH, help="Where to write the latents [B, C, H, W], as .npy.")
@sampling_options
@click.option("--batch-size", type=int, default=16, show_default=True, help="Pictures drawn together.")
@click.option("--order-file", type=PATH, help="An .npz with generation_order [B, L], instead of the seed's.")
@click.option("--noise-file", type=PATH, help="An .npz with noise [T+1, B, L, D], instead of the seed's.")
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Processor threads. Default: all.")
def generate(
    artifact: pathlib.Path,
    classes: tuple[int, ...],
    count: int | None,
    seed: int,
    out: pathlib.Path | None,
    save_latents: pathlib.Path | None,
    batch_size: int,
    order_file: pathlib.Path | None,
    noise_file: pathlib.Path | None,
    backend: str,
    device: str,
    threads: int | None,
    **settings: object,
) -> None:
    """Draw pictures with ARTIFACT."""
    if out is None and save_latents is None:
        raise RequestError("nothing to write: give --out GRID.png, --save-latents FILE.npy, or both")
    order = _read_array(order_file, "generation_order")
    noise = _read_array(noise_file, "noise")
    with Generator.load(artifact, backend=backend, device=device, threads=threads) as generator:
        if out is not None and generator.manifest.tokenizer == "none":
            raise RequestError(
                f"{artifact} has no decoder, so it makes latents, not pictures; use --save-latents instead of --out"
            )
        labels = _labels(classes, count, generator.manifest.model.class_num)
        if not 1 <= batch_size <= _MAX_COUNT:
            raise RequestError(f"--batch-size must lie in 1..{_MAX_COUNT}, found {batch_size}")
        started = time.perf_counter()
        results = _draw(generator, labels, batch_size, seed, order, noise, settings)
        seconds = time.perf_counter() - started
        names = generator.manifest.class_names
        click.echo(
            f"{len(labels)} pictures in {seconds:.2f} s, {seconds / len(labels):.3f} s each ({generator.description})"
        )
    if save_latents is not None:
        with replacing(save_latents) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate([result.latents for result in results]))
        click.echo(f"latents written to {save_latents}")
    if out is not None:
        images = np.concatenate([result.images for result in results if result.images is not None])
        captions = [names[label] if names else f"class {label}" for label in labels]
        save_grid(out, images, captions, columns=min(len(labels), max(len(set(labels)), _GRID_COLUMNS)))
        click.echo(f"grid written to {out}")


def _labels(classes: tuple[int, ...], count: int | None, class_num: int) -> list[int]:
    cycle = classes or tuple(range(class_num))
    wanted = len(cycle) if count is None else count
    if not 1 <= wanted <= _MAX_COUNT:
        raise RequestError(f"--count must lie in 1..{_MAX_COUNT}, found {wanted}")
    return [cycle[number % len(cycle)] for number in range(wanted)]


def _draw(
    generator: Generator,
    labels: list[int],
    batch_size: int,
    seed: int,
    order: NDArray[np.generic] | None,
    noise: NDArray[np.generic] | None,
    settings: dict[str, object],
) -> list[Result]:
    """All pictures, batch by batch, under a progress bar with the time left."""
    plan, config = generator.plan(**settings), generator.manifest.model
    check_labels(labels, config)
    if order is not None:
        order = check_order(order, len(labels), config)
    if noise is not None:
        noise = check_noise(noise, len(labels), plan.diffusion_steps, config)
    starts = range(0, len(labels), batch_size)
    results = []
    total = len(starts) * len(plan.iterations)
    with click.progressbar(length=total, label="drawing", file=sys.stderr) as bar:
        for start in starts:
            stop = min(start + batch_size, len(labels))
            results.append(
                generator.generate(
                    labels[start:stop],
                    seed=seed,
                    index=range(start, stop),
                    order=None if order is None else order[start:stop],
                    noise=None if noise is None else noise[:, start:stop],
                    progress=lambda done, of: bar.update(1),
                    **settings,  # type: ignore[arg-type]
                )
            )
    return results


def _read_array(path: pathlib.Path | None, key: str) -> NDArray[np.generic] | None:
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[np.generic] = archive[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, IndexError) as error:
        raise RequestError(f"{path}: not an .npz file with an array {key} ({error})") from None
    return array


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--verify", is_flag=True, help="Compare the hash of every file too.")
def inspect(artifact: pathlib.Path, verify: bool) -> None:
    """Show what ARTIFACT holds: model, engines, shapes, sizes, precision, origin, parity."""
    opened = Artifact(artifact)
    if verify:
        opened.verify()
    manifest = opened.manifest
    config = manifest.model
    total = sum(entry.bytes for entry in manifest.files.values())
    click.echo(f"{artifact}: {manifest.precision}, {_size(total)}" + (", every hash matches" if verify else ""))
    click.echo(
        f"\nmodel       {config.tokens} tokens of {config.token_channels} values, "
        f"{config.img_size}x{config.img_size} pixels, {config.class_num} classes, tokenizer {manifest.tokenizer}\n"
        f"            encoder {config.encoder_depth} x {config.encoder_embed_dim}, "
        f"decoder {config.decoder_depth} x {config.decoder_embed_dim}, head {config.diffloss_d} x {config.diffloss_w}"
    )
    click.echo(f"drawn with  {_settings(manifest.sampling)}, where a request names nothing else")
    if manifest.class_names:
        click.echo(f"classes     {', '.join(f'{number} {name}' for number, name in enumerate(manifest.class_names))}")
    for name, spec in manifest.specs.items():
        file = manifest.engines[name]
        size = sum(entry.bytes for path, entry in manifest.files.items() if path in (file, f"{file}.data"))
        click.echo(f"\n{name:14}{file}, {_size(size)}")
        for direction, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                click.echo(f"  {direction:3}  {tensor.name:14} {tensor.dtype:8} [{', '.join(map(str, tensor.shape))}]")
        parity = manifest.parity[name]
        click.echo(f"  relative L2 from eager PyTorch {parity['relative_l2']:.1e}, allowed {parity['tolerance']:.0e}")
    generation = manifest.parity["generation"]
    click.echo(
        f"\nwhole generation: relative L2 {generation['relative_l2']:.1e}, allowed {generation['tolerance']:.0e}"
    )
    click.echo("\nmade from   " + "\n            ".join(f"{key} {value}" for key, value in manifest.provenance.items()))


def _settings(sampling: Sampling) -> str:
    told = {name: value for name, value in dataclasses.asdict(sampling).items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
