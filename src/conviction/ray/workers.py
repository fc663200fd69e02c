"""Workers in a Ray cluster: a pool of actors that hold one engine each.

The run itself stays in this process: it hands whole questions to actors and keeps what comes back,
so an actor that dies costs the questions that it was thinking about, and nothing else. Those are
done again by another; what had come of them counts as failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Self

import anyio

from conviction.backends import Backend
from conviction.core import FinishReason, Tally, Trace
from conviction.engines.base import Capabilities
from conviction.errors import AllTracesFailedError, InvalidSettingError
from conviction.evaluation import counted
from conviction.evaluation.workers import Generating, Thinking, Workers
from conviction.events import Event, Listener, TraceFinished
from conviction.policies.base import Standing
from conviction.ray.actor import Home, RunNews
from conviction.ray.calls import LostError
from conviction.ray.pool import ActorPool, Bounds, PooledActor
from conviction.sharing import Place
from conviction.verdict import Verdict

_MOST_LOSSES = 3
"""Actors that may be lost over one question before it counts as failed."""
_QUESTIONS_EACH = 2


@dataclass(eq=False)
class _Attempt:
    """What is known of one attempt at a question.

    Attributes:
        listener: Who hears of its traces.
        handed: Whether an actor that lived was given it: from then on its end may be its doing.
        tokens: Of traces that ended.
        running: Tokens of those that run, by id.
    """

    listener: Listener
    handed: bool = False
    tokens: int = 0
    running: dict[int, int] = field(default_factory=dict[int, int])

    def hear(self, report: RunNews) -> None:
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


@dataclass(eq=False)
class _Losses:
    """Actors that were lost over one question, or before it was handed to them.

    Attributes:
        reasons: Why those were lost that had it.
        before: Why those were lost that did not have it yet.
        tokens: What came to nothing.
    """

    reasons: list[str] = field(default_factory=list[str])
    before: list[str] = field(default_factory=list[str])
    tokens: int = 0


class RayWorkers(Workers):
    """A pool of actors; entering it starts them, leaving it ends them. Ray must be connected.

    An actor that is lost is started anew, and its questions are done again. Of traces that were
    running, the tokens of the last two seconds are not known.

    Its arguments and errors are those of `ActorPool`.
    """

    def __init__(
        self,
        engines: Sequence[Backend],
        *,
        answers: str,
        actors: int | None = None,
        resources: Mapping[str, float] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._pool = ActorPool(
            engines, answers=answers, actors=actors, resources=resources, bounds=bounds
        )
        self._each = _QUESTIONS_EACH
        self._numbers = count()
        self._redone = 0
        self._lost_tokens = 0

    async def __aenter__(self) -> Self:
        """Start the actors, as the pool does; back as soon as one engine runs."""
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the engines and the actors."""
        await self._pool.__aexit__()

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
            EngineError: the question, or what came of it, cannot be read in another process.
            InvalidSettingError: it has a place among others.
        """
        if place is not None:
            raise InvalidSettingError(
                tried="share slots among questions in several actors",
                found="each actor has slots of its own",
                remedy="Use one engine in this process.",
            )
        losses = _Losses()
        while True:
            attempt = _Attempt(on_event)
            try:
                report = await self._attempt(thinking, attempt, None)
            except LostError as error:
                self._lose(thinking, attempt, str(error), losses)
                continue
            assert report.verdict is not None  # noqa: S101  # no error, so a verdict
            return _with_losses(report.verdict, losses.reasons, losses.tokens)

    async def generate(
        self, generating: Generating, *, on_event: Listener, interrupt: anyio.Event
    ) -> None:
        """Generate traces in one of the actors; those that ended are not done again.

        Raises:
            AllTracesFailedError: several actors were lost over it, one after another.
            EngineError: the question, or what came of it, cannot be read in another process.
        """
        left = list(generating.numbers)
        losses = _Losses()

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
                attempt.listener = lambda _: None
                self._lose(generating, attempt, str(error), losses)
            else:
                return

    def _lose(
        self, work: Thinking | Generating, attempt: _Attempt, reason: str, losses: _Losses
    ) -> None:
        """Count a loss.

        Raises:
            AllTracesFailedError: it was one too many.
        """
        # A node that goes may take idle actors with it, and each is found out by a question.
        most = _MOST_LOSSES if attempt.handed else _MOST_LOSSES + self._pool.size
        reasons = losses.reasons if attempt.handed else losses.before
        reasons.append(reason)
        if attempt.handed:
            tokens = attempt.lose(reason)
            if isinstance(work, Thinking):
                tokens += attempt.tokens
            losses.tokens += tokens
            self._redone += 1
            self._lost_tokens += tokens
        if len(reasons) >= most:
            raise AllTracesFailedError(
                tried=f"think about question {work.question.id!r} in {most} actors, one after "
                "another",
                causes=reasons,
                remedy="See what ends the actors; if it is memory, give them more, or fewer "
                "questions and traces at once.",
            )

    async def _attempt(
        self, work: Thinking | Generating, attempt: _Attempt, interrupt: anyio.Event | None
    ) -> RunNews:
        async with self._pool.taken(self._each, unless=interrupt) as actor:
            if actor is None:
                return RunNews(over=True)
            await self._pool.call(actor, actor.handle.home.remote())
            attempt.handed = True
            report = await self._listen(actor, work, attempt, interrupt)
        if report.error is not None:
            raise report.error
        return report

    async def _listen(
        self,
        actor: PooledActor,
        work: Thinking | Generating,
        attempt: _Attempt,
        interrupt: anyio.Event | None,
    ) -> RunNews:
        """Hand a question over, and hear of it to its end."""
        number = next(self._numbers)
        report, told = RunNews(), False
        try:
            await self._pool.call(actor, actor.handle.begin.remote(number, work))
            while not report.over:
                report = await self._pool.call(actor, actor.handle.listen.remote(number))
                attempt.hear(report)
                if interrupt is not None and interrupt.is_set() and not told:
                    told = True
                    actor.handle.interrupt.remote(number)
        finally:
            if not report.over and not actor.lost.is_set():
                actor.handle.end.remote(number)
        return report


def _with_losses(verdict: Verdict, losses: Sequence[str], tokens: int) -> Verdict:
    if not losses:
        return verdict
    usage = replace(verdict.usage, failed=verdict.usage.failed + tokens)
    warning = (
        f"Begun again {counted(len(losses), 'time')}, because the actor was lost; at least "
        f"{counted(tokens, 'token')} came to nothing. {'; '.join(dict.fromkeys(losses))}"
    )
    return replace(verdict, usage=usage, warnings=(*verdict.warnings, warning))
