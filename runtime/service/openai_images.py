"""The images API of OpenAI: generations, edits, streams of partial images, and models."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.checks import check_int, truncate
from runtime.errors import RequestError
from runtime.image_records.encoding import FORMATS, QUALITY
from runtime.image_records.record import settings_values
from runtime.sampling.settings import Sampling
from runtime.service.drawing import DeadlineError, Drawing, Drawn, Shown, Timing
from runtime.service.event_stream import Event, EventStream
from runtime.service.http_errors import HttpError, as_http_error
from runtime.service.image_content import MEDIA_TYPES, uploaded_image, uploaded_mask
from runtime.service.request_body import read_body, read_form
from runtime.service.request_fields import parse_fields, parse_json_object
from runtime.service.served_model import ServedModel, image_indices, random_seed
from runtime.service.service import Service
from runtime.version import __version__

FILES = "/v1/images/files"
"""The path under which kept images are fetched. Their names are secrets, so it needs no key."""

_B64, _URL = "b64_json", "url"
_GENERATION, _EDIT = "image_generation", "image_edit"  # the beginnings of the names of events
_LARGEST = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class ImageFields:
    """The fields of a request for images.

    Those from `quality` to `input_fidelity` have no effect. Those from `seed` on are extensions.
    """

    prompt: Any
    model: str | None = None
    n: int | None = dataclasses.field(default=None, metadata={"least": 1})
    size: str | None = None
    background: str | None = dataclasses.field(default=None, metadata={"choices": ("auto", "opaque")})
    response_format: str | None = dataclasses.field(default=None, metadata={"choices": (_B64, _URL)})
    output_format: str | None = dataclasses.field(default=None, metadata={"choices": tuple(FORMATS)})
    output_compression: int | None = dataclasses.field(default=None, metadata={"least": 0, "most": 100})
    stream: bool | None = None
    partial_images: int | None = dataclasses.field(default=None, metadata={"least": 0})
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    input_fidelity: str | None = None
    seed: int | None = dataclasses.field(default=None, metadata={"least": 0, "most": _LARGEST})
    index: int | None = dataclasses.field(default=None, metadata={"least": 0, "most": 2**63 - 1})
    num_inference_steps: int | None = dataclasses.field(default=None, metadata={"least": 1})
    guidance_scale: float | None = None
    preset: str | None = None
    negative_prompt: str | None = None


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A checked request: what to draw with which model, and in which form to answer."""

    model: ServedModel
    drawing: Drawing
    event: str
    format_name: str
    quality: int
    by_url: bool
    stream: bool
    arrived: float


