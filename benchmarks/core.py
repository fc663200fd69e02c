"""What the core costs: metrics over arrays, the streaming gate, memory, and the driver.

    python benchmarks/core.py [--runs 7]

Every figure is the median of several runs on this machine, in CPU time. What is compared is
timed in turns, in random order, in the same process, so that a busy machine slows all alike.
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO
from statistics import median

import anyio
import numpy as np

from conviction.answers import AnswerKind
from conviction.confidence import Metric, measure, measure_pool
from conviction.core import Message, Question, Sampling, Trace
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.gate import Gate
from conviction.live import LiveTrace
from conviction.policies import Action, Conditions, Majority, Start
from conviction.thinking import deliberate

RANDOM = np.random.default_rng(7)
TRACES, TOKENS = 64, 10_000
PAPER_WINDOW = 2048
REFERENCE = "43-52 thousand tokens/s"
"""The reference implementation's, confidence and stop test included, on 2 cores."""


def confidences(count: int) -> np.ndarray:
    """Token confidences as reasoning models give them: 8 to 20, some far above."""
    return RANDOM.gamma(9.0, 1.5, count).astype(np.float32)


def line(what: str, figure: str, target: str = "") -> None:
    print(f"{what:<58}{figure:>22}   {target}")


@dataclass
class Clock:
    cpu: float


@contextmanager
def clocked() -> Iterator[Clock]:
    """CPU seconds of this process: neighbours on the machine do not count."""
    clock = Clock(time.process_time())
    yield clock
    clock.cpu = time.process_time() - clock.cpu


def metrics(runs: int) -> None:
    shapes = {
        "100 traces x 20,000, window 2048": (100, 20_000, PAPER_WINDOW),
        "5,000 traces x 200, window 64": (5_000, 200, 64),
    }
    for name, (traces, tokens, window) in shapes.items():
        flat = confidences(traces * tokens)
        offsets = np.arange(traces + 1) * tokens
        for metric in Metric:
            taken: list[float] = []
            for _ in range(runs):
                with clocked() as clock:
                    measure_pool(metric, flat, offsets, window)
                taken.append(clock.cpu)
            speed = flat.size / median(taken) / 1e6
            line(f"{metric}, {name}", f"{speed:,.0f} M tokens/s", "target >= 100")


def gate(runs: int) -> None:
    for size in (1, 16):
        chunks = np.split(confidences(160_000), range(size, 160_000, size))
        taken: list[float] = []
        for _ in range(runs):
            push = Gate(PAPER_WINDOW, 0.0).monitor().push
            with clocked() as clock:
                for chunk in chunks:
                    push(chunk)
            taken.append(clock.cpu)
        line(f"streaming gate, chunks of {size}", f"{median(taken) / 160_000 * 1e9:,.0f} ns/token")


async def memory() -> None:
    values = confidences(200_000)
    live = LiveTrace(id=0, seed=0, gate=None, started=0.0)

    async def stream() -> AsyncIterator[Chunk]:
        for i in range(values.size):
            yield Chunk("", values[i : i + 1])

    tracemalloc.start()
    await live.read(stream())
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    line(
        "confidences of a growing trace",
        f"{after / values.size:.1f} bytes/token",
        "target <= 8; the reference keeps 4,700",
    )


class Nothing(AnswerKind):
    name = "nothing"
    quick = True

    def extract(self, text: str) -> str | None:
        del text
        return None

    def canonical(self, answer: str) -> str:
        return answer


@dataclass
class Gated(Majority):
    """Watches every token of every trace, and stops none."""

    threshold: float = 0.0

    def begin(self, conditions: Conditions) -> list[Action]:
        del conditions
        return [Start(self.budget, Gate(PAPER_WINDOW, self.threshold))]

    def on_finished(self, trace: Trace) -> list[Action]:
        assert trace.tokens == TOKENS
        return []


Consumer = Callable[[AsyncIterator[Chunk]], Awaitable[None]]


async def drop(chunks: AsyncIterator[Chunk]) -> None:
    async for _ in chunks:
        pass


async def keep(chunks: AsyncIterator[Chunk]) -> None:
    """The least that anybody does who wants the trace afterwards."""
    write, write_text = BytesIO().write, StringIO().write
    async for chunk in chunks:
        write(chunk.confidences)  # type: ignore[arg-type]
        write_text(chunk.text)


async def bare(engine: ScriptedEngine, consume: Consumer) -> None:
    """The same engine, one task per trace, and nothing else."""
    sampling = Sampling(max_tokens=TOKENS)

    async def read(trace: int) -> None:
        await consume(engine.stream(TraceRequest((Message("user", "?"),), sampling, trace)))

    async with anyio.create_task_group() as tasks:
        for trace in range(TRACES):
            tasks.start_soon(read, trace)


async def driven(engine: ScriptedEngine, threshold: float) -> None:
    await deliberate(
        Question.ask("?"),
        engine=engine,
        policy=Gated(budget=TRACES, threshold=threshold),
        answers=Nothing(),
        sampling=Sampling(max_tokens=TOKENS),
    )


def driver(runs: int) -> None:
    scripts = [Script("word" * TOKENS, confidences(TOKENS)) for _ in range(TRACES)]
    engine = ScriptedEngine(scripts, concurrency=TRACES)
    lowest = min(measure(Metric.LOWEST_GROUP, s.confidences, PAPER_WINDOW) for s in scripts)
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "bare loop": partial(bare, engine, drop),
        "bare loop that keeps what it reads": partial(bare, engine, keep),
        "driver, gate far below": partial(driven, engine, 0.5 * lowest),
        "driver, gate as near as can be": partial(driven, engine, lowest),
    }
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name in RANDOM.permutation(list(ways)):
            engine.generated.clear()
            gc.collect()
            with clocked() as clock:
                anyio.run(ways[name])
            costs[name].append(clock.cpu / (TRACES * TOKENS) * 1e6)
    print(f"\n{TRACES} traces x {TOKENS:,} tokens in chunks of 1")
    print(f"{'':<36}{'k tokens/s':>12}{'us/token':>10}{'over bare':>11}{'added us':>10}")
    for name, taken in costs.items():
        pairs = list(zip(costs["bare loop"], taken, strict=True))
        over = median(mine / alone - 1 for alone, mine in pairs)
        added = median(mine - alone for alone, mine in pairs)
        cpu = median(taken)
        print(f"{name:<36}{1e3 / cpu:>12,.0f}{cpu:>10.2f}{over:>11.1%}{added:>10.2f}")
    print(f"target: <= 5% over the bare loop, <= 10 us added; the reference: {REFERENCE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    metrics(runs)
    gate(runs)
    anyio.run(memory)
    driver(runs)


if __name__ == "__main__":
    main()
