"""A service: its models, and what every HTTP surface does with them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from runtime.checks import truncate
from runtime.engine_clocks import with_clocks
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.image_records.encoding import QUALITY
from runtime.service.drawing import DeadlineError, Drawn, SchedulerClosedError, Shown
from runtime.service.http_errors import CLIENT_GONE, HttpError
from runtime.service.image_content import encode_shown
from runtime.service.kept_images import KeptImages
from runtime.service.metrics import ENCODE, Metrics
from runtime.service.served_model import ServedModel
from runtime.service.service_log import LOG
from runtime.service.settings import ServiceSettings

_ENCODERS = 2  # threads
_Value = TypeVar("_Value")


class Service:
    """The models of a service, and what they share.

    Attributes:
        settings: Its settings.
        models: Its models by name; the first is that of requests that name none.
        metrics: Its figures.
        kept_images: Images that are fetched by a URL.
        stopping: Whether it takes no new requests.
    """

    def __init__(self, generators: Mapping[str, Generator], settings: ServiceSettings) -> None:
        """Start the schedulers.

        Args:
            generators: A generator for each name, which the service closes. They stay open if it raises an error.
            settings: The settings.

        Raises:
            RequestError: A name or a setting has a wrong value, or an artifact makes no images.
        """
        self.settings, self.metrics, self.stopping = settings, Metrics(), False
        self.models: dict[str, ServedModel] = {}
        try:
            for name, generator in generators.items():
                timed, clocks = with_clocks(generator)
                events = self.metrics.of_model(name, timed, clocks)
                self.models[name] = ServedModel(name, timed, settings, events)
        except MarError:
            self.end_requests()
            raise
        self.kept_images = KeptImages(settings.url_seconds, settings.url_bytes)
        self._threads = concurrent.futures.ThreadPoolExecutor(_ENCODERS, "encode")

    @property
    def ready(self) -> bool:
        """Whether every model has drawn an image, and new requests are taken."""
        return not self.stopping and all(model.ready for model in self.models.values())

    def model(self, name: str | None) -> ServedModel:
        """Return a model by its name, the first for None. Raises `HttpError`."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            message = f"there is no model {truncate(name)}; this service has {', '.join(self.models)}"
            raise HttpError(404, message, param="model", code="model_not_found")
        return self.models[name]

    def deadline(self) -> float:
        """Return the time on `time.monotonic` by which a request that comes now must be done."""
        return time.monotonic() + self.settings.timeout

    async def drawn(self, request: Request, futures: Sequence[concurrent.futures.Future[Drawn]]) -> list[Drawn]:
        """Wait for what was submitted for a request, whose body was read. Its futures are cancelled if it fails.

        Raises:
            HttpError: The client has gone.
            DeadlineError: It took too long.
            Exception: What one of the futures raised.
        """
        waiting: asyncio.Future[list[Drawn]] = asyncio.gather(*map(asyncio.wrap_future, futures))
        gone = asyncio.ensure_future(until_gone(request))
        tasks: set[asyncio.Future[Any]] = {waiting, gone}
        try:
            await asyncio.wait(tasks, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if gone.done():
                raise HttpError(CLIENT_GONE, "the client has gone", code="client_gone")
            raise DeadlineError()
        finally:
            for task in tasks:
                task.cancel()
            for future in futures:
                future.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def in_thread(self, function: Callable[[], _Value]) -> _Value:
        """Run a function that takes a while in a thread, so that other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def encoded(self, model: ServedModel, shown: Shown, format_name: str, quality: int = QUALITY) -> bytes:
        """Return an image as the bytes of a file."""
        started = time.perf_counter()
        content = await self.in_thread(functools.partial(encode_shown, shown, format_name, quality))
        self.metrics.stage_seconds.labels(model.name, ENCODE).observe(time.perf_counter() - started)
        return content

    async def warm_up(self) -> None:
        """Draw one image with each model, after which the service is ready."""
        for model in self.models.values():
            try:
                await asyncio.wrap_future(model.scheduler.submit(model.warm_up()))
            except SchedulerClosedError:
                return
            except Exception as error:  # it stays not ready, and its requests say why
                LOG.error("the first image of %s failed: %s", model.name, error)
            else:
                model.ready = True
                LOG.info("ready", extra={"model": model.name})

    def end_requests(self) -> None:
        """Fail every request that is not done, after the iteration that runs."""
        self.stopping = True
        for model in self.models.values():
            model.scheduler.close()

    def close(self) -> None:
        """Fail every request that is not done, and free all engines."""
        self.stopping = True
        for model in self.models.values():
            model.close()
        self._threads.shutdown()


async def until_gone(request: Request) -> None:
    """Wait until the client of a request, whose body was read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
