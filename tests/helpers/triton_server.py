"""A real Triton Inference Server on this machine; `make .venv/triton` installs it from the package nvidia-pytriton."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.helpers.running_services import ask

_PYTHON = "python{}.{}".format(*sys.version_info)
_ENVIRONMENT = pathlib.Path(sys.prefix) / "triton"
_PACKAGES = _ENVIRONMENT / "lib" / _PYTHON / "site-packages"
_START_SECONDS = 120


@contextlib.contextmanager
def triton_server(repository: pathlib.Path, work: pathlib.Path) -> Iterator[int]:
    """Serve a model repository until the block ends.

    Args:
        repository: The folder of the repository.
        work: An empty folder for the backend and the log.

    Yields:
        The server's port on 127.0.0.1. All models are ready.
    """
    server = _PACKAGES / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    assert server.exists(), "Triton is not installed; run `make .venv/triton`"
    command = [
        str(server),
        f"--model-repository={repository}",
        f"--backend-directory={_python_backend(work)}",
        "--http-address=127.0.0.1",
        f"--http-port={(port := _free_port())}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    environment = {
        **os.environ,
        "PATH": f"{_ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",  # its python3 says where packages are
        "LD_LIBRARY_PATH": str(_PACKAGES / "nvidia_pytriton.libs"),
    }
    log = work / "triton.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def _python_backend(work: pathlib.Path) -> pathlib.Path:
    """Make the folder of backends, with the stub for this version of Python."""
    backends = work / "backends"
    shutil.copytree(_PACKAGES / "pytriton" / "tritonserver" / "backends" / "python", backends / "python")
    stubs = _PACKAGES / "pytriton" / "tritonserver" / "python_backend_stubs"
    shutil.copy(stubs / _PYTHON.removeprefix("python") / "triton_python_backend_stub", backends / "python")
    return backends


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _is_ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/v2/health/ready").status == 200
    except OSError:
        return False
