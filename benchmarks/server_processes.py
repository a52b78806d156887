"""Servers as processes: started, waited for, watched in /proc, and stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from runtime.errors import MarError
from runtime.service.operations import READY
from tests.helpers.running_services import ask

_LONGEST_START, _LONGEST_STOP = 120.0, 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every server gets.

    Attributes:
        artifact: The folder of the artifact.
        preset: The preset of all images.
        threads: The number of processor threads of a generator. None: all.
    """

    artifact: pathlib.Path
    preset: str
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class ServerProcess:
    """A server that listens on 127.0.0.1.

    Attributes:
        process: Its process, which has ended after the block of `running`.
        port: Its port.
    """

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


def service(settings: Settings, *options: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """Run `mar serve`, with further options, until the block ends."""
    threads = () if settings.threads is None else ("--threads", str(settings.threads))
    command = ("-m", "runtime.cli", "serve", str(settings.artifact), "--preset", settings.preset, *threads, *options)
    return running(command, READY)


def plain(settings: Settings) -> contextlib.AbstractContextManager[ServerProcess]:
    """Run `benchmarks.plain_handler` until the block ends."""
    environment = {"PLAIN_ARTIFACT": str(settings.artifact), "PLAIN_PRESET": settings.preset}
    if settings.threads is not None:
        environment["PLAIN_THREADS"] = str(settings.threads)
    return running(("-m", "uvicorn", "benchmarks.plain_handler:app"), "/openapi.json", environment)


@contextlib.contextmanager
def running(
    command: Sequence[str], ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run a server until the block ends, then stop it by SIGTERM.

    Args:
        command: The arguments of Python; `--port` and a free port follow them.
        ready: The path that is answered with status 200 once the server is ready.
        environment: Further environment variables.

    Raises:
        MarError: The server ended before it was ready, or is not ready in time.
    """
    with tempfile.TemporaryFile() as log:
        port = _free_port()
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=log,
        )
        try:
            if not _wait_until_ready(process, port, ready):
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-500:]
                raise MarError(f"python {' '.join(command)} did not become ready; it said: {said}")
            yield ServerProcess(process, port)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_LONGEST_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    deadline = time.monotonic() + _LONGEST_START
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if ask(port, "GET", path).status == 200:
                return True
        time.sleep(0.1)
    return False


def usage(pid: int) -> dict[str, int]:
    """Return the resident memory of a process in bytes, and the numbers of its file descriptors and threads."""
    folder = pathlib.Path("/proc") / str(pid)
    lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "memory_bytes": 1024 * int(status["VmRSS"][0]),
        "file_descriptors": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"][0]),
    }
