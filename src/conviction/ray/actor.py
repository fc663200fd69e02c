"""The actor: one engine, and the questions that it thinks about. It knows nothing of Ray.

Whoever handed a question over asks again and again what is new, so every call is short, and one
that does not come back tells that the actor is lost.
"""

import asyncio
import os
import socket
from dataclasses import dataclass, replace

import anyio
import numpy as np

from conviction.answers import kind
from conviction.backends import Backend
from conviction.core import Trace
from conviction.evaluation.workers import Generating, OneEngine, Thinking
from conviction.events import Event, TraceAdvanced, TraceFinished, TraceStarted
from conviction.ray.host import HEARTBEAT_SECONDS, EngineHost, Started, portable
from conviction.verdict import Verdict

_GATHER_SECONDS = 0.05
"""So long further news may follow the first and share its trip."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where an actor runs, for people and for tests."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class RunNews:
    """What is new of a question.

    Attributes:
        finished: Traces that ended, in order.
        running: Tokens so far of those that run, by id.
        over: Whether this is the last report.
        verdict: The verdict, without what its traces wrote; in the last report of a `Thinking`.
        error: Why there is none.
    """

    finished: tuple[TraceFinished, ...] = ()
    running: dict[int, int] | None = None
    over: bool = False
    verdict: Verdict | None = None
    error: Exception | None = None


class EngineActor:
    """Holds one engine, and thinks about the questions that it is given.

    Args:
        backend: Which engine.
        answers: Name of the kind of answer.
    """

    def __init__(self, backend: Backend, answers: str) -> None:
        self._host = EngineHost(backend)
        self._answers = kind(answers)
        self._questions: dict[int, _Question] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: OneEngine

    async def home(self) -> Home:
        """Where it runs; answered as soon as it has its place in the cluster."""
        return Home(socket.gethostname(), os.getpid())

    async def start(self) -> Started | Exception:
        """Start the engine; an error is returned, so that it comes over as it is."""
        try:
            started = await self._host.start()
        except Exception as error:  # noqa: BLE001  # raised where the actor is wanted
            return portable(error)
        self._workers = OneEngine(self._host.engine, self._answers)
        return started

    async def stop(self) -> None:
        """End all questions, then the engine."""
        for number in list(self._questions):
            await self.end(number)
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._host.stop()
        self._answers.close()

    async def begin(self, number: int, work: Thinking | Generating) -> None:
        """Begin to think about a question; `number` names it from here on."""
        question = self._questions[number] = _Question(work)
        task = asyncio.create_task(question.run(self._workers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def listen(self, number: int) -> RunNews:
        """What is new of a question; nothing, after two seconds without news."""
        report = await self._questions[number].news()
        if report.over:
            del self._questions[number]
        return report

    async def interrupt(self, number: int) -> None:
        """Let a question end with what it has; its last report is still to come."""
        if number in self._questions:
            self._questions[number].interrupt.set()

    async def end(self, number: int) -> None:
        """Drop a question; its traces end at once."""
        question = self._questions.pop(number, None)
        if question is not None:
            question.scope.cancel()


class _Question:
    """A question under way."""

    def __init__(self, work: Thinking | Generating) -> None:
        self._work = work
        self._whole = isinstance(work, Generating) or work.whole
        self._finished: list[TraceFinished] = []
        self._running: dict[int, int] = {}
        self._over = anyio.Event()
        self._news = anyio.Event()
        self._verdict: Verdict | None = None
        self._error: Exception | None = None
        self.interrupt = anyio.Event()
        self.scope = anyio.CancelScope()

    async def run(self, workers: OneEngine) -> None:
        """Think about it; never raises."""
        try:
            with self.scope:
                await self._run(workers)
        except Exception as error:  # noqa: BLE001  # raised again where it was handed over
            self._error = portable(error)
        self._over.set()
        self._news.set()

    async def news(self) -> RunNews:
        """What is new since the last call."""
        with anyio.move_on_after(HEARTBEAT_SECONDS):
            await self._news.wait()
            with anyio.move_on_after(_GATHER_SECONDS):
                await self._over.wait()
        finished, self._finished = tuple(self._finished), []
        over = self._over.is_set()
        if not over:
            self._news = anyio.Event()
        return RunNews(finished, dict(self._running), over, self._verdict, self._error)

    async def _run(self, workers: OneEngine) -> None:
        if isinstance(self._work, Thinking):
            verdict = await workers.think(self._work, on_event=self._hear)
            traces = tuple(without_content(trace) for trace in verdict.traces)
            self._verdict = replace(verdict, traces=traces)
        else:
            await workers.generate(self._work, on_event=self._hear, interrupt=self.interrupt)

    def _hear(self, event: Event) -> None:
        match event:
            case TraceStarted(trace):
                self._running[trace] = 0
            case TraceAdvanced(trace, chunk):
                self._running[trace] += chunk.confidences.size
            case TraceFinished(trace):
                self._ended(event, trace)
            case _:
                pass  # What a restart loses is among the trace's tokens already.

    def _ended(self, event: TraceFinished, trace: Trace) -> None:
        work = self._work
        number = work.numbers.index(trace.id) if isinstance(work, Generating) else trace.id
        self._running.pop(number, None)
        kept = trace if self._whole else without_content(trace)
        self._finished.append(replace(event, trace=kept))
        self._news.set()


_NOTHING = np.empty(0, np.float32)


def without_content(trace: Trace) -> Trace:
    """A trace without its text and its confidences, so that it is small."""
    return replace(trace, text="", confidences=_NOTHING, logprobs=None, scores={})