class ImagesApi:
    """The handlers of this API for one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the paths of this API."""
        return [
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name}", self.get_model, methods=["GET"]),
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route("/v1/images/edits", self.edit, methods=["POST"]),
            Route(f"{FILES}/{{name}}", self.get_file, methods=["GET"]),
        ]

    async def list_models(self, request: Request) -> Response:
        """Answer with all models."""
        return JSONResponse({"object": "list", "data": [_brief(model) for model in self._service.models.values()]})

    async def get_model(self, request: Request) -> Response:
        """Answer with one model: beside the fields of OpenAI, everything that a client needs to ask for its images."""
        return JSONResponse(self._details(self._service.model(request.path_params["name"])))

    async def get_file(self, request: Request) -> Response:
        """Answer with an image that was asked for by URL."""
        kept = self._service.kept_images.get(request.path_params["name"], time.monotonic())
        if kept is None:
            raise HttpError(404, "there is no such image, or no longer; ask for b64_json to get images at once")
        return Response(kept.content, media_type=kept.media_type, headers={"Cache-Control": "private"})

    async def generate(self, request: Request) -> Response:
        """Answer with images of a class or a prompt."""
        arrived = time.monotonic()
        body = await read_body(request, self._service.settings)
        asked = self._asked(parse_fields(ImageFields, parse_json_object(body)), arrived)
        return await self._answer(request, asked)

    async def edit(self, request: Request) -> Response:
        """Answer with an image of which a part is regenerated."""
        arrived = time.monotonic()
        texts, uploads = await read_form(request, self._service.settings)
        fields = parse_fields(ImageFields, texts, text=True)
        for name in uploads.keys() - {"image", "mask"}:
            raise HttpError(400, f"unknown file {name!r}; known: image, mask", param=name, code="unknown_parameter")
        if "image" not in uploads:
            raise HttpError(400, "the file image is missing", param="image", code="missing_parameter")
        return await self._answer(request, await self._asked_edit(fields, uploads, arrived))

    def _asked(self, fields: ImageFields, arrived: float, event: str = _GENERATION) -> _Asked:
        """Check a request without its edit."""
        settings, model = self._service.settings, self._service.model(fields.model)
        count, shown = fields.n or 1, fields.partial_images or 0
        _check_most("n", count, settings.images_per_request)
        _check_most("partial_images", shown, settings.max_partial_images)
        _check_form(fields, model, settings.urls)
        with _about("prompt"):
            subject = model.subject(fields.prompt)
        with _about("negative_prompt"):
            subject = model.subject(fields.prompt, fields.negative_prompt)
        preset = fields.preset or model.default_preset
        return _Asked(
            model,
            Drawing(
                subjects=[subject] * count,
                seeds=[random_seed() if fields.seed is None else fields.seed] * count,
                indices=image_indices(fields.index, count),
                sampling=_sampling(fields, model, preset),
                preset=preset,
                partial_images=shown,
                deadline=arrived + settings.timeout,
            ),
            event=event,
            format_name=fields.output_format or "png",
            quality=QUALITY if fields.output_compression is None else max(1, fields.output_compression),
            by_url=fields.response_format == _URL,
            stream=bool(fields.stream),
            arrived=arrived,
        )

    async def _asked_edit(self, fields: ImageFields, uploads: Mapping[str, bytes], arrived: float) -> _Asked:
        """Check a request for an edit. Without a file `mask`, the image's own transparency is the mask."""
        asked = self._asked(fields, arrived, _EDIT)
        config, masked = asked.model.generator.manifest.model, "mask" if "mask" in uploads else "image"
        with _about("image"):
            image = await self._service.in_thread(functools.partial(uploaded_image, uploads["image"], config))
        with _about(masked):
            mask = await self._service.in_thread(functools.partial(uploaded_mask, masked, uploads[masked], config))
            edit = asked.model.edit(image, mask, asked.drawing.sampling)
        return dataclasses.replace(asked, drawing=dataclasses.replace(asked.drawing, edit=edit))

    async def _answer(self, request: Request, asked: _Asked) -> Response:
        if asked.stream:
            return self._stream(request, asked)
        (drawn,) = await self._service.drawn(request, [asked.model.scheduler.submit(asked.drawing)])
        files = await asyncio.gather(*(self._encoded(asked, shown) for shown in drawn.images))
        data = [
            {**self._content(request, asked, file), **_how(shown)}
            for file, shown in zip(files, drawn.images, strict=True)
        ]
        shape = _shape(asked)
        del shape["quality"]  # the client of OpenAI knows no "auto" here
        usage, timing = _usage(asked, len(data)), _timing(drawn.timing, asked)
        return JSONResponse({"created": int(time.time()), "data": data, **shape, "usage": usage, "timing": timing})

    def _stream(self, request: Request, asked: _Asked) -> Response:
        """Put a request into the queue, and answer with the events of its images."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Shown | None]()

        def show(shown: Shown | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, shown)

        future = asked.model.scheduler.submit(dataclasses.replace(asked.drawing, show=show))
        future.add_done_callback(lambda _: show(None))
        return EventStream(request, self._events(asked, future, queue), future.cancel)

    async def _events(
        self, asked: _Asked, future: Future[Drawn], queue: asyncio.Queue[Shown | None]
    ) -> AsyncGenerator[Event]:
        sent: Counter[int] = Counter()  # partial images, by the place of the image
        try:
            while (shown := await asyncio.wait_for(queue.get(), self._seconds_left(asked))) is not None:
                content = base64.b64encode(await self._encoded(asked, shown)).decode()
                event = {_B64: content, "created_at": int(time.time()), "image_index": shown.place, **_shape(asked)}
                if shown.timing is None:
                    kind, event["partial_image_index"] = "partial_image", sent[shown.place]
                    event |= {"iterations_done": shown.done, "iterations": shown.total}
                    sent[shown.place] += 1
                else:
                    kind = "completed"
                    event |= {"usage": _usage(asked, 1), "timing": _timing(shown.timing, asked), **_how(shown)}
                yield {"type": f"{asked.event}.{kind}", **event}
            future.result()
        except asyncio.TimeoutError:
            yield {"type": "error", **error_body(as_http_error(DeadlineError()))}
        except Exception as error:  # the response has begun, so its status cannot tell
            yield {"type": "error", **error_body(as_http_error(error))}

    def _seconds_left(self, asked: _Asked) -> float:
        return max(0.0, asked.arrived + self._service.settings.timeout - time.monotonic())

    async def _encoded(self, asked: _Asked, shown: Shown) -> bytes:
        return await self._service.encoded(asked.model, shown, asked.format_name, asked.quality)

    def _content(self, request: Request, asked: _Asked, file: bytes) -> dict[str, Any]:
        if not asked.by_url:
            return {_B64: base64.b64encode(file).decode()}
        media_type, suffix = MEDIA_TYPES[asked.format_name], FORMATS[asked.format_name]
        name = self._service.kept_images.add(file, media_type, suffix, time.monotonic())
        return {_URL: f"{str(request.base_url).rstrip('/')}{FILES}/{name}"}

    def _details(self, model: ServedModel) -> dict[str, Any]:
        """Return all that a client needs to know of a model."""
        generator, settings = model.generator, self._service.settings
        iterations = model.iterations
        presets = {
            name: {"iterations": iterations[name], **settings_values(sampling)}
            for name, sampling in generator.presets.items()
        }
        return {
            **_brief(model),
            "ready": model.ready,
            "classes": list(generator.class_names) or generator.manifest.model.class_num,
            "size": _size(model),
            "presets": presets,
            "default_preset": model.default_preset,
            "default_sampling": settings_values(model.sampling(model.default_preset)),
            "can_edit": model.can_edit,
            "output_formats": list(FORMATS),
            "limits": {
                "n": settings.images_per_request,
                "partial_images": settings.max_partial_images,
                "body_bytes": settings.max_body,
                "seconds": settings.timeout,
            },
            "backend": generator.description,
            "artifact_sha256": generator.manifest.content_sha256,
            "version": __version__,
        }


def error_body(error: HttpError) -> dict[str, Any]:
    """Return a failure in the form of this API."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = {429: "rate_limit_error", 401: "authentication_error"}.get(error.status, kind)
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


