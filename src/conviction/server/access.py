"""Who may use the server: names, web pages and keys; and a line of log for each request."""

import hmac
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from time import perf_counter
from typing import Final
from urllib.parse import quote

from opentelemetry import context
from opentelemetry.propagate import extract
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conviction.display import shortened
from conviction.errors import InvalidSettingError
from conviction.server.failures import LOGGER, RequestError, failure_response
from conviction.server.telemetry import Metrics

Check = Callable[[Scope, Headers], None]
"""Raises a `RequestError` if a request is refused."""

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")

_KEYS_VARIABLE: Final = "CONVICTION_SERVER_KEYS"
_MOST_KEY_BYTES = 1 << 20
_SHORTEST_KEY = 8
_HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?)(?::[0-9]{1,5})?"
)
_SHARED_PATHS = ("/v1/", "/health")
_PRINTED = "/:@!$&'()*+,;=~"
_MOST_LOGGED = 300
"""Characters of a path in the log; a head may have many thousand."""
_PATHS_WITH_KEYS = ("/v1/", "/api/", "/metrics")
_TIMED_PATHS = ("/v1/chat/completions", "/v1/completions")
_READING: Final = ("GET", "HEAD", "OPTIONS")
_DISCONNECTED = 499

_SECURITY: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The keys of clients from a file, or from the environment, each with its name.

    One key a line (in the environment also between commas), after a name if wanted: "NAME KEY".
    Empty lines and those that begin with "#" are skipped.

    Raises:
        InvalidSettingError: the file cannot be read, or a key is invalid. No key is part of it.
    """
    if file is None:
        text = environment.get(_KEYS_VARIABLE, "").replace(",", "\n")
        return _parsed(text, f"the variable {_KEYS_VARIABLE}")
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_KEY_BYTES + 1).decode()
        keys = _parsed(text, f"the file {file}")
        if keys and len(text) <= _MOST_KEY_BYTES:
            return keys
        problem = "it is too large" if keys else "there is none in it"
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is not text"
    raise InvalidSettingError(
        tried=f"read the keys of clients from {file}",
        found=problem,
        remedy="Name a file with one key a line.",
    )


def readable_by_others(file: Path) -> bool:
    """Whether users other than its owner may read a file, as its permissions say."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return False
    return os.name == "posix" and bool(mode & (stat.S_IRGRP | stat.S_IROTH))


