"""What operators ask of a service: whether it lives, whether it is ready, and its figures."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.service.metrics import CONTENT_TYPE
from runtime.service.service import Service

LIVE, READY = "/livez", "/readyz"
"""The paths of liveness and readiness, which need no key."""
METRICS = "/metrics"
"""The path of the figures for Prometheus."""


class Operations:
    """The handlers for operators of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route(LIVE, self.live, methods=["GET"]),
            Route(READY, self.ready, methods=["GET"]),
            Route(METRICS, self.metrics, methods=["GET"]),
        ]

    async def live(self, request: Request) -> Response:
        """Answer that the process runs."""
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """Answer whether requests are welcome: after the first image of every model, until the service stops."""
        if self._service.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "stopping" if self._service.stopping else "starting"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Answer with the figures for Prometheus."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
