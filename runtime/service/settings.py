"""The settings of a service: its limits, and who may use it."""

from __future__ import annotations

import dataclasses


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
    """

    preset: str | None = None
    max_batch: int = 8
    max_wait: float = 0.02
    max_queue: int = 64
    timeout: float = 300.0
    max_images: int = 10
    max_partial_images: int = 16
    max_body: int = 16 * 2**20
    urls: bool = True
    url_seconds: float = 600.0
    url_bytes: int = 256 * 2**20
    hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