@contextlib.contextmanager
def _about(param: str) -> Iterator[None]:
    """Turn a wrong value within the block into the failure of a request that names the field."""
    try:
        yield
    except RequestError as error:
        raise as_http_error(error, param) from None


def _check_most(param: str, value: int, most: int) -> None:
    with _about(param):
        check_int(param, value, 0 if param == "partial_images" else 1, most)


def _check_form(fields: ImageFields, model: ServedModel, urls: bool) -> None:
    """Check the fields that allow one value only."""
    if fields.size not in (None, "auto", _size(model)):
        message = f"{model.name} makes images of {_size(model)}, found {truncate(fields.size)}; leave size out"
        raise HttpError(400, message, param="size", code="invalid_value")
    if fields.stream and fields.response_format == _URL:
        message = "a stream carries its images; leave response_format out"
        raise HttpError(400, message, param="response_format", code="invalid_value")
    if not urls and fields.response_format == _URL:
        message = f"this service has several replicas, which share no images; ask for {_B64}"
        raise HttpError(400, message, param="response_format", code="invalid_value")


def _sampling(fields: ImageFields, model: ServedModel, preset: str | None) -> Sampling:
    """Return the sampling settings of a request, one field after the other, so that a fault names its field."""
    with _about("preset"):
        model.sampling(preset)
    with _about("num_inference_steps"):
        model.sampling(preset, iterations=fields.num_inference_steps)
    with _about("guidance_scale"):
        return model.sampling(preset, iterations=fields.num_inference_steps, cfg_scale=fields.guidance_scale)


def _brief(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "mar"}


def _size(model: ServedModel) -> str:
    height, width, _ = model.generator.manifest.model.image_shape
    return f"{width}x{height}"


def _shape(asked: _Asked) -> dict[str, Any]:
    return {
        "size": _size(asked.model),
        "quality": "auto",
        "background": "opaque",
        "output_format": asked.format_name,
        "model": asked.model.name,
    }


def _how(shown: Shown) -> dict[str, Any]:
    """Return what draws a finished image again."""
    record = shown.record
    assert record is not None
    subject = ("prompt", "negative_prompt") if record.prompt else ("class_number", "class_name")
    return {name: getattr(record, name) for name in (*subject, "seed", "index", "preset")}


def _usage(asked: _Asked, images: int) -> dict[str, Any]:
    """Return the usage in tokens: a class is one token of text."""
    tokens = images * asked.model.generator.manifest.model.tokens
    text = asked.model.text_tokens(asked.drawing.subjects[0])
    details = {"image_tokens": 0, "text_tokens": text}
    return {
        "input_tokens": text,
        "input_tokens_details": details,
        "output_tokens": tokens,
        "total_tokens": text + tokens,
    }


def _timing(timing: Timing, asked: _Asked) -> dict[str, Any]:
    return {**dataclasses.asdict(timing), "total_seconds": time.monotonic() - asked.arrived}
