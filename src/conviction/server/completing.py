"""What both kinds of completion have in common: think, then answer at once or as a stream."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import anyio
from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from conviction.server.access import log_content, log_failure
from conviction.server.answering import Reply, conviction_object, reply, usage
from conviction.server.asked import Asked
from conviction.server.progress import Progress
from conviction.server.service import Pending, Service
from conviction.server.streaming import DONE, Emit, EventStream, event, until_gone
from conviction.tasks import helpers
from conviction.verdict import Verdict

_PIECE = 400
"""Characters of the answer in one event."""
_TOKENS_SECONDS = 5.0
"""Tokens alone are worth a line only so often."""


class Shape(Protocol):
    """How one kind of completion is written."""

    prefix: str
    """Of ids."""

    def whole(self, shown: Reply) -> dict[str, Any]:
        """The choice of a whole answer."""
        ...

    def first(self) -> dict[str, Any] | None:
        """The choice of a stream's first event."""
        ...

    def thought(self, text: str) -> dict[str, Any] | None:
        """The choice of an event that tells of progress; None where there is no place for it."""
        ...

    def piece(self, text: str) -> dict[str, Any]:
        """The choice of an event with a piece of the answer."""
        ...

    def last(self, shown: Reply) -> dict[str, Any]:
        """The choice of the event that says why it ended."""
        ...


@dataclass(frozen=True)
class Envelope:
    """What stands around the choices of one answer.

    Attributes:
        kind: OpenAI's name of it.
        id: Of the answer.
        model: As it was asked for.
        created: Seconds since 1970.
    """

    kind: str
    id: str
    model: str
    created: int

    def around(self, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The whole object."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }


async def answer_at_once(
    service: Service, asked: Asked, request: Request, shape: Shape, kind: str
) -> Response:
    """Think, and give the whole answer.

    Raises:
        ClientGoneError: nobody waits for it any more.
        ConvictionError: there is no answer.
    """
    with service.join(asked) as pending:
        verdict: Verdict = await until_gone(request.receive, pending.think)
    shown = reply(verdict, asked.content)
    log_content(service.settings, asked, shown)
    envelope = _envelope(pending, shape, kind)
    body = envelope.around(
        shape.whole(shown),
        usage=usage(verdict, shown),
        conviction=conviction_object(verdict, shown, pending.run.id),
    )
    return JSONResponse(body, headers=_headers(pending))


class Streamed(Response):
    """Think, and tell of it all the while.

    Args:
        service: Who thinks.
        asked: About what.
        shape: How events are written.
        kind: OpenAI's name of them.
        with_usage: Whether the last event has the tokens.
    """

    def __init__(
        self, service: Service, asked: Asked, shape: Shape, kind: str, *, with_usage: bool
    ) -> None:
        super().__init__()
        self._service = service
        self._asked = asked
        self._shape = shape
        self._kind = kind
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; what can be refused is refused before a stream begins."""
        with self._service.join(self._asked) as pending:
            stream = EventStream(
                partial(self._produce, pending),
                ping_seconds=self._service.settings.ping_seconds,
                on_failure=partial(log_failure, self._service.settings),
            )
            await stream(scope, receive, send)

    async def _produce(self, pending: Pending, emit: Emit) -> None:
        envelope = _envelope(pending, self._shape, self._kind)
        nothing = {"usage": None} if self._with_usage else {}

        async def tell(choice: dict[str, Any] | None, **more: Any) -> None:
            if choice is not None:
                await emit(event(envelope.around(choice, **nothing, **more)))

        await tell(self._shape.first())
        progress = Progress()
        async with helpers() as tasks:
            tasks.start_soon(self._tell_progress, pending, progress, tell)
            verdict = await pending.think(on_event=progress.on_event)
        await tell(self._shape.thought(f"{progress.line} Ended by {verdict.ended}.\n"))
        shown = reply(verdict, self._asked.content)
        log_content(self._service.settings, self._asked, shown)
        if shown.reasoning:
            await tell(self._shape.thought(f"\n{shown.reasoning}\n"))
        for piece in _pieces(shown.text):
            await tell(self._shape.piece(piece))
        told = conviction_object(verdict, shown, pending.run.id)
        await tell(self._shape.last(shown), conviction=told)
        if self._with_usage:
            await emit(event(envelope.around(usage=usage(verdict, shown))))
        await emit(DONE)

    async def _tell_progress(
        self, pending: Pending, progress: Progress, tell: Callable[..., Any]
    ) -> None:
        told, tokens, at = None, 0, -_TOKENS_SECONDS
        if pending.waits:
            await tell(self._shape.thought("Waiting for a turn.\n"))
        while True:
            now = anyio.current_time()
            grown = progress.tokens != tokens and now - at >= _TOKENS_SECONDS
            if progress.line and (progress.milestone != told or grown):
                told, tokens, at = progress.milestone, progress.tokens, now
                await tell(self._shape.thought(progress.line + "\n"))
            await anyio.sleep(self._service.settings.progress_seconds)


def _envelope(pending: Pending, shape: Shape, kind: str) -> Envelope:
    return Envelope(kind, f"{shape.prefix}-{pending.run.id}", pending.asked.model, int(time.time()))


def _headers(pending: Pending) -> dict[str, str]:
    return {"x-request-id": pending.run.id}


def _pieces(text: str) -> Iterator[str]:
    for begin in range(0, len(text), _PIECE):
        yield text[begin : begin + _PIECE]
