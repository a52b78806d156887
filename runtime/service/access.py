"""Who may use a service: who has an API key and asks by its own name, and no web page of somebody else."""

from __future__ import annotations

import hashlib
import hmac
import pathlib
import urllib.parse
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.checks import printable, truncate
from runtime.errors import RequestError
from runtime.service.http_errors import HttpError
from runtime.storage.structured_files import read_bytes

_KEY_FILE_BYTES = 2**20
_SHORTEST = 16  # characters


def read_api_keys(path: pathlib.Path) -> tuple[str, ...]:
    """Return the keys in a file: one on each line; empty lines and lines that begin with # are left out.

    Raises:
        RequestError: It cannot be read, has no key, or a key is too short or has other characters than ASCII.
    """
    name = printable(str(path))
    try:
        lines = read_bytes(path, _KEY_FILE_BYTES).decode("ascii").splitlines()
    except OSError as error:
        raise RequestError(f"{name}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RequestError(f"{name}: not a file of API keys, one ASCII text on each line") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise RequestError(f"{name}: no API key; write one on each line")
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isprintable() or " " in key:
            raise RequestError(f"{name}: key {number} must have at least {_SHORTEST} characters and no spaces")
    return keys


class ApiKeys:
    """Middleware that lets only requests with a key pass: `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], is_open: Callable[[str], bool]) -> None:
        """Wrap an application.

        Args:
            app: The application.
            keys: The keys.
            is_open: Whether a path needs no key.
        """
        self._app, self._hashes, self._is_open = app, [_hash(key) for key in keys], is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise `HttpError`."""
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            found = _hash(key.strip())
            # All keys are compared, in a time that does not depend on them.
            matches = [hmac.compare_digest(found, each) for each in self._hashes]
            if scheme.lower() != "bearer" or not any(matches):
                raise HttpError(
                    401,
                    "this service needs an API key; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        await self._app(scope, receive, send)


class NoOtherSites:
    """Middleware that refuses what a web page of another site sends from the browser of somebody who can connect."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise `HttpError`."""
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if posted and Headers(scope=scope).get("sec-fetch-site") == "cross-site":  # browsers say so, programs do not
            message = "a web page of another site sent this request; ask from a program, or from the page at /"
            raise HttpError(403, message, code="cross_site")
        await self._app(scope, receive, send)


class KnownHosts:
    """Middleware that lets only requests pass whose header `Host` has a name of the service.

    Another site can give its own name the address of the service (DNS rebinding). A browser then takes the service for
    that site, so that its page may read the answers; but the browser still sends the name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosts: The names and addresses of the service, without ports.
        """
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise `HttpError`."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if _name_of(host) not in self._hosts:
                message = f"this service does not have the name {truncate(host)}; if it should, give it --allowed-host"
                raise HttpError(403, message, code="unknown_host")
        await self._app(scope, receive, send)


def _name_of(host: str) -> str | None:
    """Return the name or address in a header `Host`, without its port; None if it is malformed."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
