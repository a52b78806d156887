"""A response of server-sent events, which notices that its client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.service.service import until_gone

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy must pass each event on at once
_KEEP_ALIVE = b": waiting\n\n"
_KEEP_ALIVE_SECONDS = 15.0  # proxies end a connection on which nothing comes for a minute

Event = Mapping[str, Any]
"""The data of an event, as JSON values; the entry `type` is its name."""


class EventStream(Response):
    """Sends events as they come, until they end or the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: AsyncGenerator[Event], end: Callable[[], object]) -> None:
        """Make the response.

        Args:
            request: The request, whose body was read.
            events: The source of the events.
            end: Called at the end, however it comes.
        """
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._request, self._events, self._end = request, events, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(until_gone(self._request))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._end()
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                await asyncio.wait({following}, timeout=_KEEP_ALIVE_SECONDS)
                if not following.done():
                    await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
                    continue
                event = following.result()
                if event is None:
                    break
                data = json.dumps(event, allow_nan=False, separators=(",", ":"))
                text = f"event: {event['type']}\ndata: {data}\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                following = asyncio.ensure_future(anext(self._events, None))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._events.aclose()
