"""The connection to one server of completions: sends, reads, and bounds every wait.

aiohttp carries the bytes: its parser costs a third of what others do per token, and closing a
response closes the connection at once, which is what tells a server to stop.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import msgspec

from conviction.core import require
from conviction.engines.base import not_started
from conviction.engines.openai.failures import Failures
from conviction.errors import EngineError, InvalidSettingError, TemporarilyUnavailableError

Json = Mapping[str, object]

NOTHING: Json = MappingProxyType({})

_MOST_ANSWER_BYTES = 1 << 22
_READ_BYTES = 1 << 18
_KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which common servers hang up, so that no request meets that moment."""

_CLOSE_SECONDS = 2.0
_DRAIN_SECONDS = 0.2
_PAGE_SECONDS = 15.0
_CHECK_SECONDS = 5.0
_FAREWELL_SECONDS = 2.0
_LOOK_SECONDS = 1.0
"""Between two looks at a stream, at most."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds of every wait for a server, in seconds, each above 0.

    Attributes:
        first_byte: Until the first byte of an answer: the queue and the prefill lie before it.
        stall: Between two bytes of an answer.
        trace: For a whole trace.
    """

    connect: float = 10.0
    first_byte: float = 300.0
    stall: float = 120.0
    trace: float = 14_400.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_byte", "stall", "trace"):
            require(f"{name}_timeout", getattr(self, name), low=1e-3)


