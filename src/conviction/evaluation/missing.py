"""Generating the traces that a recording lacks, each with its own number and seed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

import anyio

from conviction.answers import AnswerKind
from conviction.core import Trace
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest


class MissingTraces(Engine):
    """Generates some numbers of a question's traces, as one of many users of an engine.

    Args:
        engine: Generates them.
        capabilities: What it can do.
        slots: Admits as many traces at once as the engine can run, over all questions.
    """

    def __init__(
        self,
        engine: Engine,
        capabilities: Capabilities,
        slots: anyio.CapacityLimiter,
    ) -> None:
        self._engine = engine
        self._capabilities = capabilities
        self._slots = slots
        self._wanted: list[tuple[int, int]] = []
        self._opened = perf_counter()
        self._begun: dict[int, float] = {}

    def add(self, number: int, seed: int) -> None:
        """The trace that is asked for next has this number and this seed."""
        self._wanted.append((number, seed))

    @property
    def name(self) -> str:
        """The engine's name."""
        return self._engine.name

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


class Ungrouped(AnswerKind):
    """Finds answers and compares nothing: the recorder compares, with what is recorded already."""

    def __init__(self, answers: AnswerKind) -> None:
        self._answers = answers

    @property
    def name(self) -> str:  # type: ignore[override]  # a class has it, and so may an object
        """The kind's name."""
        return self._answers.name

    def extract(self, text: str) -> str | None:
        """What the kind finds."""
        return self._answers.extract(text)

    def canonical(self, answer: str) -> str:
        """The answer as it is."""
        return answer or " "
