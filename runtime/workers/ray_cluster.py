"""A connection to Ray: to a cluster, or to workers that are started on this machine for one command.

Ray on this machine listens on the loopback address only, asks for a token that nobody else knows, has no dashboard, and
keeps its files in a folder that is removed at the end. It sends no usage statistics, and asks no cloud who hosts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import secrets
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from runtime.backends.telemetry import import_library
from runtime.checks import truncate
from runtime.errors import BackendError, RequestError
from runtime.storage.files import scratch_folder
from runtime.workers.worker_group import Workers

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # on every system: whether Ray listens for other machines
_ATTEMPTS = 3  # to start: on a busy machine a part of Ray may take longer than the 15 seconds that Ray waits for it
_OBJECT_BYTES = 2**30
_LONGEST_FOLDER = 45  # characters: Ray adds 62 for its sockets, whose paths have at most 107
_ADDRESS = re.compile(r"([\w.:\[\]-]+):([0-9]{1,5})")
_SECONDS_TO_CONNECT = 10.0
_NO_WEB = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}  # a proxy where nothing listens
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def connected(workers: Workers) -> Iterator[Any]:
    """Connect to the cluster of `workers`, or start one on this machine, and give the module `ray` to the block.

    Raises:
        RequestError: The address is none.
        BackendError: Ray is not installed or does not start, or the cluster cannot be reached.
    """
    if workers.address is not None:
        _check_address(workers.address)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_python_on_standard_error())
        with _own_signal_handlers():
            if "ray" not in sys.modules:  # it reads these when it is imported
                _set_environment(workers)
            ray = _import_ray()
            settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if workers.address is None:
                settings |= _on_this_machine(workers, stack.enter_context(scratch_folder()))
            else:
                settings |= {"address": workers.address}
            stack.callback(ray.shutdown)
            _start(ray, settings, workers)
        yield ray


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated parts
            ray = import_library("ray")
            data = import_library("ray.data")
    except ImportError as error:
        raise BackendError(
            f"several workers need the Python package {error.name or 'ray'}; pip install 'mar-runtime[ray]', or use "
            "one worker"
        ) from None
    data.DataContext.get_current().enable_progress_bars = False
    return ray


def _set_environment(workers: Workers) -> None:
    """Have Ray print nothing; and on this machine listen on the loopback address, and ask for a token in no file."""
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if workers.address is None:
        os.environ[_CLUSTERS] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _on_this_machine(workers: Workers, folder: pathlib.Path) -> dict[str, Any]:
    if len(str(folder)) > _LONGEST_FOLDER:
        raise BackendError(
            f"{folder.parent}: this folder for temporary files has too long a name for the sockets of Ray; set TMPDIR "
            "to a shorter one"
        )
    return {
        "address": "local",  # whatever RAY_ADDRESS says
        "num_cpus": (workers.count or 1) * workers.threads,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_BYTES,
        "_temp_dir": str(folder),
    }


def _check_address(address: str) -> None:
    """Check that a cluster answers, for which Ray would wait minutes.

    Raises:
        RequestError: It is no address.
        BackendError: Nothing answers there.
    """
    match = _ADDRESS.fullmatch(address)
    if address == "auto":
        return
    if match is None:
        raise RequestError(f"--ray must be HOST:PORT or auto, found {truncate(address)}")
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"no Ray cluster answers at {address} ({error}); give the address that ray start --head has printed"
        ) from None


def _start(ray: Any, settings: dict[str, Any], workers: Workers) -> None:
    where = f"the Ray cluster at {workers.address}" if workers.address else "Ray on this machine"
    for attempts_left in reversed(range(1 if workers.address else _ATTEMPTS)):
        try:
            with warnings.catch_warnings(), _no_web():
                warnings.simplefilter("ignore")
                ray.init(**settings)
                break
        except Exception as error:  # Ray raises errors of many kinds
            ray.shutdown()
            if not attempts_left:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise BackendError(f"{where} cannot be used ({reason})") from error
    if workers.gpu and ray.cluster_resources().get("GPU", 0) < 1:
        raise BackendError(f"{where} has no GPU; start its nodes with --num-gpus, or use --device cpu")


@contextlib.contextmanager
def _no_web() -> Iterator[None]:
    """Have the processes of Ray that are started in the block reach no web server.

    One of them asks the metadata services of three clouds who hosts this machine, before it looks whether statistics
    are off (Ray 2.60). It asks through the proxy of the environment. What Ray says to itself goes through no proxy.
    """
    before = {name: os.environ.get(name) for name in _NO_WEB}
    os.environ.update(_NO_WEB)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the handlers of signals, in whose place Ray sets its own."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def _only_python_on_standard_error() -> Iterator[None]:
    """Drop what libraries in C++ print on standard error; what Python prints there is still seen."""
    python, descriptor, nothing = sys.stderr, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as kept:
        try:
            python.flush()
            if python is sys.__stderr__:
                sys.stderr = kept
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(descriptor, 2)
            sys.stderr = python
            os.close(nothing)
            os.close(descriptor)
