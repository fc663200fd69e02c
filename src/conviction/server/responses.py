"""How answers are sent: whole, or as server-sent events while the run goes on."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from conviction.server.answers import CompletionFormat, Fields, ServedAnswer, choice
from conviction.server.failures import LOGGER, error_body, log_failure, status_and_body
from conviction.server.run_options import RunOptions
from conviction.server.service import PendingRun, Service
from conviction.tasks import helpers
from conviction.verdict import Verdict

_SEND_SECONDS = 60.0
"""A client that takes nothing for so long counts as disconnected."""
_FAREWELL_SECONDS = 1.0
_PIECE = 400
"""Characters of the answer in one event."""
_TOKENS_SECONDS = 5.0
"""Shortest time between two lines of progress in which only the tokens differ."""

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
    """The client has disconnected."""


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


async def whole_answer(
    service: Service,
    options: RunOptions,
    receive: Receive,
    format: CompletionFormat,  # noqa: A002
) -> Response:
    """Run, and return the whole answer; ClientGoneError once the client has disconnected."""
    with service.join(options) as pending:
        verdict = await _until_gone(receive, pending.think)
    answer = _served_answer(service, options, verdict)
    body = _envelope(pending, format.id_prefix, format.whole) | {
        "choices": [choice(format.message(answer), answer.finish)],
        "usage": answer.usage(),
        "conviction": answer.conviction(pending.run.id),
    }
    return JSONResponse(body, headers={"x-request-id": pending.run.id})


class EventStream(Response):
    """A response of server-sent events.

    While nothing is sent there are pings. If the client disconnects, everything is cancelled; if
    anything fails, the last event is the error.

    Args:
        produce: Sends the events, with the function that it is given.
        ping_seconds: Silence after which a ping is sent.
        on_failure: Called with an error that ended the stream.
    """

    def __init__(
        self,
        produce: Callable[[Emit], Awaitable[None]],
        *,
        ping_seconds: float,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__()
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
            try:
                await self._send_all()
            finally:
                # What produces the events refers to this response: its run could not be freed.
                self._produce = _nothing
            tasks.cancel_scope.cancel()

    async def _send_all(self) -> None:
        try:
            await self._produce(self._emit)
        except anyio.get_cancelled_exc_class():
            # The server is about to end; or the client has disconnected, and does not get this.
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


async def _nothing(_: Emit) -> None:
    """Produce no event."""


class StreamedAnswer(EventStream):
    """Runs, and streams progress and then the answer; the tokens, too, if `with_usage`."""

    def __init__(
        self,
        service: Service,
        options: RunOptions,
        format: CompletionFormat,  # noqa: A002
        *,
        with_usage: bool,
    ) -> None:
        settings = service.settings
        super().__init__(
            self._send_answer,
            ping_seconds=settings.ping_seconds,
            on_failure=partial(log_failure, content=settings.log_content),
        )
        self._service = service
        self._options = options
        self._format = format
        self._nothing = {"usage": None} if with_usage else {}
        self._pending: PendingRun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; what can be refused is refused before a stream begins."""
        with self._service.join(self._options) as self._pending:
            try:
                await super().__call__(scope, receive, send)
            finally:
                # The garbage collector may find a cancelled task, and so this, much later.
                del self._pending, self._options

    async def _send_answer(self, emit: Emit) -> None:
        write, pending, run = self._format, self._pending, self._pending.run
        envelope = _envelope(pending, write.id_prefix, write.chunk)

        async def send(fields: Fields, finish: str | None = None, **more: Any) -> None:
            choices = [choice(fields, finish)]
            await emit(event({**envelope, "choices": choices, **self._nothing, **more}))

        async def send_reasoning(text: str) -> None:
            if write.reasoning is not None:
                await send(write.reasoning(f"{text}\n"))

        await send(write.first)
        async with helpers() as tasks:
            tasks.start_soon(self._report_progress, send_reasoning)
            verdict = await pending.think()
        await send_reasoning(f"{run.tape.progress} Ended by {verdict.ended}.")
        answer = _served_answer(self._service, self._options, verdict)
        if answer.reasoning:
            await send_reasoning(f"\n{answer.reasoning}")
        for begin in range(0, len(answer.text), _PIECE):
            await send(write.piece(answer.text[begin : begin + _PIECE]))
        await send(write.last, answer.finish, conviction=answer.conviction(run.id))
        if self._nothing:
            await emit(event({**envelope, "choices": [], "usage": answer.usage()}))
        await emit(DONE)

    async def _report_progress(self, send: Callable[[str], Awaitable[None]]) -> None:
        sent, at = ((0, 0), 0), -_TOKENS_SECONDS
        if self._pending.waits:
            await send("Waiting for a turn.")
        while True:
            now = anyio.current_time()
            traces, tokens = self._count()
            if traces[0] and (
                traces != sent[0] or (tokens != sent[1] and now - at >= _TOKENS_SECONDS)
            ):
                sent, at = (traces, tokens), now
                await send(self._pending.run.tape.progress)
            await anyio.sleep(self._service.settings.progress_seconds)

    def _count(self) -> tuple[tuple[int, int], int]:
        """Traces that began and that ended, and their tokens."""
        tape = self._pending.run.tape
        return (len(tape.traces), tape.finishes.total()), tape.tokens


async def _until_gone(receive: Receive, call: Callable[[], Awaitable[Verdict]]) -> Verdict:
    """The result of a call, which is cancelled as soon as the client disconnects."""
    async with helpers() as tasks:
        tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
        return await call()
    raise ClientGoneError


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _served_answer(service: Service, options: RunOptions, verdict: Verdict) -> ServedAnswer:
    """The answer for a verdict, which is logged if the settings say so."""
    answer = ServedAnswer.of(verdict, options.content)
    if service.settings.log_content:
        LOGGER.info("asked: %s", options.text)
        LOGGER.info("answered: %s", answer.text)
    return answer


def _envelope(pending: PendingRun, id_prefix: str, kind: str) -> dict[str, Any]:
    """The fields before the choices."""
    return {
        "id": f"{id_prefix}-{pending.run.id}",
        "object": kind,
        "created": int(time.time()),
        "model": pending.options.model,
    }
