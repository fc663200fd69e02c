"""Engines for tests in a Ray cluster: actors import this module, so it imports little."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import anyio
import numpy as np

from conviction.backends import Backend
from conviction.core import FinishReason
from conviction.engines.base import Chunk, Engine, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import EngineStartError, EngineUnavailableError


def number(request: TraceRequest) -> int:
    """The number that a question is about."""
    return int(request.messages[-1].content.split()[2])


def script(request: TraceRequest) -> Script:
    """A trace that its seed decides on: most say ten times the number, some something else."""
    draw = np.random.default_rng(request.seed)
    tokens = int(draw.integers(4, 30))
    answer = number(request) * 10 + int(draw.choice([0, 0, 0, 1, 2]))
    finish = FinishReason.LENGTH if draw.random() < 0.05 else FinishReason.STOP
    confidences = draw.normal(12, 3, tokens).astype(np.float32)
    return Script(f"So the answer is {answer}.", confidences, finish=finish, prompt_tokens=9)


@dataclass(frozen=True)
class Scripted(Backend):
    """A scripted engine; `fatal` is the question that ends its process `deaths` times.

    It does so by the signal `kill`, or if it `eats`, by taking memory until somebody ends it; the
    deaths are written beside the file `events`, each as a process that it started before.
    """

    delay: float = 0.0
    events: Path | None = None
    fatal: int | None = None
    deaths: int = 1
    kill: signal.Signals = signal.SIGKILL
    eats: bool = False
    concurrency: int = 64
    top_k: int = 20
    broken: bool = False
    faulty: bool = False

    def build(self) -> Engine:
        if self.broken:
            raise EngineStartError(
                tried="start the engine", found="there is no device", remedy="Put one in."
            )
        return ScriptedEngine(
            self._script,
            pace=self._pace if self.delay or self.events else None,
            chunk_tokens=2,
            top_k=self.top_k,
            concurrency=self.concurrency,
        )

    def _script(self, request: TraceRequest) -> Script:
        played = script(request)
        if self.faulty:
            gone = EngineUnavailableError(tried="ask", found="the engine is gone", remedy="Wait.")
            return replace(played, fault=gone, fault_after=2)
        return played

    async def _pace(self, request: TraceRequest) -> None:
        question = number(request)
        fatal = request.trace == 1 and question == self.fatal and self.events is not None
        if fatal and len(self.children()) < self.deaths:
            await anyio.sleep(0.3)  # others get on meanwhile
            self._start_child()
            if self.eats:
                await _eat()
            os.kill(os.getpid(), self.kill)
        await anyio.sleep(self.delay)

    def children(self) -> list[int]:
        """Processes that were started before a death, one each."""
        assert self.events is not None
        path = self.events.with_suffix(".children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def _start_child(self) -> None:
        """Start a process that does not watch this one, as vLLM's does not."""
        assert self.events is not None
        child = subprocess.Popen(["sleep", "100"])
        with self.events.with_suffix(".children").open("a") as file:
            file.write(f"{child.pid}\n")


async def _eat() -> None:
    """Take memory until somebody ends this process; bounded."""
    taken = []
    for _ in range(80):
        taken.append(np.ones(1 << 24))  # 128 MiB each
        await anyio.sleep(0.02)
    await anyio.sleep(10)


class TellingEngine(ScriptedEngine):
    """Writes a line into the file that TOLD names when a trace begins and has ended; and itself."""

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        question = number(request)
        _tell("begins", question)
        try:
            async with aclosing(super().stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            _tell("ended", question)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        _tell("closed", -1)


def _tell(what: str, question: int) -> None:
    with Path(os.environ["TOLD"]).open("a") as file:
        file.write(f"{what} {question} {os.getpid()} {time.time()}\n")


def telling() -> Engine:
    """An engine that tells; questions from 1000 on take seconds."""

    async def pace(request: TraceRequest) -> None:
        await anyio.sleep(1.0 if number(request) >= 1000 else 0.01)

    return TellingEngine(script, pace=pace, chunk_tokens=2, concurrency=16)
