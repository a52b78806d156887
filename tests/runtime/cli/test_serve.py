"""The command `mar serve`: what it says, what it refuses before it listens, and how it stops."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.cli.serve import _named
from runtime.errors import RequestError
from tests.helpers.command_line import Mar
from tests.helpers.fake_generators import WAIT
from tests.helpers.running_services import until


class Process:
    """A process of `mar serve`."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "runtime.cli.main", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+:\d+", self.said)
        assert found, self.process.communicate()
        self.url = found[0]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)

    def status(self, host: str) -> int:
        """Return the status of a request with a header Host."""
        request = urllib.request.Request(f"{self.url}/livez", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def is_ready(self) -> bool:
        try:
            return bool(self.ask("/readyz"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self, number: signal.Signals) -> tuple[int, list[dict[str, Any]]]:
        """Send a signal, and return the exit code and the log."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=WAIT)
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]


@pytest.fixture(scope="module")
def process(pixel_artifact: pathlib.Path) -> Iterator[Process]:
    process = Process(f"pixels={pixel_artifact}", "--threads", 1, "--max-batch", 1, "--allowed-host", "clothes.example")
    yield process
    process.process.kill()
    process.process.communicate()


def test_on_loopback_it_answers_to_its_own_names_only(process: Process) -> None:
    until(process.is_ready)
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "clothes.example"):
        assert process.status(host) == 200, host
    assert process.status("rebound.example") == 403


def test_sigterm_finishes_what_runs_and_exits_0(process: Process) -> None:
    until(process.is_ready)
    body = {"prompt": "dog", "seed": 1, "n": 8, "preset": "exact", "stream": True, "partial_images": 1}
    request = urllib.request.Request(f"{process.url}/v1/images/generations", json.dumps(body).encode())
    answer = urllib.request.urlopen(request, timeout=WAIT)  # the first event is not there yet
    stopped: list[Any] = []
    stopping = threading.Thread(target=lambda: stopped.append(process.stop(signal.SIGTERM)))
    stopping.start()
    events = answer.read().decode()
    stopping.join(WAIT)
    assert events.count("event: image_generation.completed") == 8
    ((code, log),) = stopped
    assert code == 0
    messages = [line["message"] for line in log]
    assert "ready" in messages
    assert any(message.startswith("stopping") for message in messages)
    (noted,) = [line for line in log if line.get("path") == "/v1/images/generations"]
    assert noted["status"] == 200
    assert noted["request_id"] == answer.headers["x-request-id"]
    with pytest.raises(urllib.error.URLError):
        process.ask("/livez")


def test_a_second_signal_fails_what_runs_and_it_exits_0(pixel_artifact: pathlib.Path) -> None:
    process = Process(f"pixels={pixel_artifact}", "--threads", 1, "--max-batch", 1)
    until(process.is_ready)
    body = {"prompt": "dog", "n": 10, "preset": "exact", "stream": True}
    request = urllib.request.Request(f"{process.url}/v1/images/generations", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        process.process.send_signal(signal.SIGTERM)
        code, log = process.stop(signal.SIGINT)
        events = answer.read().decode()
    assert code == 0
    assert "event: error" in events or events.count("completed") == 10
    assert [line for line in log if line["level"] == "error"] == []


def test_a_damaged_artifact_stops_it_before_it_listens(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(pixel_artifact, artifact)
    content = bytearray((artifact / "backbone.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "backbone.onnx").write_bytes(content)
    ended = mar("serve --port 0", pixel_artifact, f"second={artifact}")
    assert ended.code == 1
    assert ended.out == ""
    assert re.fullmatch(r"mar: .*backbone\.onnx: altered since export, .*\n", ended.err)


def test_a_port_in_use_is_told_before_anything_is_loaded(mar: Mar) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = mar(f"serve no-artifact --port {port}")
    assert ended.code == 2
    assert ended.err == (
        f"mar: cannot listen on 127.0.0.1 port {port} (Address already in use); choose another --host or --port\n"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serve", "Missing argument '[NAME=]ARTIFACT...'"),
        ("serve no-artifact --port 0", "no-artifact: not an artifact"),
        ("serve no-artifact --host no.such.host.invalid", "cannot listen on no.such.host.invalid"),
        ("serve ''", "'' names no artifact; write ARTIFACT or NAME=ARTIFACT"),
        ("serve a=", "'a=' names no artifact; write ARTIFACT or NAME=ARTIFACT"),
        ("serve a/x b/x", "two artifacts have the name 'x'; write NAME=ARTIFACT for one of them"),
        ("serve 'a b=x'", "the name of a model must have 1 to 64 letters"),
        ("serve x --api-keys no-file", "no-file: cannot be read"),
        ("serve x --max-batch 0", "--max-batch"),
    ],
)
def test_wrong_use_is_one_line(mar: Mar, line: str, message: str) -> None:
    ended = mar(line)
    assert ended.code in (1, 2)
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_an_unknown_preset_and_an_artifact_without_images_are_told(
    mar: Mar, pixel_artifact: pathlib.Path, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    ended = mar("serve --port 0 --preset slow", pixel_artifact)
    assert (ended.code, "preset must be one of exact," in ended.err) == (2, True)
    ended = mar("serve --port 0", golden_artifacts["small"])
    assert (ended.code, "has no decoder, so it makes latents" in ended.err) == (2, True)


def test_names_of_artifacts() -> None:
    assert _named(("out/artifact", "b=x=y")) == {"artifact": pathlib.Path("out/artifact"), "b": pathlib.Path("x=y")}
    assert next(iter(_named((".",)))) == pathlib.Path.cwd().name
    with pytest.raises(RequestError, match="two artifacts"):
        _named(("x", "x=y"))


def test_without_a_key_other_addresses_are_told_in_one_line(pixel_artifact: pathlib.Path) -> None:
    process = Process(f"pixels={pixel_artifact}", "--host", "0.0.0.0", "--threads", 1)
    until(process.is_ready)
    assert process.status("other.example") == 200
    process.process.send_signal(signal.SIGINT)
    _, err = process.process.communicate(timeout=WAIT)
    assert process.process.returncode in (0, 130)
    assert err.splitlines()[0] == "anybody who reaches 0.0.0.0 can use this service: it has no --api-keys"
