"""Answers that are sent while they come: server-sent events, signs of life, and hanging up."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
from starlette.types import Receive, Scope, Send

from conviction.server.failures import error_body, status_and_body
from conviction.tasks import helpers

_SEND_SECONDS = 60.0
"""A client that takes nothing for so long has gone."""
_FAREWELL_SECONDS = 1.0

HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Proxies would keep events back.
    "x-accel-buffering": "no",
}
DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"

Emit = Callable[[bytes], Awaitable[None]]


class ClientGoneError(Exception):
    """Whoever asked has hung up."""


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


async def until_gone(receive: Receive, call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call, which is cancelled as soon as the client hangs up.

    Raises:
        ClientGoneError: it has.
    """
    async with helpers() as tasks:
        tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
        return await call()
    raise ClientGoneError


class EventStream:
    """An answer of server-sent events, as an application that a route returns.

    While nothing is sent there are pings. If the client hangs up, everything is cancelled; if
    anything fails, the last event is the error.

    Args:
        produce: Sends the events, with what it is given.
        ping_seconds: Silence after which a sign of life is sent.
        on_failure: Called with an error that ended the stream.
    """

    def __init__(
        self,
        produce: Callable[[Emit], Awaitable[None]],
        *,
        ping_seconds: float,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._produce = produce
        self._ping_seconds = ping_seconds
        self._on_failure = on_failure
        self._last = 0.0
        self._over = False
        self._send: Send
        self._scope = anyio.CancelScope()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        del scope
        self._send = send
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as tasks:
            self._scope = tasks.cancel_scope
            tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
            tasks.start_soon(self._ping)
            await self._produced()
            tasks.cancel_scope.cancel()

    async def _produced(self) -> None:
        try:
            await self._produce(self._emit)
        except anyio.get_cancelled_exc_class():
            # The server ends, or the client has gone; to that one this is lost.
            with anyio.CancelScope(shield=True), anyio.move_on_after(_FAREWELL_SECONDS):
                body = error_body("The server ended the run.", status=503, code="cancelled")
                await self._finish(event(body))
            raise
        except Exception as error:  # noqa: BLE001  # the client must hear of it, whatever it is
            if self._on_failure is not None:
                self._on_failure(error)
            await self._finish(event(status_and_body(error)[1]))
        else:
            await self._finish(b"")

    async def _emit(self, data: bytes) -> None:
        with anyio.move_on_after(_SEND_SECONDS) as sending:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if sending.cancelled_caught:
            self._scope.cancel()
        self._last = anyio.current_time()

    async def _finish(self, data: bytes) -> None:
        self._over = True  # Nothing may be sent after the end, so no ping either.
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _ping(self) -> None:
        while not self._over:
            silent = anyio.current_time() - self._last
            if silent >= self._ping_seconds:
                await self._emit(PING)
                silent = 0.0
            await anyio.sleep(self._ping_seconds - silent)


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            scope.cancel()
            return
