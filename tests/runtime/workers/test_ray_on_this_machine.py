"""Workers of Ray on this machine: what they leave, whom they talk to, and what a killed command keeps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from runtime.image_records.index import INDEX, read_index
from tests.helpers.command_line import Mar
from tests.helpers.one_ray import one_ray_at_a_time

ROOT = pathlib.Path(__file__).parents[3]
SETTINGS = "--iterations 4 --diffusion-steps 100 --batch-size 4 --shard-size 8 --count 240"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTENING = "0A"


def processes(temporary: pathlib.Path) -> dict[pathlib.Path, list[bytes]]:
    """The processes of this command, which have its folder for temporary files in their environment: each with its
    environment, because a process that ends later has none.
    """
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"TMPDIR={temporary}".encode() in environment:
                found[process] = environment
    return found


def listening_addresses(found: Iterable[pathlib.Path]) -> set[str]:
    """The addresses, in hexadecimal, on which these processes listen."""
    sockets = set()
    for process in found:
        for descriptor in process.glob("fd/*"):
            with contextlib.suppress(OSError):
                sockets.add(str(descriptor.readlink()))
    tables = [pathlib.Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {line[1].split(":")[0] for line in lines if line[3] == LISTENING and f"socket:[{line[9]}]" in sockets}


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


@contextlib.contextmanager
def command(artifact: pathlib.Path, work: pathlib.Path, proxy: int) -> Iterator[subprocess.Popen[str]]:
    """`mar generate-dataset` with two workers, and with home and temporary folders of its own.

    `proxy` is the port of this machine to which every request to a web server goes.
    """
    arguments = ["-m", "runtime.cli", "generate-dataset", str(artifact), "--out", "out", *SETTINGS.split()]
    folders = {"HOME": str(work / "home"), "TMPDIR": str(work / "t"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *arguments, "--workers", "2"],
        cwd=work,
        env={"PATH": os.environ["PATH"], "CI": "", "http_proxy": f"http://127.0.0.1:{proxy}", **folders},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A folder with a short name, because that of Ray's sockets must be short."""
    with one_ray_at_a_time(tmp_path_factory), tempfile.TemporaryDirectory(dir="/tmp", prefix="m") as folder:
        for name in ("home", "t"):
            pathlib.Path(folder, name).mkdir()
        yield pathlib.Path(folder)


def test_a_killed_command_keeps_what_is_finished_and_leaves_no_process(
    mar: Mar, pixel_artifact: pathlib.Path, work: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A worker is killed, then the command; the command given again, by this process, completes the same dataset."""
    index = work / "out" / INDEX

    def finished() -> int:
        return index.read_text().count("\n") if index.exists() else 0

    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        command(pixel_artifact, work, proxy.getsockname()[1]) as driver,
    ):
        wait_until(lambda: finished() or driver.poll() is not None)
        running = processes(work / "t")
        workers = [process for process in running if (process / "cmdline").read_bytes().startswith(b"ray::MapWorker")]
        assert workers
        assert all(b"RAY_USAGE_STATS_ENABLED=0" in running[process] for process in workers)
        assert listening_addresses(running) <= LOOPBACK
        (log,) = (work / "t").glob(".mar-*/session_latest/logs/dashboard.log")
        assert "Usage reporting is disabled" in log.read_text()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # it asked no cloud who hosts this machine, which it does before
            proxy.accept()
        os.kill(int(workers[0].name), signal.SIGKILL)
        before = finished()
        wait_until(lambda: finished() >= before + 16 or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        driver.kill()
        said, warned = driver.communicate()
    assert said == ""
    assert all(line.startswith("drawing images: ") for line in warned.splitlines())
    wait_until(lambda: not processes(work / "t"))
    assert list((work / "home").iterdir()) == []
    kept = {entry.file: (work / "out" / entry.file).stat().st_ino for entry in read_index(index)}
    assert 16 <= len(kept) < 240
    one_process = f"generate-dataset {SETTINGS} --threads 1"
    assert mar(one_process, pixel_artifact, "--out", work / "out").code == 0
    assert {name: (work / "out" / name).stat().st_ino for name in kept} == kept  # nothing was drawn again
    assert mar(one_process, pixel_artifact, "--out", tmp_path / "whole").code == 0
    assert index.read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()  # names, classes and hashes
