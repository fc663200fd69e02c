"""Workers in a Ray cluster: a pool of actors that hold one engine each.

The run itself stays in this process: it hands whole questions to actors and keeps what comes back,
so an actor that dies costs the questions that it was thinking about, and nothing else. Those are
done again by another; what had come of them counts as failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from types import TracebackType
from typing import Self

import anyio

from conviction.core import FinishReason, Tally, Trace
from conviction.engines.base import Capabilities
from conviction.errors import AllTracesFailedError, InvalidSettingError
from conviction.evaluation.wording import counted
from conviction.evaluation.workers import Generating, Thinking, Workers
from conviction.events import Event, Listener, TraceFinished
from conviction.policies.base import Standing
from conviction.ray.actor import Home, Report
from conviction.ray.engines import EngineFactory
from conviction.ray.pool import Bounds, LostError, Pool
from conviction.sharing import Place
from conviction.verdict import Verdict

_MOST_LOSSES = 3
"""Actors that may be lost over one question before it counts as failed."""
_QUESTIONS_EACH = 2


@dataclass(eq=False)
class _Attempt:
    """What is known of one attempt at a question."""

    listener: Listener
    began: bool = False
    tokens: int = 0
    running: dict[int, int] = field(default_factory=dict[int, int])

    def hear(self, report: Report) -> None:
        """Pass on what is new."""
        self.running = report.running or {}
        for event in report.finished:
            self.tokens += event.trace.tokens + event.trace.lost_tokens
            self.listener(event)

    def lose(self, reason: str) -> int:
        """Tell of the traces that ran when the actor was lost; the tokens that they had."""
        for trace, tokens in self.running.items():
            failed = Trace(trace, FinishReason.ERROR, tokens, error=reason)
            self.listener(TraceFinished(failed, Standing(Tally())))
        return sum(self.running.values())


class RayWorkers(Workers):
    """A pool of actors; entering it starts them, leaving it ends them. Ray must be connected.

    An actor that is lost is started anew, and its questions are done again. Of traces that were
    running, the tokens of the last two seconds are not known.

    Args:
        engines: What actors make their engines of, taken in turns: actor n takes the n-th.
        answers: Name of the kind of answer.
        actors: How many actors; None for one for each of `engines`, or if that is a single one,
            as many as the cluster has room for, if it is asked for any resources.
        resources: What each needs on its node, as in {"GPU": 2}; empty for nothing.
        bounds: How long to wait.

    Raises:
        InvalidSettingError: there is no engine, or a number is out of its range.
    """

    def __init__(
        self,
        engines: Sequence[EngineFactory],
        *,
        answers: str,
        actors: int | None = None,
        resources: Mapping[str, float] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._pool = Pool(
            engines, answers=answers, actors=actors, resources=resources, bounds=bounds
        )
        self._each = _QUESTIONS_EACH
        self._numbers = count()
        self._redone = 0
        self._lost_tokens = 0

    async def __aenter__(self) -> Self:
        """Start the actors; back as soon as one engine runs.

        Raises:
            EngineStartError: the cluster has too little room, or no engine started.
            ConvictionError: as the engine raised it.
        """
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the engines and the actors."""
        await self._pool.__aexit__(kind, error, traceback)

    @property
    def name(self) -> str:
        """The engine's name; that it runs in actors changes nothing in what it generates."""
        return self._pool.started.engine

    @property
    def homes(self) -> list[Home]:
        """Where the actors that live now run."""
        return self._pool.homes

    @property
    def notes(self) -> Sequence[str]:
        """What was lost on the way."""
        notes = list(self._pool.setbacks)
        if self._pool.losses:
            reasons = "; ".join(dict.fromkeys(self._pool.losses))
            notes.append(
                f"Lost {counted(len(self._pool.losses), 'actor')} on the way, and did "
                f"{counted(self._redone, 'question')} again: at least "
                f"{counted(self._lost_tokens, 'token')} came to nothing. {reasons}"
            )
        return notes

    async def capabilities(self) -> Capabilities:
        """What each engine can do."""
        return self._pool.started.capabilities

    def places(self, each: int) -> int:
        """So many questions for each actor."""
        self._each = each
        return each * self._pool.size

    async def think(
        self, thinking: Thinking, *, on_event: Listener, place: Place | None = None
    ) -> Verdict:
        """Think about a question in one of the actors.

        Raises:
            AllTracesFailedError: also if several actors were lost over it, one after another.
            InvalidSettingError: it has a place among others.
        """
        if place is not None:
            raise InvalidSettingError(
                tried="share slots among questions in several actors",
                found="each actor has slots of its own",
                remedy="Use one engine in this process.",
            )
        losses: list[str] = []
        wasted = 0
        while True:
            attempt = _Attempt(on_event)
            try:
                report = await self._attempt(thinking, attempt, None)
            except LostError as error:
                wasted += self._lose(thinking, attempt, str(error), losses)
                continue
            assert report.verdict is not None  # noqa: S101  # no error, so a verdict
            return _with_losses(report.verdict, losses, wasted)

    async def generate(
        self, generating: Generating, *, on_event: Listener, interrupt: anyio.Event
    ) -> None:
        """Generate traces in one of the actors; those that ended are not done again."""
        left = list(generating.numbers)
        losses: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, TraceFinished) and event.trace.id in left:
                left.remove(event.trace.id)
            on_event(event)

        while left and not interrupt.is_set():
            attempt = _Attempt(listen)
            work = replace(generating, numbers=tuple(left))
            try:
                await self._attempt(work, attempt, interrupt)
            except LostError as error:
                # Positions of traces that are to be done again; nobody hears of them yet.
                attempt.listener = _nothing
                self._lose(generating, attempt, str(error), losses)
            else:
                return

    def _lose(
        self, work: Thinking | Generating, attempt: _Attempt, reason: str, losses: list[str]
    ) -> int:
        """Count a loss; the tokens that came to nothing."""
        if not attempt.began:
            return 0
        losses.append(reason)
        tokens = attempt.lose(reason)
        if isinstance(work, Thinking):
            tokens += attempt.tokens
        self._redone += 1
        self._lost_tokens += tokens
        if len(losses) == _MOST_LOSSES:
            raise AllTracesFailedError(
                tried=f"think about question {work.question.id!r} in {_MOST_LOSSES} actors, one "
                "after another",
                causes=losses,
                remedy="See what ends the actors; if it is memory, give them more, or fewer "
                "questions and traces at once.",
            )
        return tokens

    async def _attempt(
        self, work: Thinking | Generating, attempt: _Attempt, interrupt: anyio.Event | None
    ) -> Report:
        async with self._pool.taken(self._each) as actor:
            number = next(self._numbers)
            report, told = Report(), False
            try:
                await self._pool.call(actor, actor.handle.begin.remote(number, work))
                attempt.began = True
                while not report.over:
                    report = await self._pool.call(actor, actor.handle.listen.remote(number))
                    attempt.hear(report)
                    if interrupt is not None and interrupt.is_set() and not told:
                        told = True
                        actor.handle.interrupt.remote(number)
            finally:
                if not report.over and not actor.lost.is_set():
                    actor.handle.end.remote(number)
        if report.error is not None:
            raise report.error
        return report


def _nothing(_: Event) -> None:
    pass


def _with_losses(verdict: Verdict, losses: Sequence[str], tokens: int) -> Verdict:
    if not losses:
        return verdict
    usage = replace(verdict.usage, failed=verdict.usage.failed + tokens)
    warning = (
        f"Begun again {counted(len(losses), 'time')}, because the actor was lost; at least "
        f"{counted(tokens, 'token')} came to nothing. {'; '.join(dict.fromkeys(losses))}"
    )
    return replace(verdict, usage=usage, warnings=(*verdict.warnings, warning))
