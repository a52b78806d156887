"""The service on Ray Serve: the application of `mar serve` in several replicas, on one machine or many.

It is started by `serve run runtime.service.ray_app:build artifact=/models/clothes replicas=2`, or by a configuration of
Ray Serve with the same `import_path` and `args`. Every replica loads the artifact and batches the requests it gets.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette

from runtime.backends import uses_gpu
from runtime.backends.telemetry import import_library
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.service.access import read_api_keys
from runtime.service.app import create_app
from runtime.service.settings import ServiceSettings, limited, limits
from runtime.storage.schema import SchemaError, parse_object

_REQUESTS = 10_000  # of one replica, which refuses too many itself


def _limited(setting: str, unit: int = 1) -> Any:
    """Return a field with the default and the limits of a setting of the service, in another unit."""
    least, most = limits(setting)
    return limited(unit * getattr(ServiceSettings, setting), unit * least, unit * most)


@dataclasses.dataclass(frozen=True)
class RayArguments:
    """The arguments of `build`. Those that `mar serve` has too mean the same.

    Attributes:
        artifact: The folder of the artifact, which has the same path on every machine.
        name: The name of the model; empty for that of the folder.
        replicas: The number of replicas.
        threads: The processor threads of each replica.
        backend: The library that runs the engines.
        device: The device that runs them.
        preset: The preset of requests that name none.
        max_batch: The most images that a replica draws together.
        max_wait_ms: How long a batch that is not full waits.
        max_queue: The most images that wait in a replica.
        timeout_s: How long a request may take.
        api_keys: A file of API keys, with the same path on every machine; empty for none.
    """

    artifact: str
    name: str = ""
    replicas: int = dataclasses.field(default=1, metadata={"least": 1, "most": 10_000})
    threads: int = dataclasses.field(default=1, metadata={"least": 1, "most": 1024})
    backend: str = "onnxruntime"
    device: str | None = None
    preset: str | None = None
    max_batch: int = _limited("max_batch")
    max_wait_ms: float = _limited("max_wait", 1000)
    max_queue: int = _limited("max_queue")
    timeout_s: float = _limited("timeout")
    api_keys: str = ""


def build(arguments: Mapping[str, Any]) -> Any:
    """Return the application of Ray Serve.

    Args:
        arguments: The fields of `RayArguments`. Numbers may be texts, as on a command line.

    Raises:
        RequestError: An argument is missing, unknown, or has a wrong value.
        BackendError: Ray Serve is not installed.
    """
    checked = parse_arguments(arguments)
    try:
        serve = import_library("ray.serve")
    except ImportError as error:
        raise BackendError(
            f"this service needs the Python package {error.name or 'ray'}; pip install 'mar-runtime[ray,serve]'"
        ) from None
    gpus = 1 if uses_gpu(checked.backend, checked.device) else 0
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="mar",
        num_replicas=checked.replicas,
        max_ongoing_requests=_REQUESTS,
        ray_actor_options={"num_cpus": checked.threads, "num_gpus": gpus},
    )
    return deployment.bind(checked)


def parse_arguments(arguments: Mapping[str, Any]) -> RayArguments:
    """Return checked arguments; raise `RequestError` for wrong ones."""
    numbers = {field.name: field.type for field in dataclasses.fields(RayArguments) if field.type in ("int", "float")}
    values = dict(arguments)
    try:
        for name in numbers.keys() & values.keys():
            values[name] = int(values[name]) if numbers[name] == "int" else float(values[name])
        return parse_object(RayArguments, values, "arguments")
    except SchemaError as error:
        raise RequestError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"arguments: {error}") from None


class Replica:
    """One replica: Ray Serve makes it, and sends it requests as they come over HTTP."""

    def __init__(self, arguments: RayArguments) -> None:
        self._arguments = arguments

    def __serve_build_asgi_app__(self) -> Starlette:
        """Load the artifact, and return the application."""
        chosen = self._arguments
        settings = ServiceSettings(
            preset=chosen.preset,
            max_batch=chosen.max_batch,
            max_wait=chosen.max_wait_ms / 1000,
            max_queue=chosen.max_queue,
            timeout=chosen.timeout_s,
            urls=chosen.replicas == 1,
            api_keys=read_api_keys(pathlib.Path(chosen.api_keys)) if chosen.api_keys else (),
        )
        folder = pathlib.Path(chosen.artifact)
        generator = Generator.load(
            folder,
            backend=chosen.backend,
            device=chosen.device,
            threads=chosen.threads,
            split_batches=chosen.max_batch > 1,
        )
        return create_app({chosen.name or folder.resolve().name: generator}, settings)
