"""A service that listens in a thread of the test, and a plain HTTP client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import uvicorn

from runtime.generator import Generator
from runtime.service.app import create_app
from runtime.service.server import bind
from runtime.service.service import Service
from runtime.service.service_log import LOG
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import WAIT


class Answer(NamedTuple):
    """The answer of a service."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """Send a request to a port of this machine; a body that is no bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    with contextlib.closing(connect(port)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def figures(port: int) -> dict[str, float]:
    """Return the figures of `/metrics` by name and labels."""
    lines = ask(port, "GET", "/metrics").body.decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


class RunningService:
    """A service, and where it listens.

    Attributes:
        service: The service.
        port: Its port on 127.0.0.1.
        url: Its URL.
    """

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port, self.url = service, port, f"http://127.0.0.1:{port}"

    def connect(self) -> http.client.HTTPConnection:
        return connect(self.port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; a body that is no bytes is sent as JSON."""
        return ask(self.port, method, path, body, **headers)

    def figures(self) -> dict[str, float]:
        """The figures of `/metrics` by name and labels."""
        return figures(self.port)


@contextlib.contextmanager
def running_service(generators: Mapping[str, Generator], settings: ServiceSettings) -> Iterator[RunningService]:
    """Serve generators until the block ends, which closes them. Only warnings are logged."""
    LOG.setLevel(logging.WARNING)
    app = create_app(generators, settings)
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([bound]),))
        thread.start()
        try:
            until(lambda: server.started)
            yield RunningService(app.state.service, port)
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.01)
