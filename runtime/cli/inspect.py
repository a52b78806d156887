"""The command `mar inspect`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest, is_latents_report
from runtime.checks import pluralize, printable
from runtime.cli.inspect_image import inspect_image
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH
from runtime.distance import sqnr_db, tolerance_text
from runtime.errors import RequestError
from runtime.image_files import IMAGE_SUFFIXES
from runtime.model.engine_spec import AXES
from runtime.model.families import request_inputs


@click.command()
@click.argument("artifact", metavar="ARTIFACT|IMAGE", type=PATH)
@click.option("--verify", is_flag=True, help="Check the SHA-256 hash of every file of an artifact too.")
@json_option
def inspect(artifact: pathlib.Path, verify: bool, print_document: PrintDocument) -> None:
    """Show what an artifact contains, or how an image was made.

    Of an artifact: model, sampling settings, engines, shapes, sizes, parity and provenance. Of an image that mar wrote:
    class, seed, settings and artifact, and the command that makes it again.
    """
    if artifact.is_file() or (artifact.suffix.lower() in IMAGE_SUFFIXES and not artifact.exists()):
        if verify:
            raise RequestError(f"--verify is for the folder of an artifact, found the file {artifact}; leave it out")
        print_document(json_document("inspect", inspect_image(artifact)))
        return
    opened = Artifact(artifact)
    if verify:
        opened.verify(builds=True)
    manifest = opened.manifest
    click.echo(
        f"{artifact}: {manifest.precision}, {_size(_bytes(manifest))}" + (", every hash matches" if verify else "")
    )
    _print_model(manifest)
    click.echo(f"hash        {manifest.content_sha256}, of model, tokenizer and engines; its images carry it")
    if manifest.model.class_num == 0:
        click.echo(f"request     {', '.join(request_inputs(manifest.model, manifest.engines))}")
    click.echo(f"sampling    {manifest.sampling.describe()} (the default settings)")
    for name, preset in manifest.presets.items():
        click.echo(f"preset      {name}: {preset.describe()}")
    if manifest.class_names:
        classes = ", ".join(f"{number} {printable(name)}" for number, name in enumerate(manifest.class_names))
        click.echo(f"classes     {classes}")
    for name, spec in manifest.specs.items():
        file = manifest.engines[name]
        click.echo(f"\n{name:14}{file}, {_size(_bytes(manifest, name))}")
        for direction, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                click.echo(f"  {direction:3}  {tensor.name:14} {tensor.dtype:8} [{tensor.shape_letters()}]")
        report = manifest.parity[name]
        # The effect of one quantized engine on latents has no tolerance, though some manifests name one.
        click.echo(f"  {_distance(report)}" + ("" if is_latents_report(report) else _allowed(report)))
        _on_openvino(report)
    generation = manifest.parity["generation"]
    click.echo(f"\ncomplete generation: {_distance(generation)}{_allowed(generation)}")
    _on_openvino(generation)
    click.echo(f"shapes: {_axes(manifest)}")
    click.echo("\nprovenance  " + "\n            ".join(f"{key} {value}" for key, value in manifest.provenance.items()))
    print_document(json_document("inspect", _describe(artifact, manifest, verify)))


def _print_model(manifest: Manifest) -> None:
    config = manifest.model
    height, width, _ = config.image_shape
    click.echo(
        f"\nmodel       {pluralize(config.tokens, 'token')} of {pluralize(config.token_channels, 'value')}, "
        f"{width}x{height} pixels, {pluralize(config.class_num, 'class')}, tokenizer {manifest.tokenizer}"
        + "".join(f"\n            {line}" for line in config.describe())
    )


def _axes(manifest: Manifest) -> str:
    """Return what the letters in the shapes of an artifact's engines stand for."""
    tensors = [tensor for spec in manifest.specs.values() for tensor in (*spec.inputs, *spec.outputs)]
    used = {letter for tensor in tensors for letter in tensor.shape_letters() if letter in AXES}
    return ", ".join(f"{letter} {meaning}" for letter, meaning in AXES.items() if letter in used)


def _describe(path: pathlib.Path, manifest: Manifest, verified: bool) -> dict[str, Any]:
    """Return the content of the JSON document."""
    stored = manifest.to_dict()
    keys = ("precision", "tokenizer", "model", "class_names", "sampling", "presets", "parity", "provenance")
    engines = {name: {**engine, "bytes": _bytes(manifest, name)} for name, engine in stored["engines"].items()}
    return {
        "artifact": str(path),
        "content_sha256": manifest.content_sha256,
        "format_version": stored["format_version"],
        "bytes": _bytes(manifest),
        "verified": verified,
        **{key: stored[key] for key in keys},
        "engines": engines,
        "builds": [dataclasses.asdict(build) for build in manifest.builds],
    }


def _bytes(manifest: Manifest, engine: str | None = None) -> int:
    """Return the bytes of all files of an artifact, or of the graph of one engine."""
    return sum(entry.bytes for entry in manifest.files.values()) if engine is None else manifest.graph_bytes(engine)


def _distance(report: Mapping[str, Any]) -> str:
    between = "of latents from those in float32" if is_latents_report(report) else "from eager PyTorch"
    distance = report["relative_l2"]
    return f"relative L2 {between} {distance:.1e} ({sqnr_db(distance):.0f} dB)"


def _allowed(report: Mapping[str, Any]) -> str:
    return f", allowed {tolerance_text(report['tolerance'])}"


def _on_openvino(report: Mapping[str, Any]) -> None:
    if "openvino" in report:
        found = report["openvino"]
        click.echo(f"  on OpenVINO, products in {found['products']}: {_distance(found)}{_allowed(found)}")


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
