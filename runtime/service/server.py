"""The server process of an application: its socket, its signals, and its log."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from runtime.errors import RequestError
from runtime.service.service import Service
from runtime.service.service_log import HANDLER, LOG

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 2048
SECONDS_TO_FAIL = 10
"""How long a service that ends waits, after the drain, for the iteration that runs and for the answers about it."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address. Connections are refused until the server listens on it.

    Raises:
        RequestError: The address does not exist here, or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot listen on {host} port {port} ({reason}); choose another --host or --port") from None
    return bound


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""The names and addresses by which this machine asks itself."""


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine can connect to a bound socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def url(bound: socket.socket) -> str:
    """Return the URL of a server that listens on a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def serve(app: Starlette, bound: socket.socket, drain_seconds: float) -> None:
    """Serve an application until SIGTERM or Ctrl-C, then finish the requests that run.

    Args:
        app: The application.
        bound: The socket, from `bind`.
        drain_seconds: How long the requests that run are waited for. Then, or after a second signal, they fail.
    """
    _log_warnings()
    config = uvicorn.Config(
        app,
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(drain_seconds) + SECONDS_TO_FAIL,
    )
    asyncio.run(_Server(config, app.state.service, drain_seconds).serve([bound]))


class _Server(uvicorn.Server):
    """A server that SIGTERM and Ctrl-C stop, and that then ends as after its own wish."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # it is obeyed already

    def _stop(self) -> None:
        """Obey a signal."""
        if self.should_exit:
            self._end_requests()
            return
        self.should_exit = self._service.stopping = True
        LOG.info("stopping: no new requests, those that run are finished")
        asyncio.get_running_loop().call_later(self._drain_seconds, self._end_requests)

    def _end_requests(self) -> None:
        LOG.info("stopping: requests that run are not finished any more")
        asyncio.get_running_loop().run_in_executor(None, self._service.end_requests)


def _log_warnings() -> None:
    """Write warnings of the HTTP server into the log, unless --log-level asks for less."""
    server = logging.getLogger("uvicorn")
    server.setLevel(max(logging.WARNING, LOG.getEffectiveLevel()))
    server.handlers, server.propagate = [HANDLER], False
