"""Workers that think about whole questions: one engine in this process, or many elsewhere.

The traces of a question so share one engine, one prefix cache and one policy.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import anyio
import anyio.to_thread

from conviction.answers import AnswerKind
from conviction.core import Question, Sampling, Trace
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.errors import EngineError
from conviction.events import Event, Listener, TraceFinished
from conviction.policies.base import Policy
from conviction.policies.majority import Majority
from conviction.recordings.recorder import Recorder
from conviction.sharing import Place
from conviction.thinking import RESTARTS, deliberate, trace_seed
from conviction.verdict import Verdict

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Thinking:
    """A question to think about, with all that decides on its verdict. Small, and pickles.

    Attributes:
        question: What to ask.
        policy: A prototype of the policy.
        sampling: How tokens are drawn.
        seed: Seeds of all traces derive from it and the question's id.
        restarts: How often a trace whose stream broke is begun again.
        time_limit: Seconds after which the votes so far decide.
        whole: Whether events and verdict must hold texts and confidences.
    """

    question: Question
    policy: Policy
    sampling: Sampling
    seed: int = 0
    restarts: int = RESTARTS
    time_limit: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Generating:
    """Some traces of a question to generate, to their ends. Small, and pickles.

    Attributes:
        question: What to ask.
        numbers: Numbers of the traces within the question; their seeds derive from them, too.
        sampling: As in `Thinking`, like `seed` and `restarts`.
        confidences: Whether token confidences are wanted.
        logprobs: Whether the log-probability of each token is wanted.
    """

    question: Question
    numbers: tuple[int, ...]
    sampling: Sampling
    seed: int = 0
    restarts: int = RESTARTS
    confidences: bool = True
    logprobs: bool = False


class Workers(ABC):
    """Thinks about whole questions, on one or more engines that are alike; already started."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the engine, for people."""

    @property
    def notes(self) -> Sequence[str]:
        """What happened that the reader of a run should know; whole sentences."""
        return ()

    @property
    def failure(self) -> EngineError | None:
        """What requests to the engine fail with just now, where that is known here."""
        return None

    @abstractmethod
    async def capabilities(self) -> Capabilities:
        """What each engine can do; an `EngineError` where none can be used."""

    @abstractmethod
    def places(self, each: int) -> int:
        """How many questions to hand over at once, so that each engine has `each` of them."""

    @abstractmethod
    async def think(
        self, thinking: Thinking, *, on_event: Listener, place: Place | None = None
    ) -> Verdict:
        """Think about a question; cancelling the caller ends its traces. Raises like `deliberate`.

        `on_event` is called at least with every trace that ended, in order; also with those of an
        attempt whose worker was lost, and whose tokens count as failed in the verdict. `place` is
        that among questions that share a total of tokens.
        """

    @abstractmethod
    async def generate(
        self, generating: Generating, *, on_event: Listener, interrupt: anyio.Event
    ) -> None:
        """Generate traces; cancelling the caller ends them. Raises like `deliberate`.

        `on_event` is called with every trace that ended; its id is its number. Once `interrupt` is
        set, no more is generated.
        """


class OneEngine(Workers):
    """One engine in this process, already started, and the kind of its answers."""

    def __init__(self, engine: Engine, answers: AnswerKind) -> None:
        self._engine = engine
        self._answers = answers
        self._slots: anyio.CapacityLimiter | None = None

    @property
    def name(self) -> str:
        """The engine's name."""
        return self._engine.name

    @property
    def failure(self) -> EngineError | None:
        """The engine's failure."""
        return self._engine.failure

    async def capabilities(self) -> Capabilities:
        """What the engine can do."""
        return await self._engine.capabilities()

    def places(self, each: int) -> int:
        """As many as the engine has."""
        return each

    async def think(
        self, thinking: Thinking, *, on_event: Listener, place: Place | None = None
    ) -> Verdict:
        """Think about a question."""
        return await deliberate(
            thinking.question,
            engine=self._engine,
            policy=thinking.policy,
            answers=self._answers,
            sampling=thinking.sampling,
            seed=thinking.seed,
            restarts=thinking.restarts,
            time_limit=thinking.time_limit,
            on_event=on_event,
            place=place,
        )

    async def generate(
        self, generating: Generating, *, on_event: Listener, interrupt: anyio.Event
    ) -> None:
        """Generate traces, no more at once over all questions than the engine can run."""
        capabilities = await self._engine.capabilities()
        if not generating.confidences:
            capabilities = replace(capabilities, top_k=0)
        self._slots = self._slots or anyio.CapacityLimiter(capabilities.concurrency)
        engine = _MissingTraces(self._engine, capabilities, self._slots, generating)

        def numbered(event: Event) -> None:
            if isinstance(event, TraceFinished):
                event = replace(event, trace=engine.as_generated(event.trace))
            on_event(event)

        await deliberate(
            generating.question,
            engine=engine,
            policy=Majority(len(generating.numbers)),
            answers=_Ungrouped(self._answers),
            sampling=generating.sampling,
            restarts=generating.restarts,
            logprobs=generating.logprobs,
            on_event=numbered,
            interrupt=interrupt,
        )


