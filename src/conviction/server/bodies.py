"""The bodies of requests: read whole before anything else, and bounded before they are parsed."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from itertools import accumulate

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conviction.errors import ConvictionError, OverloadedError
from conviction.server.access import Middleware
from conviction.server.failures import RequestError, failure_response
from conviction.server.settings import Limits

MOST_VALUES = 100_000
"""Values in the JSON of a request; a chat of 10,000 messages in parts has 60,000."""

MOST_DEPTH = 64
"""Objects and lists within each other in the JSON of a request."""

_VALUE_BYTES = 256
"""Memory of a value beside its text: about that of an object with one field."""

_PARSED_AT_ONCE = 256 << 10
_SECONDS_PER_BYTE = 12e-9
"""Time to parse and to check a request, by the memory that it takes."""

_SMALL = 64 << 10
_LARGE_SHARE = 0.75
_COMING_SHARE = 0.5
_WAIT_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_COLLECTED_BYTES = 32 << 20
_RETRY_SECONDS = 5
_ALWAYS = "/health"
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class Memory:
    """Counts the memory that requests take, and refuses what is above `most` bytes.

    Requests of more than 64 KiB may take three quarters, so that they do not keep out small ones;
    and half until they are whole, so that those that are whole find room to be parsed.
    """

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._left = 0

    @contextmanager
    def share(self) -> Generator["MemoryShare"]:
        """What one request takes, until the context is left."""
        share = MemoryShare(self)
        try:
            yield share
        finally:
            share.free()

    def take(self, more: int, taken: int, *, whole: bool = True) -> None:
        """Take so many bytes for one that has some; OverloadedError if there are not enough."""
        share = _LARGE_SHARE if whole else _COMING_SHARE
        room = self._most if taken + more <= _SMALL else int(self._most * share)
        if self.taken + more > room:
            raise OverloadedError(
                tried="take one more request",
                found=f"the requests that are being answered take {self.taken >> 20:,} MiB",
                remedy=f"Ask again in {_RETRY_SECONDS} s, or send a smaller request.",
                retry_after=_RETRY_SECONDS,
            )
        self.taken += more

    def collect(self, left: int) -> None:
        """Run the garbage collector now and then, for what a run of so many bytes left in cycles.

        By itself it counts objects: some with megabytes of text would be left for long.
        """
        self._left += left
        if self._left >= _COLLECTED_BYTES:
            self._left = 0
            gc.collect()


class MemoryShare:
    """The memory of one request; made by `Memory.share`.

    Attributes:
        taken: Bytes that it has.
    """

    def __init__(self, memory: Memory) -> None:
        self.taken = 0
        self._memory = memory

    def take(self, more: int, *, whole: bool = True) -> None:
        """Take so many bytes more; OverloadedError if there are not enough."""
        self._memory.take(more, self.taken, whole=whole)
        self.taken += more

    async def wait_for(self, more: int) -> None:
        """Take so many bytes more, and wait some seconds until there are enough.

        Refused at once, clients that ask again would take the memory that others are to be parsed
        in, and none would get on.
        """
        end = anyio.current_time() + _WAIT_SECONDS
        while True:
            try:
                return self.take(more)
            except OverloadedError:
                if anyio.current_time() >= end:
                    raise
            await anyio.sleep(_LOOK_SECONDS)

    def free(self) -> None:
        """Give all of it back."""
        self._memory.taken -= self.taken
        self._memory.collect(self.taken)
        self.taken = 0


class BodyGuard(Middleware):
    """Reads the whole body of a request before anything else.

    It refuses a body that is too large, comes too slowly, or has too many values; and a request
    that is one too many, be it by memory or by number. What comes next parses a body at once, so
    large ones are passed on one after another, with as much time for all else between them.

    Args:
        app: What comes next.
        most_bytes: Of a body.
        most_requests: Requests that are answered at once; /health is answered in any case.
        limits: How fast a body has to come.
        memory: Counts a request from its first byte to the end of its answer.
    """

    def __init__(
        self, app: ASGIApp, *, most_bytes: int, most_requests: int, limits: Limits, memory: Memory
    ) -> None:
        super().__init__(app)
        self._most_bytes = most_bytes
        self._most_requests = most_requests
        self._limits = limits
        self._memory = memory
        self._answering = 0
        self._turn = anyio.Lock()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        messages: list[Message] = []

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        with self._memory.share() as share:
            try:
                messages.append(await self._read(scope, receive, share))
                parsed = parsed_size(messages[0].get("body", b""))
                if share.taken + parsed > _PARSED_AT_ONCE:
                    async with self._turn:
                        await share.wait_for(parsed)
                        await anyio.sleep(2 * _SECONDS_PER_BYTE * share.taken)
                else:
                    share.take(parsed)
                self._check_number(scope)
            except ConvictionError as error:
                await failure_response(error)(scope, receive, send)
                return
            self._answering += 1
            try:
                await self.app(scope, replay, send)
            finally:
                self._answering -= 1

    async def _read(self, scope: Scope, receive: Receive, share: MemoryShare) -> Message:
        """One message with the whole body, or the news that the client disconnected."""
        declared = Headers(scope=scope).get("content-length", "0")
        size = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
        limits, began = self._limits, anyio.current_time()
        body = bytearray()
        try:
            with anyio.fail_after(limits.body_seconds) as reading:
                while True:
                    if max(size, len(body)) > self._most_bytes:
                        raise RequestError(
                            f"The request has more than {self._most_bytes:,} bytes.",
                            code="request_too_large",
                            status=413,
                        )
                    seconds = limits.header_seconds + len(body) / limits.body_rate
                    reading.deadline = began + min(limits.body_seconds, seconds)
                    message = await receive()
                    if message["type"] != "http.request":
                        return message
                    piece: bytes = message.get("body", b"")
                    share.take(len(piece), whole=False)
                    body += piece
                    if not message.get("more_body", False) and len(body) <= self._most_bytes:
                        break
        except TimeoutError:
            raise RequestError(
                "The request did not come whole in time. Send it faster.",
                code="timeout",
                status=408,
            ) from None
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    def _check_number(self, scope: Scope) -> None:
        if self._answering >= self._most_requests and scope["path"] != _ALWAYS:
            raise OverloadedError(
                tried="take one more request",
                found=f"{self._answering} are being answered",
                remedy=f"Ask again in {_RETRY_SECONDS} s.",
                retry_after=_RETRY_SECONDS,
            )


def parsed_size(body: bytes | bytearray) -> int:
    """Bytes that the JSON of a body takes when it is parsed, at most, in about that many cycles.

    Strings are cut out first, and the rest is counted by methods of bytes: a parser would make
    objects of it first, which takes a hundred times as long where there are many.

    Raises:
        RequestError: it has too many values, or is too deep.
    """
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    strings = bare.count(b'"') // 2
    if strings <= 2 * MOST_VALUES:  # A field has a name and a value.
        bare = b"".join(bare.split(b'"')[::2])
    opened = bare.count(b"[") + bare.count(b"{")
    values = opened + bare.count(b",")
    if max(values, strings // 2) > MOST_VALUES:
        raise RequestError(
            f"The request has more than {MOST_VALUES:,} values. Send fewer fields and items.",
            code="too_many_values",
        )
    if opened > MOST_DEPTH:
        brackets = bare.translate(None, _OTHERS)
        if max(accumulate(1 if one in b"[{" else -1 for one in brackets)) > MOST_DEPTH:
            raise RequestError(
                f"The request has more than {MOST_DEPTH} objects and lists within each other.",
                code="too_deep",
            )
    # One wide character in a text makes four bytes of each.
    wide = not body.isascii() or rb"\u" in body
    return len(body) * (4 if wide else 1) + values * _VALUE_BYTES