class HttpClient:
    """Speaks to one server. Used as an asynchronous context manager, under asyncio.

    Args:
        base_url: Address that paths are added to, as in "http://127.0.0.1:8000/v1".
        api_key: Key to send; never shown, never logged.
        headers: Further headers of every request; as they may hold keys, never shown either.

    Raises:
        InvalidSettingError: the address is unusable.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeouts: Timeouts,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        _check_address(self.base_url)
        self.timeouts = timeouts
        secrets = (api_key or "", *(value for value in headers.values() if len(value) > 7))
        self.failures = Failures(self.base_url, "\n".join(filter(None, secrets)) or None)
        self._api_key = api_key
        self._headers = dict(headers)
        self._session: aiohttp.ClientSession | None = None

    @property
    def sends_key_in_the_open(self) -> bool:
        """Whether a key travels to another machine without TLS."""
        address = urlsplit(self.base_url)
        away = address.hostname not in _LOOPBACK
        return bool(self._api_key) and away and address.scheme == "http"

    async def __aenter__(self) -> Self:
        """Open the client; the server is first spoken to when something is asked."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
            proxy=_proxy(urlsplit(self.base_url)),
            read_bufsize=_READ_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await session.close()

    async def stream(self, path: str, body: Json) -> "ByteStream":
        """Post JSON and give the answer, a stream of events; EngineError if it is anything else."""
        began = asyncio.get_running_loop().time()
        response = await self._send("POST", self.base_url + path, body)
        content_type = response.headers.get("Content-Type", "").lower()
        if response.status == 200 and content_type.startswith("text/event-stream"):
            return ByteStream(self, response, began)
        answer = await self._read(response)
        if response.status == 200:
            raise self.failures.not_a_stream(content_type, answer)
        raise self.failures.answered(response.status, response.headers, answer)

    async def ask(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Send a request, with a `body` as JSON, and give the whole body of its answer.

        `path` is below the base URL, or a whole address. EngineError if the server cannot be
        reached, or does not answer with 200.
        """
        url = path if "://" in path else self.base_url + path
        # What needs no tokens needs little time.
        bound = _PAGE_SECONDS if body is None else inf
        try:
            with anyio.fail_after(min(bound, 2 * self.timeouts.first_byte)):
                response = await self._send(method, url, body)
                answer = await self._read(response)
        except TimeoutError as error:
            raise self.failures.unreachable(error) from error
        if response.status != 200:
            raise self.failures.answered(response.status, response.headers, answer)
        return answer

    async def _send(self, method: str, url: str, body: Json | None) -> aiohttp.ClientResponse:
        if self._session is None:
            raise not_started(f"the engine of {self.base_url}")
        data = None if body is None else msgspec.json.encode(body)
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._api_key:
            # Not among the session's headers: aiohttp would show those to a proxy, too.
            headers["Authorization"] = f"Bearer {self._api_key}"
        send = partial(
            self._session.request, method, url, data=data, headers=headers, allow_redirects=False
        )
        try:
            with anyio.fail_after(self.timeouts.first_byte):
                try:
                    return await send()
                except aiohttp.ClientConnectorError:
                    raise
                except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                    # A server may drop a kept connection just when it is used again.
                    return await send()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError) as error:
            # A session that is closed meanwhile says so with a RuntimeError.
            raise self.failures.unreachable(error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, up to a bound."""
        body = bytearray()
        try:
            with anyio.fail_after(self.timeouts.first_byte):
                read = response.content.readany
                while len(body) < _MOST_ANSWER_BYTES and (piece := await read()):
                    body += piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.failures.unreachable(error) from error
        finally:
            _give_back(response)
        return bytes(body[:_MOST_ANSWER_BYTES])


class ByteStream:
    """The body of an answer, while it comes in.

    One timer per stream watches over it: moving a timer with every byte would cost as much as
    reading the byte.
    """

    def __init__(self, http: HttpClient, response: aiohttp.ClientResponse, began: float) -> None:
        self._response = response
        self._timeouts = http.timeouts
        self._failures = http.failures
        self._began = self._heard = began
        self._allowed = http.timeouts.first_byte
        self._given_up: EngineError | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(self._next_look(), self._look)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes as they come; StreamError if it broke, stalled, or took too long."""
        read = self._response.content.readany
        clock = self._loop.time
        try:
            while piece := await read():
                self._heard = inf  # No read is pending until the next piece is asked for.
                yield piece
                self._heard, self._allowed = clock(), self._timeouts.stall
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._given_up or self._failures.broken(error) from error
        if self._given_up is not None:
            raise self._given_up

    def expect_end(self) -> None:
        """Nothing of value will come any more, so it is not waited for as long as for tokens."""
        self._timeouts = replace(self._timeouts, stall=min(self._timeouts.stall, _FAREWELL_SECONDS))

    async def drain(self) -> None:
        """Read what follows the last event, mostly nothing, so that the connection can be kept."""
        with suppress(aiohttp.ClientError, OSError, RuntimeError, EngineError):
            with anyio.move_on_after(_DRAIN_SECONDS):
                while await self._response.content.readany():
                    pass

    def close(self) -> None:
        """End the answer: keep the connection if all of it was read, else hang up at once."""
        self._timer.cancel()
        _give_back(self._response)

    def _next_look(self) -> float:
        # Soon, as between two looks the first byte may come, after which less silence is allowed.
        soon = self._loop.time() + min(self._timeouts.stall, _LOOK_SECONDS)
        return min(self._heard + self._allowed, self._began + self._timeouts.trace, soon)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._began + self._timeouts.trace:
            late = f"the trace had not ended after {self._timeouts.trace:g} s"
            self._given_up = self._failures.broken(late)
        elif now >= self._heard + self._allowed:
            self._given_up = self._failures.silent(self._allowed)
        elif self._is_lost():
            lost = "the connection was lost, or something came that is no HTTP"
            self._given_up = self._failures.broken(lost)
        else:
            self._timer = self._loop.call_at(self._next_look(), self._look)
            return
        self._response.close()

    def _is_lost(self) -> bool:
        """Whether the connection is gone without the reader being told.

        That is how aiohttp 3.14 takes an answer that turns out to be no HTTP in its middle.
        """
        connection, content = self._response.connection, self._response.content
        if connection is None or content.is_eof() or content.exception() is not None:
            return False
        return connection.transport is None or connection.transport.is_closing()


async def check(http: HttpClient) -> None:
    """Ask a server for a sign of life; EngineUnavailableError if it gives none in time."""
    try:
        with anyio.fail_after(_CHECK_SECONDS):
            await http.ask("GET", "/models")
    except TimeoutError as error:
        raise http.failures.unreachable(error) from error
    except TemporarilyUnavailableError:
        raise
    except EngineError:
        return  # It refuses to list its models, but it lives.


def _give_back(response: aiohttp.ClientResponse) -> None:
    if response.content.at_eof():
        response.release()
    else:
        response.close()


def _check_address(url: str) -> None:
    # What stands before an @ or behind a ? may be secret, so it is not shown.
    shown = url.rpartition("@")[2].partition("?")[0]
    try:
        problem = _problem(urlsplit(url))
    except ValueError as error:
        problem = "it is malformed" if shown != url else str(error)
    if problem:
        raise InvalidSettingError(
            tried=f"use {shown!r} as a server's address",
            found=problem,
            remedy="Give an address such as http://127.0.0.1:8000/v1.",
        )


def _problem(address: SplitResult) -> str:
    if address.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if address.username or address.password:
        return "it holds a name or a password, and addresses are shown and logged"
    if address.query or address.fragment:
        return "paths are added to it, so it cannot hold a ? or a #"
    if not address.hostname:
        return "it names no host"
    return "port 0 is no port" if address.port == 0 else ""


def _proxy(address: SplitResult) -> str | None:
    """The proxy that the environment names, but for loopback.

    aiohttp would find it, too, but then adds what netrc holds for the server to our own key.
    """
    if address.hostname in _LOOPBACK or proxy_bypass(address.netloc):
        return None
    return getproxies().get(address.scheme)
