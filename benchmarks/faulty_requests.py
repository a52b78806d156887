"""Thousands of requests, a tenth of them bad, aborted or cancelled, and what became of each of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load import open_session
from runtime.storage.structured_files import parse_json

GOOD, BAD, ABORTED, CANCELLED = "good", "bad", "aborted", "cancelled"
IDENTICAL, ROUNDED, REFUSED, LEFT, WRONG, LOST = "identical", "rounded", "refused", "left", "wrong", "lost"
"""What became of a request: all images are those of the generator, byte for byte or with a difference of one level; it
was refused as it should be; its client left; its answer was wrong; it was not answered."""

PATH = "/v1/images/generations"
SEEDS = 20
_PATIENCE = 0.01  # seconds, after which a client that does not stream leaves
_FAILURES_TOLD = 10
_BAD_BODIES = (
    b"{",
    b'{"prompt": "no such class"}',
    b'{"prompt": "0", "n": 0}',
    b'{"prompt": "0", "unknown_field": 1}',
    b'{"prompt": "0", "seed": -1}',
)

AskedImage = tuple[int, int, int]
"""The class, the seed and the index of an image."""


def kinds(requests: int) -> list[str]:
    """Return the kind of each request: a tenth are bad, aborted and cancelled in equal parts, in random order."""
    faults = [(BAD, ABORTED, CANCELLED)[number % 3] for number in range(requests // 10)]
    mixed = [*faults, *[GOOD] * (requests - len(faults))]
    random.Random(0).shuffle(mixed)
    return mixed


def images_asked(number: int, classes: int) -> list[AskedImage]:
    """Return the images that a request asks for: one, or two in each fifth request."""
    count = 2 if number % 5 == 0 else 1
    return [(number % classes, number // classes % SEEDS, index) for index in range(count)]


class FaultyRequests:
    """The clients, and the outcomes of their requests.

    Attributes:
        outcomes: The number of requests of each kind with each outcome.
        failures: The first requests that were lost or answered wrongly, as text.
    """

    def __init__(self, port: int, classes: int, expected: Mapping[AskedImage, NDArray[np.uint8]]) -> None:
        """Make clients of a service.

        Args:
            port: Its port on 127.0.0.1.
            classes: The number of its classes.
            expected: The images that it should draw, uint8 [H, W, c].
        """
        self._port, self._classes, self._expected = port, classes, expected
        self._url = f"http://127.0.0.1:{port}{PATH}"
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []

    async def run(
        self, requests: int, clients: int, seconds: float = math.inf, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Send requests by some clients, each of which sends its next one when the last has an outcome.

        Args:
            requests: The number of requests.
            clients: The number of clients.
            seconds: After which time no further request is sent.
            progress: Called after each request.
        """
        end = time.monotonic() + seconds
        numbered = itertools.takewhile(lambda _: time.monotonic() < end, enumerate(kinds(requests)))
        async with open_session() as session:
            await asyncio.gather(*(self._client(session, numbered, progress) for _ in range(clients)))

    async def _client(
        self, session: aiohttp.ClientSession, numbered: Iterator[tuple[int, str]], progress: Callable[[], None]
    ) -> None:
        ways = {GOOD: self._good, BAD: self._bad, ABORTED: self._aborted, CANCELLED: self._cancelled}
        for number, kind in numbered:
            try:
                outcome = await ways[kind](session, number)
            except (OSError, ValueError, KeyError, aiohttp.ClientError, asyncio.TimeoutError) as error:
                outcome = LOST
                self._tell(f"request {number}, {kind}: {error!r}")
            self.outcomes[kind, outcome] += 1
            progress()

    def _body(self, number: int) -> dict[str, Any]:
        asked = images_asked(number, self._classes)
        return {"prompt": str(asked[0][0]), "seed": asked[0][1], "n": len(asked)}

    async def _good(self, session: aiohttp.ClientSession, number: int) -> str:
        async with session.post(self._url, json=self._body(number)) as response:
            content = await response.read()
        if response.status != 200:
            self._tell(f"request {number}: status {response.status}: {content[:200]!r}")
            return LOST
        images, asked = parse_json(content)["data"], images_asked(number, self._classes)
        if len(images) != len(asked):
            self._tell(f"request {number}: {len(images)} images for {len(asked)}")
            return LOST
        outcome = _compare([_decode(image["b64_json"]) for image in images], [self._expected[each] for each in asked])
        if outcome == WRONG:
            self._tell(f"request {number}: another image than the generator's")
        return outcome

    async def _bad(self, session: aiohttp.ClientSession, number: int) -> str:
        """Send what the service must refuse."""
        headers = {"Content-Type": "application/json"}
        async with session.post(self._url, data=_BAD_BODIES[number % len(_BAD_BODIES)], headers=headers) as response:
            content = await response.read()
        if response.status == 400 and parse_json(content)["error"]["message"]:
            return REFUSED
        self._tell(f"bad request {number}: status {response.status}: {content[:200]!r}")
        return WRONG

    async def _aborted(self, session: aiohttp.ClientSession, number: int) -> str:
        """Break the connection in the middle of the request, or right after it."""
        body = json.dumps(self._body(number)).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body[: len(body) // 2] if number % 2 else body)
        await writer.drain()
        writer.transport.abort()
        return LEFT

    async def _cancelled(self, session: aiohttp.ClientSession, number: int) -> str:
        """Leave while images are drawn: after the first bytes of a stream, or without having got anything."""
        if number % 2:
            body = {**self._body(number), "stream": True, "partial_images": 2}
            async with session.post(self._url, json=body) as response:
                await response.content.readany()
                response.close()
        else:
            patience = aiohttp.ClientTimeout(total=_PATIENCE)
            with contextlib.suppress(asyncio.TimeoutError):
                async with session.post(self._url, json=self._body(number), timeout=patience) as response:
                    await response.read()
        return LEFT

    def _tell(self, text: str) -> None:
        if len(self.failures) < _FAILURES_TOLD:
            self.failures.append(text)

    def report(self) -> Mapping[str, Any]:
        """Return the number of requests, by kind and outcome, of faults of the service, and the first of these."""
        by_kind: dict[str, dict[str, int]] = {kind: {} for kind in (GOOD, BAD, ABORTED, CANCELLED)}
        for (kind, outcome), count in sorted(self.outcomes.items()):
            by_kind[kind][outcome] = count
        faults = {name: sum(found.get(name, 0) for found in by_kind.values()) for name in (LOST, WRONG, ROUNDED)}
        return {"requests": self.outcomes.total(), "outcomes": by_kind, **faults, "failures": self.failures}


def _decode(content: str) -> NDArray[np.uint8]:
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    return image if image.ndim == 3 else image[..., None]


def _compare(found: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]]) -> str:
    """Compare images. Products of one row and of several round differently, which can cross the border of a level."""
    if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
        return WRONG
    if all(one.tobytes() == other.tobytes() for one, other in zip(found, expected, strict=True)):
        return IDENTICAL
    levels = max(np.abs(one.astype(int) - other).max() for one, other in zip(found, expected, strict=True))
    return ROUNDED if levels <= 1 else WRONG
