"""Keys of clients: read once, compared in constant time, never shown."""

import hmac
import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from conviction.errors import InvalidSettingError
from conviction.server.failures import RequestError
from conviction.server.replies import refuse

VARIABLE = "CONVICTION_SERVER_KEYS"
_MOST_BYTES = 1 << 20
_SHORTEST = 8
_GUARDED = ("/v1/", "/api/", "/metrics")


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The keys of a file, or of the environment, and what each is called.

    One key a line (in the environment also between commas); "NAME KEY" calls it by a name. Empty
    lines and those that begin with "#" are skipped.

    Raises:
        InvalidSettingError: the file cannot be read, or a key is none. No key is part of it.
    """
    if file is None:
        return _parsed(environment.get(VARIABLE, "").replace(",", "\n"), f"the variable {VARIABLE}")
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(
            tried=f"read the keys of clients from {file}",
            found=getattr(error, "strerror", None) or "it is not text",
            remedy="Name a file with one key a line.",
        ) from None
    found = _parsed(text, f"the file {file}")
    if not found or len(text) > _MOST_BYTES:
        raise InvalidSettingError(
            tried=f"read the keys of clients from {file}",
            found="there is none in it" if not found else "it is too large",
            remedy="Put one key a line there.",
        )
    return found


def check_bound(host: str, keys: Mapping[str, str]) -> None:
    """Check that an address that others can reach has keys.

    Raises:
        InvalidSettingError: it has none.
    """
    if keys or is_loopback(host):
        return
    raise InvalidSettingError(
        tried=f"listen on {host}",
        found="others can reach that address, and there are no keys of clients",
        remedy=f"Name a file with --client-keys, or set {VARIABLE}; or listen on 127.0.0.1.",
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
    """Who asks: the name of the key; "" where there are no keys."""
    return request.scope.get("conviction.client", "")


class KeyGuard:
    """Lets only those in who have a key, and notes who they are.

    Args:
        app: What is guarded.
        keys: The keys, and what each is called.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str]) -> None:
        self._app = app
        self._keys = [(key.encode(), name) for key, name in keys.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._keys and scope["path"].startswith(_GUARDED):
            name = self._name(Headers(scope=scope).get("authorization", ""))
            if name is None:
                error = RequestError(
                    "The key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                    code="invalid_api_key",
                    status=401,
                )
                await refuse(error, scope, receive, send)
                return
            scope["conviction.client"] = name
        await self._app(scope, receive, send)

    def _name(self, authorization: str) -> str | None:
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode() if scheme.lower() == "bearer" else b""
        found = None
        for known, name in self._keys:  # All of them: how long it takes tells nothing.
            if hmac.compare_digest(known, key):
                found = name
        return found


def _parsed(text: str, source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        *names, key = words
        if len(names) > 1 or len(key) < _SHORTEST or not (key.isascii() and key.isprintable()):
            raise InvalidSettingError(
                tried=f"use the keys in {source}",
                found=f"key number {len(found) + 1} is no word of at least {_SHORTEST} characters",
                remedy="Give one key a line, or a name, a blank and the key.",
            )
        found[key] = names[0] if names else f"key-{len(found) + 1}"
    return found
