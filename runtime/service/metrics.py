"""The figures of a service for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from runtime.engine_clocks import EngineClock
from runtime.generator import Generator
from runtime.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The media type of `Metrics.text`."""

ENCODE = "encode"
"""The stage in which images become files, beside the stages that are engines."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_SHORT_SECONDS = (0.0001, 0.001, *_SECONDS)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All figures of one service, in a registry of its own.

    Attributes:
        requests: Finished requests by `route` and `status`.
        in_progress: Requests that are being answered.
        request_seconds: The time of a request by `route`.
        rejected: Requests that were not begun, by `reason`.
        stage_seconds: The time of a batch in each engine, and of a file's encoding, by `model` and `stage`.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("mar_requests", "Finished requests.", ["route", "status"], registry=registry)
        self.in_progress = Gauge("mar_requests_in_progress", "Requests that are being answered.", registry=registry)
        self.request_seconds = Histogram(
            "mar_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.rejected = Counter("mar_rejected", "Requests that were not begun.", ["reason"], registry=registry)
        self.stage_seconds = Histogram(
            "mar_stage_seconds",
            "Time of a batch in each engine, and of the encoding of an image file.",
            ["model", "stage"],
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self._depth = Gauge("mar_queue_depth", "Images that wait.", ["model"], registry=registry)
        self._queue = Histogram(
            "mar_queue_seconds", "Time that an image waited.", ["model"], buckets=_SHORT_SECONDS, registry=registry
        )
        self._batch = Histogram(
            "mar_batch_size", "Images drawn together.", ["model"], buckets=_IMAGES, registry=registry
        )
        self._images = Counter("mar_images", "Images drawn.", ["model"], registry=registry)
        self._failures = Counter("mar_failed_batches", "Batches that failed.", ["model"], registry=registry)
        self._build = Gauge(
            "mar_build_info", "What runs; always 1.", ["model", "version", "backend", "engine_sha"], registry=registry
        )

    def of_model(self, name: str, generator: Generator, clocks: Mapping[str, EngineClock]) -> ModelMetrics:
        """Return what gets the reports of the scheduler of a model."""
        self._build.labels(name, __version__, generator.description, generator.manifest.content_sha256).set(1)
        return ModelMetrics(self, name, clocks)

    def text(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        return generate_latest(self._registry)


class ModelMetrics:
    """The reports of one scheduler as figures; see `runtime.service.scheduler.SchedulerEvents`."""

    def __init__(self, metrics: Metrics, name: str, clocks: Mapping[str, EngineClock]) -> None:
        self._depth, self._queue = metrics._depth.labels(name), metrics._queue.labels(name)
        self._batch, self._images = metrics._batch.labels(name), metrics._images.labels(name)
        self._failures = metrics._failures.labels(name)
        self._stages = {stage: (clock, metrics.stage_seconds.labels(name, stage)) for stage, clock in clocks.items()}
        self._read = dict.fromkeys(clocks, 0.0)

    def queue_changed(self, depth: int) -> None:
        """See `SchedulerEvents`."""
        self._depth.set(depth)

    def batch_ended(self, waited: Sequence[float], seconds: float, error: Exception | None) -> None:
        """See `SchedulerEvents`."""
        self._batch.observe(len(waited))
        for each in waited:
            self._queue.observe(each)
        if error is None:
            self._images.inc(len(waited))
        else:
            self._failures.inc()
        for stage, (clock, histogram) in self._stages.items():
            total = clock.seconds
            histogram.observe(total - self._read[stage])
            self._read[stage] = total
