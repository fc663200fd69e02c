"""What stands between the network and the routes: names, web pages, sizes, headers."""

from collections.abc import Iterable
from typing import Final

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conviction.server.failures import RequestError
from conviction.server.replies import refuse

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_READING: Final = ("GET", "HEAD", "OPTIONS")
_BODY_SECONDS = 60.0

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_SECURITY: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class NameGuard:
    """Refuses requests that call the server by a name that is not its own.

    A web page can make its own name point to this machine (DNS rebinding); its requests then carry
    that name.

    Args:
        app: What is guarded.
        names: The names, without ports.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            name = host_name(Headers(scope=scope).get("host", ""))
            if name not in self._names:
                error = RequestError(
                    "This server is not called that. Use its own address, or start it with "
                    "--allow-host.",
                    code="unknown_host",
                    status=421,
                )
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class OriginGuard:
    """Refuses requests that change something and come from web pages of others.

    Args:
        app: What is guarded.
        origins: Web pages that may, as in "https://chat.example.org".
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app = app
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            origin = headers.get("origin", "").lower()
            host = headers.get("host", "").lower()
            own = origin in (f"http://{host}", f"https://{host}")
            if origin and not own and origin not in self._origins:
                error = RequestError(
                    "A web page of another address asks. Start the server with --cors-origin to "
                    "let it.",
                    code="foreign_origin",
                    status=403,
                )
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyGuard:
    """Reads the whole body of a request before anything else, and refuses one that is too large.

    Args:
        app: What is guarded.
        most_bytes: The most bytes of a body.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            with anyio.fail_after(_BODY_SECONDS):
                messages = await self._read(scope, receive)
        except TimeoutError:
            late = RequestError("The request did not come whole.", code="timeout", status=408)
            await refuse(late, scope, receive, send)
            return
        except RequestError as error:
            await refuse(error, scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message]:
        """One message with the whole body, or that the client has gone."""
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._most_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return [message]
            body += message.get("body", b"")
            if len(body) > self._most_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return [{"type": "http.request", "body": bytes(body), "more_body": False}]

    def _too_large(self) -> RequestError:
        return RequestError(
            f"The request has more than {self._most_bytes:,} bytes.",
            code="request_too_large",
            status=413,
        )


class SecurityHeaders:
    """Tells browsers to keep to this server; a route may set its own instead.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add headers to its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


def host_name(host: str) -> str:
    """A host without its port, in lower case; an IPv6 address in brackets."""
    host = host.lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
