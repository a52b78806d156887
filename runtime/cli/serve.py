"""The command `mar serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib

import click

from runtime.checks import truncate
from runtime.cli.batch_options import batch_options
from runtime.cli.options import PATH, backend_options, default_preset_option, threads_option
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.log import LOG
from runtime.service.access import read_api_keys
from runtime.service.app import create_app
from runtime.service.served_model import check_model_name
from runtime.service.server import LOOPBACK_NAMES, bind, is_loopback, url
from runtime.service.server import serve as serve_until_stopped
from runtime.service.settings import ServiceSettings, limits

_DEFAULTS = ServiceSettings()
_MIB = 2**20


@click.command()
@click.argument("artifacts", metavar="[NAME=]ARTIFACT...", nargs=-1, required=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. With the default only this machine can connect, with 0.0.0.0 others can too.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 means any free one."
)
@default_preset_option
@batch_options(
    "The largest number of images that are drawn together.",
    "How many milliseconds a batch with free places waits for clients that were just answered: they may ask again.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(*limits("max_queue")),
    default=_DEFAULTS.max_queue,
    show_default=True,
    help="The largest number of images that may wait, for each model. A request for more gets status 429.",
)
@click.option(
    "--max-images",
    type=click.IntRange(*limits("max_images")),
    default=_DEFAULTS.max_images,
    show_default=True,
    help="The largest number of images in one request.",
)
@click.option(
    "--max-body-mb",
    type=click.IntRange(1, limits("max_body")[1] // _MIB),
    default=_DEFAULTS.max_body // _MIB,
    show_default=True,
    help="The largest size of one request, in MiB.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(*limits("timeout")),
    default=_DEFAULTS.timeout,
    show_default=True,
    help="How many seconds a request may take. After that it gets status 504, and its images are given up.",
)
@click.option(
    "--drain-s",
    type=click.FloatRange(1, 86_400),
    default=30.0,
    show_default=True,
    help="How many seconds the service waits for unfinished requests after SIGTERM or Ctrl-C.",
)
@click.option(
    "--api-keys",
    type=PATH,
    metavar="FILE",
    help="A file with one API key on each line. Every request must then carry one of them.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A further host name that requests may use for this service. Repeat it for several. On a loopback address "
    "they may use localhost, 127.0.0.1, ::1 and --host; on another one any name, unless this option is given.",
)
@backend_options
@threads_option
def serve(
    artifacts: tuple[str, ...],
    host: str,
    port: int,
    preset: str | None,
    max_batch: int,
    max_wait_ms: float,
    max_queue: int,
    max_images: int,
    max_body_mb: int,
    timeout_s: float,
    drain_s: float,
    api_keys: pathlib.Path | None,
    allowed_hosts: tuple[str, ...],
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
) -> None:
    """Serve images of ARTIFACT over HTTP: the images API of OpenAI, and the Open Inference Protocol.

    Each artifact is a model with the name NAME, or that of its folder. Requests that name no model get the first.
    """
    folders = _named(artifacts)
    settings = ServiceSettings(
        preset=preset,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        max_queue=max_queue,
        max_images=max_images,
        max_body=max_body_mb * _MIB,
        timeout=timeout_s,
        api_keys=() if api_keys is None else read_api_keys(api_keys),
    )
    with bind(host, port) as bound, contextlib.ExitStack() as loaded:
        if allowed_hosts or is_loopback(bound):
            settings = dataclasses.replace(settings, hosts=(*LOOPBACK_NAMES, host, *allowed_hosts))
        load = functools.partial(
            Generator.load, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
        )
        generators = {
            name: loaded.enter_context(load(folder, split_batches=max_batch > 1)) for name, folder in folders.items()
        }
        app = create_app(generators, settings)
        if not settings.api_keys and not is_loopback(bound):
            LOG.warning(f"anybody who reaches {host} can use this service: it has no --api-keys")
        click.echo(f"{', '.join(generators)} at {url(bound)}; the first image is being drawn")
        serve_until_stopped(app, bound, drain_s)


def _named(artifacts: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Return the folders of the artifacts by name. The name of one that is given without is that of its folder."""
    folders: dict[str, pathlib.Path] = {}
    for text in artifacts:
        name, equals, path = text.partition("=")
        if not text or (equals and not path):
            raise RequestError(f"{truncate(text)} names no artifact; write ARTIFACT or NAME=ARTIFACT")
        folder = pathlib.Path(path if equals else text)
        name = name if equals else folder.resolve().name
        check_model_name(name)
        if name in folders:
            raise RequestError(f"two artifacts have the name {truncate(name)}; write NAME=ARTIFACT for one of them")
        folders[name] = folder
    return folders
