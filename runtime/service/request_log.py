"""What is noted of each request: its id, a line in the log, and its figures."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.service.http_errors import CLIENT_GONE, INTERNAL, HttpError, as_http_error
from runtime.service.service import Service
from runtime.service.service_log import LOG

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_LONGEST_PATH = 200


class RequestLog:
    """Middleware that gives each request an id, a line in the log, its figures, and an answer if it fails.

    An id of the client's own, in the header X-Request-ID, is kept. The answer has the same header.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        route: Callable[[Scope], str],
        failure: Callable[[str, HttpError], Response],
        quiet: Collection[str],
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            service: The service, whose metrics are kept.
            route: Returns the name of the route that a request took, for the metrics.
            failure: Returns the response to a failed request, from its path and the failure.
            quiet: Paths that are asked for all the time: they are logged for debugging only, and not counted as
                requests in progress.
        """
        self._app, self._service, self._route, self._failure = app, service, route, failure
        self._quiet = frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        error: HttpError | None = None
        counted = int(scope["path"] not in self._quiet)
        self._service.metrics.in_progress.inc(counted)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as raised:
            error = self._explained(raised, request_id)
            if status == 0 and error.status != CLIENT_GONE:
                await self._failure(scope["path"], error)(scope, receive, send_with_id)
        finally:
            self._service.metrics.in_progress.dec(counted)
            status = error.status if error else status or CLIENT_GONE  # none: the task was cancelled
            self._note(scope, status, request_id, time.perf_counter() - started, error)

    def _explained(self, raised: Exception, request_id: str) -> HttpError:
        """Return what a client is told about an exception. The log gets the traceback of a fault."""
        if isinstance(raised, ClientDisconnect):
            return HttpError(CLIENT_GONE, "the client has gone", code="client_gone")
        error = as_http_error(raised)
        if error.code == INTERNAL:
            LOG.error("fault", extra={"request_id": request_id}, exc_info=raised)
        return error

    def _note(self, scope: Scope, status: int, request_id: str, seconds: float, error: HttpError | None) -> None:
        route, metrics = self._route(scope), self._service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if error is not None and status in (401, 403, 413, 429, 503):
            metrics.rejected.labels(error.code or str(status)).inc()
        client = scope.get("client")
        LOG.log(
            logging.DEBUG if scope["path"] in self._quiet and status < 400 else logging.INFO,
            "request",
            extra={
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:_LONGEST_PATH],
                "status": status,
                "seconds": round(seconds, 4),
                "client": client[0] if client else None,
                **({"error": str(error)} if error else {}),
            },
        )
