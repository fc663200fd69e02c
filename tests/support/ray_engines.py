"""Engines for tests in a Ray cluster: actors import this module, so it imports little."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np

from conviction.core import FinishReason
from conviction.engines.base import Engine, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine


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
class Scripted:
    """Makes a scripted engine; with `events`, a file gets a line whenever a trace begins.

    `fatal` names the question whose process dies the first `deaths` times, by this signal.
    """

    delay: float = 0.0
    events: Path | None = None
    fatal: int | None = None
    deaths: int = 1
    kill: signal.Signals = signal.SIGKILL
    eats: bool = False
    concurrency: int = 64

    def __call__(self) -> Engine:
        return ScriptedEngine(
            script, delay=self.delay, pace=self._pace, chunk_tokens=2, concurrency=self.concurrency
        )

    async def _pace(self, request: TraceRequest) -> None:
        question = number(request)
        if question == self.fatal and self.events is not None:
            deaths = self.events.with_suffix(".deaths")
            times = deaths.stat().st_size if deaths.exists() else 0
            if times < self.deaths and request.trace == 1:
                await anyio.sleep(0.3)  # others get on meanwhile
                with deaths.open("a") as file:
                    file.write(".")
                if self.eats:
                    await _eat()
                os.kill(os.getpid(), self.kill)
        await anyio.sleep(self.delay)


async def _eat() -> None:
    """Take memory until somebody ends this process; bounded."""
    taken = []
    for _ in range(80):
        taken.append(np.ones(1 << 24))  # 128 MiB each
        await anyio.sleep(0.02)
    await anyio.sleep(10)
