"""Open connections: how many there may be, and how long each may take.

uvicorn bounds the idle time after an answer and nothing else: a connection that sends nothing, or
a byte every few seconds, stays for ever (Slowloris, CVE-2007-6750). Requests are parsed by h11,
whatever else is installed: it bounds the bytes of a head, which httptools does not.
"""

import asyncio
import errno
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any, cast

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from conviction.server.failures import LOGGER
from conviction.server.settings import Limits

ACCEPTED_AT_ONCE = 8
"""Connections that are accepted before others are served: more could use up all open files."""

_RECEIVED_AT_ONCE = 16 << 10
"""Bytes read of one connection before others are served; parsing that many takes milliseconds."""

_FREE_CHUNKS, _CHUNK_BYTES = 256, 64
"""A chunked body may have so many chunks, and one more for each so many bytes."""

_FEWEST = 8
_SPARE_FILES = 32
_LOG_SECONDS = 60.0

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 35\r\n\r\n"
    b"The request did not come in time.\r\n"
)


def most_connections(wanted: int) -> int:
    """How many connections there may be: `wanted`, or what the limit of open files leaves.

    A quarter of that limit is left to the engine, to files and to the history.
    """
    try:
        import resource  # noqa: PLC0415  # not on Windows
    except ImportError:
        return wanted
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    try:
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        used = _SPARE_FILES
    return max(_FEWEST, min(wanted, limit - used - max(_SPARE_FILES, limit // 4)))


class Phase(Enum):
    """What a connection is at."""

    HEAD = "a request's head is being sent, or the first one is awaited"
    BODY = "a request's body is being sent"
    ANSWER = "a request is being answered"
    IDLE = "a request was answered, and no byte of the next one came"
    REST = "a request was answered before its body had come"


class Connections:
    """All connections of a server.

    One more than `most` takes the place of one whose request has not come whole: the oldest of
    the address that has most of these. So connections that wait keep nobody out.

    Args:
        limits: For each connection.
        most: Connections at once.
    """

    def __init__(self, limits: Limits, most: int) -> None:
        self.limits = limits
        self._most = most
        self._all: set[Connection] = set()
        # By address; the first one of each has waited longest.
        self._waiting: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: "Connection") -> None:
        """Take a connection that was made just now."""
        if len(self._all) >= self._most and self._waiting:
            address = max(self._waiting, key=lambda one: len(self._waiting[one]))
            oldest = next(iter(self._waiting[address]))
            self.remove(oldest)
            oldest.transport.abort()
        self._all.add(connection)

    def remove(self, connection: "Connection") -> None:
        """Forget a connection that was lost."""
        self._all.discard(connection)
        self.work(connection)

    def wait(self, connection: "Connection") -> None:
        """Note that a connection's request has not come whole."""
        if connection in self._all:
            self._waiting.setdefault(connection.address, {})[connection] = None

    def work(self, connection: "Connection") -> None:
        """Note that a connection's request is being answered."""
        waiting = self._waiting.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[connection.address]

    def sweep(self, now: float) -> None:
        """End the connections that have taken too long, by the clock of the event loop."""
        for connection in list(self._all):
            connection.check(now)


class Connection(H11Protocol):
    """uvicorn's connection, with bounds for what a client sends and for how long it takes."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        all_of_them: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state)
        limits = all_of_them.limits
        self.conn = _Parser(h11.SERVER, limits.header_bytes)
        self.address = ""
        self._all = all_of_them
        self._limits = limits
        self._phase = Phase.HEAD
        self._since = self.loop.time()
        self._said_something = False
        self._unsent = 0
        self._moved = self._since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        with suppress(AttributeError):
            # Of the event loops that are not asyncio's own some have no such bound.
            cast("Any", transport).max_size = _RECEIVED_AT_ONCE
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._all.add(self)
        self._all.wait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._said_something = True
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """Wait for the next request, or go on with one that has come already."""
        super().on_response_complete()
        self._settle()

    def send_400_response(self, msg: str) -> None:
        """Say that the request is not HTTP, unless an answer has begun."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def check(self, now: float) -> None:
        """End it if the client sends its request, or takes its answer, too slowly."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif now - self._moved >= self._limits.send_seconds:
            self.transport.abort()
            return
        idle = self._phase is Phase.IDLE
        most = self._limits.idle_seconds if idle else self._limits.header_seconds
        late = now - self._since >= most and self._phase not in (Phase.BODY, Phase.ANSWER)
        if late and not self.transport.is_closing():
            if self._phase is Phase.HEAD and self._said_something:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    def _settle(self) -> None:
        phase = self._found_phase()
        # Part of a head is in the parser.
        if phase is not self._phase and (phase, self._phase) != (Phase.IDLE, Phase.HEAD):
            self._enter(phase)

    def _found_phase(self) -> Phase:
        cycle = cast("Any", self.cycle)  # None before the first request.
        if cycle is None:
            return Phase.HEAD
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.REST if cycle.response_complete else Phase.BODY
        return Phase.IDLE if cycle.response_complete else Phase.ANSWER

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, self.loop.time()
        if phase is Phase.ANSWER:
            self._all.work(self)
        else:
            self._all.wait(self)


class _Parser(h11.Connection):
    """h11's parser, with a bound for the chunks of a body: each costs as much as a request's."""

    _chunked = False
    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """The next event; h11.RemoteProtocolError for a body in tiny chunks, too."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._chunks = self._bytes = 0
        elif self._chunked and isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._bytes // _CHUNK_BYTES:
                raise h11.RemoteProtocolError("too many chunks")
        return event


@contextmanager
def accept_errors_counted(
    loop: AbstractEventLoop, clock: Callable[[], float] = monotonic
) -> Generator[None]:
    """Log that connections cannot be accepted once a minute, not for each of them.

    asyncio tries again after a second, and reports hundreds of failures at once.
    """
    before = loop.get_exception_handler()
    failures, logged = 0, -_LOG_SECONDS

    def handle(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal failures, logged
        error = context.get("exception")
        if "socket" in context and isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            failures += 1
            if clock() - logged >= _LOG_SECONDS:
                LOGGER.error(
                    "Connections cannot be accepted: %s (%d failures since the last line). "
                    "Raise the limit of open files, or lower --max-connections.",
                    (error.strerror or str(error)).lower(),
                    failures,
                )
                failures, logged = 0, clock()
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