def check_bound(host: str, keys: Mapping[str, str]) -> None:
    """InvalidSettingError if others can reach an address, and there are no keys."""
    if keys or is_loopback(host):
        return
    raise InvalidSettingError(
        tried=f"listen on {host}",
        found="others can reach that address, and there are no keys of clients",
        remedy=f"Name a file with --client-keys, or set {_KEYS_VARIABLE}; or listen on 127.0.0.1.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def client_of(request: HTTPConnection) -> str:
    """Name of the key that a request was sent with; "" where there are no keys."""
    return request.scope.get("conviction.client", "")


def address_of(request: HTTPConnection) -> str:
    """Address that a request came from; "" where the connection has none."""
    return request.client.host if request.client else ""


class Middleware(ABC):
    """Stands in front of an application; only requests of HTTP go through `handle`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or pass on anything else."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""


class Guard(Middleware):
    """Refuses the requests for which `check` raises a `RequestError`."""

    def __init__(self, app: ASGIApp, check: Check) -> None:
        super().__init__(app)
        self._check = check

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        try:
            self._check(scope, Headers(scope=scope))
        except RequestError as error:
            await failure_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def host_check(names: Iterable[str]) -> Check:
    """Refuse requests without exactly one Host header with one of these names, on any port.

    A web page can make its own name point to this machine (DNS rebinding); its requests then carry
    that name.
    """
    known = {name.lower() for name in names}

    def check(_: Scope, headers: Headers) -> None:
        given = headers.getlist("host")
        if len(given) != 1 or host_name(given[0]) not in known:
            raise RequestError(
                "This server is not called that. Use its own address, or start it with "
                "--allow-host.",
                code="unknown_host",
                status=421,
            )

    return check


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case; None if it is not a name with perhaps a port."""
    found = _HOST.fullmatch(host.lower())
    return found["name"] if found else None


def origin_check(origins: Iterable[str]) -> Check:
    """Refuse requests that change something, from web pages of any but this and these addresses.

    These may use the API, not the routes of the live page.
    """
    known = {origin.lower().rstrip("/") for origin in origins}

    def check(scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin", "").lower()
        host = headers.get("host", "").lower()
        allowed = origin in (f"http://{host}", f"https://{host}", "")
        if is_shared(scope["path"]):
            allowed = allowed or origin in known or "*" in known
        if scope["method"] not in _READING and not allowed:
            raise RequestError(
                "A web page of another address asks. Start the server with --cors-origin to let "
                "it.",
                code="foreign_origin",
                status=403,
            )

    return check


def key_check(keys: Mapping[str, str]) -> Check:
    """Refuse requests without a valid key, and note in others the name that their key has."""
    encoded = [(key.encode(), name) for key, name in keys.items()]

    def check(scope: Scope, headers: Headers) -> None:
        if not encoded or not scope["path"].startswith(_PATHS_WITH_KEYS):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given_key = given.strip().encode() if scheme.lower() == "bearer" else b""
        # All keys are compared: the time that it takes reveals nothing.
        names = [name for key, name in encoded if hmac.compare_digest(key, given_key)]
        if not names:
            raise RequestError(
                "The key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                code="invalid_api_key",
                status=401,
            )
        scope["conviction.client"] = names[-1]

    return check


def is_shared(path: str) -> bool:
    """Whether web pages of other origins may be let in; runs are for the live page alone."""
    return path.startswith(_SHARED_PATHS)


class Cors(Middleware):
    """Lets web pages of some origins use the API; all other routes stay closed to them."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(app)
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add headers to its response if it is to the API."""
        await (self._shared if is_shared(scope["path"]) else self.app)(scope, receive, send)


class SecurityHeaders(Middleware):
    """Tells browsers to load nothing from elsewhere; a route may set headers of its own instead."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add headers to its response."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


class AccessLog(Middleware):
    """Logs every request once it was answered, and takes up the OpenTelemetry trace it belongs to.

    `metrics` counts the time to the first byte.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it."""
        began = perf_counter()
        status = _DISCONNECTED
        answered = False

        async def watch(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not answered:
                answered = True
                if status == 200 and scope["path"] in _TIMED_PATHS:
                    seconds = perf_counter() - began
                    self._metrics.first_byte(seconds, stream=message.get("more_body", False))
            await send(message)

        token = context.attach(extract(_carrier(scope)))
        try:
            await self.app(scope, receive, watch)
        except Exception:
            status = 500  # Its response is made outside of this.
            raise
        finally:
            context.detach(token)
            address = _logged(scope["client"][0]) if scope.get("client") else "-"
            client = scope.get("conviction.client") or "-"
            method, path = _logged(scope["method"]), _logged(scope["path"])
            seconds = perf_counter() - began
            LOGGER.info("%s %s %s %s %d %.3fs", address, client, method, path, status, seconds)


def _carrier(scope: Scope) -> dict[str, str]:
    """What OpenTelemetry looks for a trace in; `dict(Headers)` takes quadratic time.

    Without the baggage: nothing here uses it, and its parser logs what is wrong with it.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    headers.pop("baggage", None)
    return headers


def _logged(field: str) -> str:
    """A field of a line of the log, without blanks, which would forge the fields behind it."""
    return quote(shortened(field, _MOST_LOGGED), safe=_PRINTED, errors="replace")


def _parsed(text: str, source: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        *names, key = words
        if len(names) > 1 or len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable()):
            raise InvalidSettingError(
                tried=f"use the keys in {source}",
                found=f"key number {len(keys) + 1} is no word of at least {_SHORTEST_KEY} "
                "characters",
                remedy="Give one key a line, or a name, a blank and the key.",
            )
        keys[key] = names[0] if names else f"key-{len(keys) + 1}"
    return keys
