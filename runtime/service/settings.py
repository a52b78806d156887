"""The settings of a service: its limits, and who may use it."""

from __future__ import annotations

import dataclasses
from typing import Any

from runtime.checks import check_int, check_number

_MIB = 2**20


def limited(default: float, least: float, most: float) -> Any:
    """Return a field with a number from `least` to `most`."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


@dataclasses.dataclass(frozen=True)
class ServiceSettings:
    """What a service allows, and how it batches.

    Attributes:
        preset: The preset of requests that name none. None: the artifact's own settings.
        max_batch: The most images that are drawn together.
        max_wait: How long a batch that is not full waits for further images, in seconds.
        max_queue: The most images that wait, for each model.
        timeout: How long a request may take, in seconds.
        max_images: The most images of a request.
        max_partial_images: How many times a stream may show an image before it is finished.
        max_body: The most bytes of a request.
        urls: Whether an image can be asked for by `url`; not where replicas share an address, as one alone has it.
        url_seconds: How long an image that was asked for by `url` can be fetched.
        url_bytes: The most bytes of such images together; the oldest make room.
        hosts: The names and addresses by which the service may be asked; none: by every one.
        api_keys: The keys of which a request must have one; none for a service without keys.

    Raises:
        RequestError: A number is not within its limits.
    """

    preset: str | None = None
    max_batch: int = limited(8, 1, 256)
    max_wait: float = limited(0.02, 0, 60)
    max_queue: int = limited(64, 1, 1_000_000)
    timeout: float = limited(300.0, 0.1, 86_400)
    max_images: int = limited(10, 1, 1024)
    max_partial_images: int = limited(16, 0, 1024)
    max_body: int = limited(16 * _MIB, 1, 1024 * _MIB)
    urls: bool = True
    url_seconds: float = limited(600.0, 0, 86_400)
    url_bytes: int = limited(256 * _MIB, 0, 2**40)
    hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in dataclasses.fields(self):
            if field.metadata:
                check = check_int if field.type == "int" else check_number
                check(field.name, getattr(self, field.name), field.metadata["least"], field.metadata["most"])

    @property
    def images_per_request(self) -> int:
        """The most images of a request, none of which may find the queue too short."""
        return min(self.max_images, self.max_queue)


def limits(name: str) -> tuple[Any, Any]:
    """Return the least and the largest value of a number of `ServiceSettings`."""
    metadata = ServiceSettings.__dataclass_fields__[name].metadata
    return metadata["least"], metadata["most"]