class Turns:
    """Work on many questions, a limited number at once; the first error ends all of it."""

    def __init__(self) -> None:
        self._failures: list[Exception] = []
        self._scope = anyio.CancelScope()

    def fail(self, error: Exception) -> None:
        """End the work with this error."""
        self._failures.append(error)
        self._scope.cancel()

    async def each(
        self, items: Iterable[Item], work: Callable[[Item], Awaitable[None]], *, at_once: int
    ) -> None:
        """Await `work` for every item, in order of beginning.

        Raises:
            Exception: the first error, as it was raised and not in a group.
        """
        turns = anyio.Semaphore(at_once)

        async def take_turn(item: Item) -> None:
            try:
                await work(item)
            except Exception as error:  # noqa: BLE001  # raised below
                self.fail(error)
            finally:
                turns.release()

        with self._scope:
            async with anyio.create_task_group() as tasks:
                for item in items:
                    await turns.acquire()
                    tasks.start_soon(take_turn, item)
        if self._failures:
            raise self._failures[0]


@asynccontextmanager
async def recorded(recorder: Recorder) -> AsyncGenerator[Recorder]:
    """A recorder at work; afterwards what is finished is on disk, also if we are being cancelled.

    Raises:
        RecordingError: something could not be recorded.
    """
    recorder.start()
    try:
        yield recorder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(recorder.finish)
    if recorder.failure is not None:
        raise recorder.failure


class _MissingTraces(Engine):
    """Generates the missing numbers of a question's traces, as one of many users of an engine.

    `slots` admits as many traces at once as the engine can run, over all questions.
    """

    def __init__(
        self,
        engine: Engine,
        capabilities: Capabilities,
        slots: anyio.CapacityLimiter,
        missing: Generating,
    ) -> None:
        self._engine = engine
        self._capabilities = capabilities
        self._slots = slots
        self._wanted = [
            (number, trace_seed(missing.seed, missing.question.id, number))
            for number in missing.numbers
        ]
        self._opened = perf_counter()
        self._begun: dict[int, float] = {}

    @property
    def name(self) -> str:
        """The engine's name."""
        return self._engine.name

    @property
    def failure(self) -> EngineError | None:
        """The engine's failure."""
        return self._engine.failure

    async def capabilities(self) -> Capabilities:
        """What the engine can do."""
        return self._capabilities

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace, as soon as its turn comes."""
        position = request.trace
        number, seed = self._wanted[position]
        own = replace(request, trace=number, seed=seed)
        async with self._slots:
            self._begun[position] = perf_counter() - self._opened
            async with aclosing(self._engine.stream(own)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def as_generated(self, trace: Trace) -> Trace:
        """A trace with its own number and seed, and the time when its turn came."""
        number, seed = self._wanted[trace.id]
        # One that was cancelled in the queue never had its turn.
        started = self._begun.get(trace.id, trace.started)
        return replace(trace, id=number, seed=seed, started=started)


class _Ungrouped(AnswerKind):
    """Finds answers without comparing them: the recorder does, with what is recorded already."""

    def __init__(self, answers: AnswerKind) -> None:
        self._answers = answers

    @property
    def name(self) -> str:  # type: ignore[override]  # a class has it, and so may an object
        """The kind's name."""
        return self._answers.name

    @property
    def quick(self) -> bool:
        """As the kind is."""
        return self._answers.quick

    def extract(self, text: str) -> str | None:
        """What the kind finds."""
        return self._answers.extract(text)

    def canonical(self, answer: str) -> str:
        """The answer as it is."""
        return answer or " "
