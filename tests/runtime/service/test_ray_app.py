"""The service in two replicas of Ray Serve: the HTTP surface of one process, and both replicas draw."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from runtime.backends.telemetry import import_library
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.service.ray_app import RayArguments, build, parse_arguments
from runtime.service.server import bind
from runtime.workers.ray_cluster import connected
from runtime.workers.worker_group import Workers
from tests.helpers.one_ray import one_ray_at_a_time
from tests.helpers.running_services import Answer, ask
from tests.helpers.tiny_runs import one_sentence

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def port(pixel_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a service of two replicas."""
    with bind("127.0.0.1", 0) as free:
        port: int = free.getsockname()[1]
    with one_ray_at_a_time(tmp_path_factory), connected(Workers(count=2)):
        serve = import_library("ray.serve")
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = {"artifact": str(pixel_artifact), "name": "tiny", "replicas": "2", "max_wait_ms": "5"}
        serve.run(build(arguments), name="mar")
        (deployment,) = serve.status().applications["mar"].deployments.values()
        assert deployment.replica_states == {"RUNNING": 2}
        yield port
        serve.shutdown()


@pytest.fixture
def client(port: int) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, timeout=60) as client:
        yield client


def test_requests_are_answered_by_both_replicas_as_by_one_process(
    port: int, client: OpenAI, pixel_artifact: pathlib.Path
) -> None:
    """Requests with different fields: each travels alone, so a field that one lacks fails none of the others."""

    def draw(seed: int) -> bytes:
        chosen = {**SAMPLING, "seed": seed} if seed % 2 else {**SAMPLING, "seed": seed, "index": 3}
        data = client.images.generate(prompt="1", n=2, extra_body=chosen).data
        assert data is not None
        assert data[1].b64_json is not None
        return base64.b64decode(data[1].b64_json)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        files = list(threads.map(draw, range(15)))  # an odd number: the replicas cannot draw equally many
    with Generator.load(pixel_artifact, threads=1) as generator:
        for seed, file in enumerate(files):
            index = [1] if seed % 2 else [4]
            expected = generator.generate([1], seed=seed, index=index, iterations=2, cfg_scale=1.0).images
            assert expected is not None
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), expected[0, ..., 0])
    drawn, ends = set[str](), time.monotonic() + 60
    while len(drawn) < 2 and time.monotonic() < ends:  # each replica has figures of its own
        lines = ask(port, "GET", "/metrics").body.decode().splitlines()
        drawn |= {line for line in lines if line.startswith("mar_images_total")}
    assert len(drawn) == 2
    assert not any(line.endswith(" 1.0") for line in drawn)  # the first image of each is that of its start


def test_the_surface_is_that_of_one_process(port: int, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert ask(port, "GET", "/livez").json == {"status": "live"}
    assert ask(port, "GET", "/v2/models/tiny").json["name"] == "tiny"
    answer: Answer = ask(port, "GET", "/nothing")
    assert (answer.status, answer.json["error"]["type"]) == (404, "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="nobody"):
        client.images.generate(prompt="nobody")
    with pytest.raises(openai.BadRequestError, match="this service has several replicas"):
        client.images.generate(prompt="1", response_format="url")
    stream = client.images.generate(prompt="1", stream=True, partial_images=1, extra_body={**SAMPLING, "seed": 1})
    assert [event.type for event in stream] == ["image_generation.partial_image", "image_generation.completed"]


def test_texts_of_a_command_line_become_numbers() -> None:
    found = parse_arguments({"artifact": "a", "replicas": "2", "max_wait_ms": "1.5", "timeout_s": 3})
    assert found == RayArguments("a", replicas=2, max_wait_ms=1.5, timeout_s=3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "missing keys artifact"),
        ({"artifact": "a", "replica": "2"}, "unknown keys 'replica'"),
        ({"artifact": "a", "replicas": "two"}, "arguments: .*'two'"),
        ({"artifact": "a", "replicas": "0"}, "replicas must be a whole number of at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        build(arguments)
    one_sentence(caught)
