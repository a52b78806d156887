"""Real engines under load: many clients at once, some of which leave; every image is the one of `mar generate`."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pathlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.generator import Generator
from runtime.service.drawing import Drawing
from runtime.service.scheduler import Scheduler
from runtime.service.settings import ServiceSettings
from tests.helpers.distance import relative_l2
from tests.helpers.fake_generators import WAIT
from tests.helpers.running_services import RunningService, running_service, until

REQUESTS = 48
SAME = 1e-5  # relative L2 of latents, where products of one row and of several round differently
STEPS = (2, 4)


@pytest.fixture(scope="module")
def service(pixel_artifact: pathlib.Path) -> Iterator[RunningService]:
    settings = ServiceSettings(max_queue=1000)
    with running_service({"pixels": Generator.load(pixel_artifact, threads=1)}, settings) as running:
        until(lambda: running.service.ready)
        yield running


@pytest.fixture(scope="module")
def reference(pixel_artifact: pathlib.Path) -> Iterator[Generator]:
    with Generator.load(pixel_artifact, threads=1) as generator:
        yield generator


def request_of(number: int) -> dict[str, Any]:
    count, steps = 1 + number % 3, STEPS[number % 2]
    return {"prompt": str(number % 2), "seed": number % 5, "n": count, "num_inference_steps": steps}


def image_of(content: str) -> NDArray[np.uint8]:
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    return image if image.ndim == 3 else image[..., None]


def leave(service: RunningService, number: int) -> None:
    """Ask and go away, in the middle of the request or of the answer."""
    with contextlib.closing(service.connect()) as connection:
        body = json.dumps({**request_of(number), "stream": number % 2 == 0, "partial_images": 2})
        connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        if number % 3 == 0:
            connection.getresponse().read(40)


def test_images_under_load_are_those_of_the_generator(service: RunningService, reference: Generator) -> None:
    numbers = list(range(REQUESTS))
    random.Random(0).shuffle(numbers)

    def client(number: int) -> list[str] | None:
        if number % 6 == 5:
            leave(service, number)
            return None
        answer = service.ask("POST", "/v1/images/generations", request_of(number))
        assert answer.status == 200, answer.body
        return [image["b64_json"] for image in answer.json["data"]]

    with ThreadPoolExecutor(12) as clients:
        answers = dict(zip(numbers, clients.map(client, numbers), strict=True))
    for number, images in answers.items():
        if images is None:
            continue
        asked = request_of(number)
        expected = reference.generate(
            [int(asked["prompt"])] * asked["n"], seed=asked["seed"], iterations=asked["num_inference_steps"]
        ).images
        assert expected is not None
        found = np.stack([image_of(content) for content in images])
        assert np.abs(found.astype(int) - expected).max() <= 1, number  # 1e-5 can cross the border of two levels
        assert (found == expected).mean() > 0.999
    until(lambda: service.figures()["mar_requests_in_progress"] == 0)
    figures = service.figures()
    assert figures['mar_queue_depth{model="pixels"}'] == 0
    assert figures['mar_batch_size_sum{model="pixels"}'] > 1.5 * figures['mar_batch_size_count{model="pixels"}']


def test_latents_of_a_batch_are_those_of_each_image_alone(pixel_artifact: pathlib.Path, reference: Generator) -> None:
    labels, seeds = [0, 1, 1, 0, 1], [3, 3, 9, 9, 1]
    sampling = reference.sampling(iterations=4)
    together = reference.generate(labels, seed=seeds, index=[0] * 5, sampling=sampling).latents
    for place, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
        alone = reference.generate([label], seed=seed, sampling=sampling).latents
        assert relative_l2(together[place], alone[0]) <= SAME
    scheduler = Scheduler(reference, ServiceSettings())
    drawings = [Drawing([label], [seed], [0], sampling) for label, seed in zip(labels, seeds, strict=True)]
    drawn = [future.result(WAIT) for future in scheduler.submit_all(drawings)]
    scheduler.close()
    images = reference.generate(labels, seed=seeds, index=[0] * 5, sampling=sampling).images
    assert images is not None
    for each, expected in zip(drawn, images, strict=True):
        assert np.abs(each.images[0].pixels.astype(int) - expected).max() <= 1
