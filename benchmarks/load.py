"""Clients of a service that ask for images all the time: each sends its next request when the last is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import numpy as np

from runtime.errors import MarError

_LONGEST = 360.0  # seconds that a request may take: longer than a service allows, whose own answer then tells


@dataclasses.dataclass(frozen=True)
class Target:
    """What clients ask.

    Attributes:
        name: Its name in reports.
        url: Where requests are sent.
        body: Returns the JSON body of the request of a given number. Each request is for one image.
    """

    name: str
    url: str
    body: Callable[[int], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        latencies: The seconds of each request.
        seconds: The time from the first request to the last answer.
    """

    latencies: list[float]
    seconds: float

    def figures(self) -> dict[str, float]:
        """Return images a second, the number of requests, and the 50th, 95th and 99th percentile of their seconds."""
        p50, p95, p99 = np.percentile(self.latencies, [50, 95, 99]).tolist()
        count = len(self.latencies)
        return {"requests": count, "images_per_second": count / self.seconds, "p50": p50, "p95": p95, "p99": p99}


def open_session() -> aiohttp.ClientSession:
    """Return a session that opens as many connections as it has requests at once, and keeps them."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_LONGEST))


async def ask(session: aiohttp.ClientSession, target: Target, number: int) -> bytes:
    """Return the answer to one request. Raises `MarError` if it is not answered with status 200."""
    try:
        async with session.post(target.url, json=target.body(number)) as response:
            content = await response.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise MarError(f"{target.name} did not answer request {number} ({error!r})") from None
    if response.status != 200:
        raise MarError(f"{target.name} answered request {number} with status {response.status}: {content[:200]!r}")
    return content


async def put_under_load(target: Target, clients: int, seconds: float) -> Load:
    """Ask `target` by some clients until `seconds` are over, and wait for the answers to what was asked.

    The requests have the numbers 0, 1, 2, ..., so every target draws the same images.

    Raises:
        MarError: A request was not answered with an image.
    """
    numbers, latencies = itertools.count(), list[float]()
    started = time.perf_counter()

    async def client() -> None:
        while (began := time.perf_counter()) < started + seconds:
            await ask(session, target, next(numbers))
            latencies.append(time.perf_counter() - began)

    async with open_session() as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    return Load(latencies, time.perf_counter() - started)


def draw_alone(draw: Callable[[int], object], seconds: float) -> Load:
    """Call `draw` with 0, 1, 2, ... until `seconds` are over: what one client would see without a service."""
    latencies, started = list[float](), time.perf_counter()
    while (began := time.perf_counter()) < started + seconds:
        draw(len(latencies))
        latencies.append(time.perf_counter() - began)
    return Load(latencies, time.perf_counter() - started)
