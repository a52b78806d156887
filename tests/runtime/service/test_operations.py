"""What operators rely on: health, figures, logs, limits, keys, and requests that end early or fail."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.errors import BackendError
from runtime.service.service_log import LOG, JsonLines
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import FakeEngines, Gate, fake_generator
from tests.helpers.running_services import Answer, RunningService, running_service, until

GENERATIONS = "/v1/images/generations"
CAT = {"prompt": "cat", "seed": 1}


class Held:
    """A service whose engine waits at a gate."""

    def __init__(self, running: RunningService, engines: FakeEngines, gate: Gate) -> None:
        self.running, self.engines, self.gate = running, engines, gate

    def ask_in_thread(self, body: dict[str, Any], answers: list[Answer]) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.append(self.running.ask("POST", GENERATIONS, body)))
        thread.start()
        return thread

    def waiting(self) -> float:
        return self.running.figures()['mar_queue_depth{model="owls"}']


@contextlib.contextmanager
def held(**settings: Any) -> Iterator[Held]:
    gate = Gate()
    engines = FakeEngines(gate)
    with running_service({"owls": fake_generator(engines)}, ServiceSettings(**settings)) as running:
        gate.wait_until_reached()  # the first image
        try:
            yield Held(running, engines, gate)
        finally:
            gate.open()


@pytest.fixture
def held_service() -> Iterator[Held]:
    with held() as service:
        yield service


def finish_first_image(service: Held) -> None:
    """Let the first image of the service be drawn, whose four passes the gate holds back."""
    service.gate.let(4)
    for _ in range(3):
        service.gate.wait_until_reached()
    until(lambda: service.running.service.ready)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    settings = ServiceSettings(max_body=4096)
    with running_service({"owls": fake_generator()}, settings) as running:
        until(lambda: running.service.ready)
        yield running


def test_it_lives_at_once_and_is_ready_after_its_first_image(held_service: Held) -> None:
    running = held_service.running
    assert running.ask("GET", "/livez").status == running.ask("GET", "/v2/health/live").status == 200
    for path in ("/readyz", "/v2/health/ready", "/v2/models/owls/ready"):
        assert running.ask("GET", path).status == 503
    finish_first_image(held_service)
    for path in ("/readyz", "/v2/health/ready", "/v2/models/owls/ready"):
        assert running.ask("GET", path).status == 200
    running.service.stopping = True
    assert running.ask("GET", "/readyz").json == {"status": "stopping"}


def test_figures_have_the_names_that_operators_know(service: RunningService) -> None:
    assert service.ask("POST", GENERATIONS, {**CAT, "n": 3}).status == 200
    assert service.ask("POST", GENERATIONS, {"prompt": "bird"}).status == 400
    assert service.ask("GET", "/none").status == 404
    figures = service.figures()
    assert figures[f'mar_requests_total{{route="{GENERATIONS}",status="200"}}'] >= 1
    assert figures[f'mar_requests_total{{route="{GENERATIONS}",status="400"}}'] >= 1
    assert figures['mar_requests_total{route="other",status="404"}'] >= 1
    assert figures["mar_requests_in_progress"] == 0
    assert figures['mar_queue_depth{model="owls"}'] == 0
    assert figures['mar_images_total{model="owls"}'] >= 4
    assert figures['mar_queue_seconds_count{model="owls"}'] == figures['mar_batch_size_sum{model="owls"}']
    assert figures[f'mar_request_seconds_count{{route="{GENERATIONS}"}}'] >= 2
    for stage in ("backbone", "conditioning", "denoise", "encode"):
        assert figures[f'mar_stage_seconds_sum{{model="owls",stage="{stage}"}}'] > 0
    (build,) = [name for name in figures if name.startswith("mar_build_info")]
    assert 'backend="numpy"' in build


def test_a_request_keeps_its_id_or_gets_one(service: RunningService) -> None:
    assert service.ask("GET", "/livez", X_Request_ID="mine-1").headers["x-request-id"] == "mine-1"
    others = {
        service.ask("GET", "/livez", X_Request_ID=given).headers["x-request-id"] for given in ("", "a b", "x" * 65)
    }
    assert len(others) == 3
    assert all(len(other) == 16 for other in others)


def test_the_log_has_a_json_object_for_each_request(
    service: RunningService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "handlers", [caplog.handler])
    with caplog.at_level(logging.INFO, LOG.name):
        service.ask("POST", GENERATIONS, {"prompt": 'bird\n"'}, X_Request_ID="logged")
        service.ask("GET", "/livez")  # asked for all the time
        until(lambda: bool(caplog.records))
    lines = [JsonLines().format(record) for record in caplog.records]
    (line,) = [json.loads(line) for line in lines if "logged" in line]
    assert (line["method"], line["path"], line["status"]) == ("POST", GENERATIONS, 400)
    assert line["level"] == "info"
    assert "bird" in line["error"]
    assert not any("livez" in line for line in lines)


def test_a_body_that_is_too_large_is_refused(service: RunningService) -> None:
    answer = service.ask("POST", GENERATIONS, {"prompt": "x" * 5000})
    assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
    with contextlib.closing(service.connect()) as connection:  # it does not say how large it is
        connection.request("POST", GENERATIONS, iter([b"x" * 1000] * 5), encode_chunked=True)
        assert connection.getresponse().status == 413
    assert service.figures()['mar_rejected_total{reason="body_too_large"}'] >= 2


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (GENERATIONS, {"Content-Encoding": "gzip"}, 415),
        ("/v1/images/edits", {"Content-Type": "application/json"}, 415),
        ("/v1/images/edits", {"Content-Type": "multipart/form-data"}, 400),
        ("/v1/models", {}, 405),
        ("/v1/none", {}, 404),
    ],
)
def test_what_the_api_does_not_take_is_told_in_its_form(
    service: RunningService, path: str, headers: dict[str, str], status: int
) -> None:
    answer = service.ask("POST", path, b"{}", **headers)
    assert answer.status == status
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_a_full_queue_is_status_429_with_the_time_to_come_back() -> None:
    with held(max_queue=2) as service:
        answers: list[Answer] = []
        thread = service.ask_in_thread({**CAT, "n": 2}, answers)
        until(lambda: service.waiting() == 2)
        refused = service.running.ask("POST", GENERATIONS, CAT)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json["error"]["type"] == "rate_limit_error"
        tensors = [{"name": "LABEL", "datatype": "INT32", "shape": [1], "data": [0]}]
        assert service.running.ask("POST", "/v2/models/owls/infer", {"inputs": tensors}).status == 429
        assert service.running.ask("POST", GENERATIONS, {**CAT, "stream": True}).status == 429
        assert service.running.figures()['mar_rejected_total{reason="queue_full"}'] == 3
        service.gate.open()
        thread.join()
    assert answers[0].status == 200


def test_a_request_that_takes_too_long_is_status_504() -> None:
    with held(timeout=0.1) as service:
        answer = service.running.ask("POST", GENERATIONS, CAT)
        assert (answer.status, answer.json["error"]["code"]) == (504, "timeout")
        stream = service.running.ask("POST", GENERATIONS, {**CAT, "stream": True})
        assert (stream.status, stream.body.startswith(b"event: error\n")) == (200, True)
        assert b'"code":"timeout"' in stream.body
        until(lambda: service.waiting() == 0)  # the answer may be there before the queue has changed


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_gone_leaves_the_queue(held_service: Held, stream: bool) -> None:
    connection = held_service.running.connect()
    connection.request("POST", GENERATIONS, json.dumps({**CAT, "stream": stream}), {"Content-Type": "application/json"})
    until(lambda: held_service.waiting() == 1)
    connection.close()
    until(lambda: held_service.waiting() == 0)
    held_service.gate.open()
    until(lambda: held_service.running.service.ready)
    assert held_service.engines.batches == [1]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_drawn_for_a_client_that_has_gone_ends_after_its_iteration(held_service: Held, stream: bool) -> None:
    finish_first_image(held_service)
    connection = held_service.running.connect()
    connection.request("POST", GENERATIONS, json.dumps({**CAT, "stream": stream}), {"Content-Type": "application/json"})
    held_service.gate.wait_until_reached()
    connection.close()
    status = "200" if stream else "499"  # the status of a stream was sent already
    finished = f'mar_requests_total{{route="{GENERATIONS}",status="{status}"}}'
    until(lambda: held_service.running.figures().get(finished) == 1)
    held_service.gate.open()
    assert held_service.running.ask("POST", GENERATIONS, CAT).status == 200
    assert held_service.engines.passes == 4 + 1 + 4


def test_an_engine_that_fails_fails_its_requests_and_the_service_goes_on(service: RunningService) -> None:
    engines = FakeEngines()
    with running_service({"owls": fake_generator(engines)}, ServiceSettings()) as running:
        until(lambda: running.service.ready)

        def fail() -> None:
            raise BackendError("engine backbone failed in numpy")

        engines.before_pass = fail
        answer = running.ask("POST", GENERATIONS, CAT)
        assert answer.status == 500
        assert answer.json["error"] == {
            "message": "engine backbone failed in numpy",
            "type": "server_error",
            "param": None,
            "code": "generation_failed",
        }
        assert b"engine backbone failed" in running.ask("POST", GENERATIONS, {**CAT, "stream": True}).body
        engines.before_pass = lambda: None
        assert running.ask("POST", GENERATIONS, CAT).status == 200
        assert running.figures()['mar_failed_batches_total{model="owls"}'] == 2


def test_a_fault_of_the_service_is_told_without_its_inside(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bytes:
        raise KeyError("secret")

    monkeypatch.setattr(service.service.metrics, "text", broken)
    answer = service.ask("GET", "/metrics")
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body


def test_a_service_with_keys_answers_only_who_has_one() -> None:
    keys = ("first-key-0123456789", "second-key-0123456789")
    with running_service({"owls": fake_generator()}, ServiceSettings(api_keys=keys)) as running:
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/"):
            assert running.ask("GET", path).status in (200, 503)
        for path in ("/v1/models", "/v2", "/v2/models/owls", "/metrics"):
            for wrong in ("", "Bearer ", "Bearer first-key", f"Basic {keys[0]}", "Bearer \xe9"):
                answer = running.ask("GET", path, Authorization=wrong)
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            for key in keys:
                assert running.ask("GET", path, Authorization=f"Bearer {key}").status == 200
        assert running.ask("GET", "/v1/images/files/none.png").status == 404
        with_url = running.ask(
            "POST", GENERATIONS, {**CAT, "response_format": "url"}, Authorization=f"bearer {keys[1]}"
        ).json["data"][0]["url"]
        assert running.ask("GET", with_url.removeprefix(running.url)).status == 200


def test_a_page_of_another_site_is_refused(service: RunningService) -> None:
    refused = service.ask("POST", GENERATIONS, CAT, Sec_Fetch_Site="cross-site")
    assert (refused.status, refused.json["error"]["code"]) == (403, "cross_site")
    for site in ("same-origin", "none"):
        assert service.ask("POST", GENERATIONS, CAT, Sec_Fetch_Site=site).status == 200
    assert service.ask("GET", "/", Sec_Fetch_Site="cross-site").status == 200  # a link leads here


def test_a_service_with_names_is_asked_by_no_other_one() -> None:
    names = ("localhost", "::1", "Clothes.example")
    with running_service({"owls": fake_generator()}, ServiceSettings(hosts=names)) as running:
        for host in ("localhost", "LOCALHOST:80", "[::1]", "[::1]:8000", "clothes.example:443"):
            assert running.ask("GET", "/livez", Host=host).status == 200, host
        for host in ("localhost.rebound.example", "127.0.0.1", "rebound.example:8000", "[::1", "[::2]", ""):
            refused = running.ask("GET", "/metrics", Host=host)
            assert (refused.status, refused.json["error"]["code"]) == (403, "unknown_host"), host
        refused_reasons = running.ask("GET", "/metrics", Host="localhost").body.decode()
        assert 'mar_rejected_total{reason="unknown_host"} 6.0' in refused_reasons


def test_the_page_is_served(service: RunningService) -> None:
    answer = service.ask("GET", "/")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert service.ask("GET", "/static/../settings.py").status == 404
    assert service.ask("GET", "/static/index.html").status == 200
