"""Failures of requests, with the status that tells a client what kind they are. Each API has its own form for them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException

from runtime.errors import MarError, RequestError
from runtime.service.drawing import DeadlineError, QueueFullError, RetryLaterError, SchedulerClosedError

CLIENT_GONE = 499
"""The status, in logs and metrics, of a request whose client has gone. Nobody receives it."""
INTERNAL = "internal_error"
"""The code of a failure that is a fault of this program."""

# The first that fits counts: kind, status, code.
_KINDS: tuple[tuple[type[MarError], int, str], ...] = (
    (QueueFullError, 429, "queue_full"),
    (SchedulerClosedError, 503, "stopping"),
    (DeadlineError, 504, "timeout"),
    (RequestError, 400, "invalid_value"),
    (MarError, 500, "generation_failed"),
)


class HttpError(MarError):
    """A failure of a request.

    Attributes:
        status: The HTTP status.
        param: The field of the request that is wrong; None for none.
        code: A word for programs; None for none.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})


def as_http_error(error: Exception, param: str | None = None) -> HttpError:
    """Return an exception as the failure of a request; `param` is the field of the request that it is about."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, HTTPException):
        return HttpError(error.status_code, _routing_message(error), headers=error.headers)
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(error.seconds)} if isinstance(error, RetryLaterError) else None
            return HttpError(status, str(error), param=param, code=code, headers=headers)
    return HttpError(500, "the service has a fault; its log has a line with this request's id", code=INTERNAL)


def _routing_message(error: HTTPException) -> str:
    known = {404: "there is nothing at this path", 405: "this path has no such method"}
    return known.get(error.status_code, str(error.detail))
