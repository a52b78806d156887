"""The body of a request, within the limits of the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.service.http_errors import HttpError
from runtime.service.settings import ServiceSettings

_MOST_TEXTS = 40
_MOST_TEXT_KIB = 64
_MOST_FILES = 17  # 16 images and a mask, as at OpenAI: whoever sends them is told which name is there twice


class BodyLimit:
    """Middleware that ends a request whose body is too large, before it is in memory."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """Wrap an application; `most` is the most bytes of a body."""
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            declared = Headers(scope=scope).get("content-length", "0")
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, int(declared) if declared.isdecimal() else 0) > self._most:
                raise HttpError(413, f"the body has more than {self._most} bytes; send less", code="body_too_large")
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return the body of a request.

    Raises:
        HttpError: It is compressed, too large, or it did not come in time.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HttpError(415, f"a body must not be compressed, found Content-Encoding {encoding[:40]!r}")
    try:
        return await asyncio.wait_for(request.body(), settings.timeout)
    except asyncio.TimeoutError:
        raise HttpError(408, "the body did not come in time", code="timeout") from None


async def read_form(request: Request, settings: ServiceSettings) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the texts and the files of a form, by their names, without the `[]` of files in a list.

    Raises:
        HttpError: The body is no such form, or a name is there twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HttpError(415, f"the body must be multipart/form-data, found {kind[:40] or 'no Content-Type'!r}")
    await read_body(request, settings)  # within the limits; the form is parsed from it
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    async with _parsed(request) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]") if isinstance(value, UploadFile) else key
            if name in texts or name in files:
                raise HttpError(400, f"the field {name[:64]!r} is there twice; send it once", param=name[:64])
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                texts[name] = value
    return texts, files


@contextlib.asynccontextmanager
async def _parsed(request: Request) -> AsyncIterator[FormData]:
    """Give the form of a request whose body was read. Raises `HttpError` if it is none, or too large a one."""
    try:
        form = await request.form(max_files=_MOST_FILES, max_fields=_MOST_TEXTS, max_part_size=_MOST_TEXT_KIB * 1024)
    except HTTPException:
        message = f"the body is no form of at most {_MOST_FILES} files and {_MOST_TEXTS} texts of {_MOST_TEXT_KIB} KiB"
        raise HttpError(400, message, code="invalid_form") from None
    try:
        yield form
    finally:
        await form.close()
