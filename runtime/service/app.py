"""The application: every HTTP surface over one service."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from runtime.generator import Generator
from runtime.service import open_inference, openai_images
from runtime.service.access import ApiKeys, KnownHosts, NoOtherSites
from runtime.service.http_errors import HttpError, as_http_error
from runtime.service.open_inference import OpenInference
from runtime.service.openai_images import ImagesApi
from runtime.service.operations import LIVE, METRICS, READY, Operations
from runtime.service.request_body import BodyLimit
from runtime.service.request_log import RequestLog
from runtime.service.service import Service
from runtime.service.settings import ServiceSettings

STATIC = pathlib.Path(__file__).with_name("static")
"""The folder of the page: `index.html`, which is served at `/`, and what it loads, served under `/static`."""

_OPEN_PATHS = {"/", LIVE, READY, *open_inference.HEALTH}
_OPEN_FOLDERS = ("/static/", f"{openai_images.FILES}/")


def create_app(models: Mapping[str, Generator], settings: ServiceSettings) -> Starlette:
    """Return the application that serves some models.

    Args:
        models: A generator for each name. The application closes them at its end.
        settings: The settings of the service.

    Raises:
        RequestError: A name or a setting has a wrong value, or an artifact makes no images.
    """
    service = Service(models, settings)
    surfaces = (ImagesApi(service), OpenInference(service), Operations(service))
    routes = [Route("/", _page), *(route for surface in surfaces for route in surface.routes())]
    static = Mount("/static", StaticFiles(directory=STATIC))
    names = {route.endpoint: route.path for route in routes} | {static.app: static.path}

    def route_name(scope: Scope) -> str:
        endpoint = scope.get("endpoint")
        return names.get(endpoint, "other") if endpoint else "other"

    def is_open(path: str) -> bool:
        return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)

    async def unknown_path(request: Request, error: Exception) -> Response:
        return _failure(request.url.path, as_http_error(error))

    quiet = {*_OPEN_PATHS - {"/"}, METRICS}
    middleware = [Middleware(RequestLog, service=service, route=route_name, failure=_failure, quiet=quiet)]
    if settings.hosts:
        middleware.append(Middleware(KnownHosts, hosts=settings.hosts))
    middleware.append(Middleware(NoOtherSites))
    if settings.api_keys:
        middleware.append(Middleware(ApiKeys, keys=settings.api_keys, is_open=is_open))
    middleware.append(Middleware(BodyLimit, most=settings.max_body))
    app = Starlette(
        routes=[*routes, static],
        middleware=middleware,
        exception_handlers={HTTPException: unknown_path},
        lifespan=_lifespan,
    )
    app.state.service = service
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """Draw the first images while requests already come; close the service at the end."""
    service: Service = app.state.service
    warming_up = asyncio.ensure_future(service.warm_up())
    try:
        yield
    finally:
        warming_up.cancel()
        await asyncio.to_thread(service.close)


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _failure(path: str, error: HttpError) -> Response:
    """Return the response to a failed request, in the form of the API that the path belongs to."""
    body = open_inference.error_body if path == "/v2" or path.startswith("/v2/") else openai_images.error_body
    return JSONResponse(body(error), error.status, error.headers)
