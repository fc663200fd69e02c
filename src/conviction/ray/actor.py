"""The actor: one engine, and the questions that it thinks about. It knows nothing of Ray.

Whoever handed a question over asks again and again what is new, so every call is short, and one
that does not come back tells that the actor is lost.
"""

import asyncio
import os
import pickle
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
import numpy as np
from anyio.abc import TaskGroup

from conviction.answers import kind
from conviction.core import Trace
from conviction.engines.base import Capabilities
from conviction.errors import ConvictionError, EngineError
from conviction.evaluation.workers import Generating, OneEngine, Thinking
from conviction.events import Event, TraceAdvanced, TraceFinished, TraceRestarted, TraceStarted
from conviction.ray.engines import EngineFactory
from conviction.verdict import Verdict

HEARTBEAT_SECONDS = 2.0
"""After so long without news an actor says so."""
_GATHER_SECONDS = 0.05
"""So long further news may follow the first and share its trip."""


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that runs.

    Attributes:
        engine: Its name.
        capabilities: What it can do.
    """

    engine: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Home:
    """Where an actor runs, for people and for tests."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class Report:
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
        make: Makes the engine.
        answers: Name of the kind of answer.
    """

    def __init__(self, make: EngineFactory, answers: str) -> None:
        self._make = make
        self._answers = answers
        self._questions: dict[int, _Question] = {}
        self._host: asyncio.Task[None] | None = None
        self._stopping: asyncio.Event | None = None
        self._workers: OneEngine
        self._tasks: TaskGroup

    async def home(self) -> Home:
        """Where it runs; answered as soon as it has its place in the cluster."""
        return Home(socket.gethostname(), os.getpid())

    async def start(self) -> Started | Exception:
        """Start the engine; an error is returned, so that it comes over as it is."""
        started: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        # Engines must be entered and left in the same task, and calls are tasks of their own.
        self._host = asyncio.create_task(self._hold(started, self._stopping))
        await asyncio.wait({started, self._host}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            return started.result()
        failure = self._host.exception()
        assert isinstance(failure, Exception)  # noqa: S101  # it ended before it had started
        return portable(failure)

    async def stop(self) -> None:
        """End all questions, then the engine."""
        if self._host is not None and self._stopping is not None:
            self._stopping.set()
            await asyncio.wait({self._host})

    async def begin(self, number: int, work: Thinking | Generating) -> None:
        """Begin to think about a question; `number` names it from here on."""
        question = self._questions[number] = _Question(work)
        self._tasks.start_soon(question.run, self._workers)

    async def listen(self, number: int) -> Report:
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

    async def _hold(self, started: "asyncio.Future[Started]", stopping: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            answers = kind(self._answers)
            stack.callback(answers.close)
            # It may fetch a model first.
            engine = await anyio.to_thread.run_sync(self._make)
            await stack.enter_async_context(engine)
            capabilities = await engine.capabilities()
            self._workers = OneEngine(engine, answers)
            async with anyio.create_task_group() as self._tasks:
                started.set_result(Started(engine.name, capabilities))
                await stopping.wait()
                self._tasks.cancel_scope.cancel()


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

    async def news(self) -> Report:
        """What is new since the last call."""
        with anyio.move_on_after(HEARTBEAT_SECONDS):
            await self._news.wait()
            with anyio.move_on_after(_GATHER_SECONDS):
                await self._over.wait()
        finished, self._finished = tuple(self._finished), []
        over = self._over.is_set()
        if not over:
            self._news = anyio.Event()
        return Report(finished, dict(self._running), over, self._verdict, self._error)

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
            case TraceRestarted():
                pass  # What was lost is among its tokens already.
            case TraceFinished(trace):
                self._ended(event, trace)
            case _:
                pass

    def _ended(self, event: TraceFinished, trace: Trace) -> None:
        if isinstance(self._work, Generating):
            self._running.pop(self._work.numbers.index(trace.id), None)
        else:
            self._running.pop(trace.id, None)
        kept = trace if self._whole else without_content(trace)
        self._finished.append(replace(event, trace=kept))
        self._news.set()


_NOTHING = np.empty(0, np.float32)


def without_content(trace: Trace) -> Trace:
    """A trace without its text and its confidences, so that it is small."""
    return replace(trace, text="", confidences=_NOTHING, logprobs=None, scores={})


def portable(error: Exception) -> Exception:
    """An error that comes over as it is, or what can be told of it."""
    if isinstance(error, ConvictionError):
        return error
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301  # our own bytes
    except Exception:  # noqa: BLE001  # whatever an error's own code raises
        same = False
    if same:
        return error
    return EngineError(
        tried="think in an actor",
        found=f"{type(error).__name__}: {error}",
        remedy="This is a defect of the engine or of conviction; report it.",
    )
