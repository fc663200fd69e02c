"""What Ray costs per question and per trace: two actors against one process, same scripted engine.

    python benchmarks/ray_overhead.py

Traces take no time, so what is measured is all else: the driver, and with Ray the way to an actor
and back. Interleaved in one run; medians of the rounds. "One by one" is the latency of a question,
"many at once" the time per question of a full pipeline. With "whole" traces, texts and confidences
come back as they do when a pool is recorded.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np

from conviction.answers import kind
from conviction.backends import Backend
from conviction.core import Question, Sampling
from conviction.engines.base import Engine, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.evaluation.workers import OneEngine, Thinking, Workers
from conviction.policies import policy
from conviction.ray.cluster import connected
from conviction.ray.workers import RayWorkers


@dataclass(frozen=True)
class Playing(Backend):
    """An engine of traces of so many tokens, in one chunk."""

    tokens: int = 200

    def build(self) -> Engine:
        return ScriptedEngine(self._script, chunk_tokens=self.tokens, remembered=1)

    def _script(self, request: TraceRequest) -> Script:
        draw = np.random.default_rng(request.seed)
        confidences = draw.normal(12, 3, self.tokens).astype(np.float32)
        return Script("word " * self.tokens + "Answer: 4", confidences)


async def seconds(workers: Workers, traces: int, *, whole: bool, many: bool, count: int) -> float:
    """Seconds per question."""
    thinking = [
        Thinking(
            Question.ask("What is 2 + 2?", id=str(number)),
            policy("majority", budget=traces),
            Sampling(),
            whole=whole,
        )
        for number in range(count)
    ]
    limit = anyio.CapacityLimiter(4 if many else 1)

    async def think(one: Thinking) -> None:
        async with limit:
            await workers.think(one, on_event=lambda _: None)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for one in thinking:
            tasks.start_soon(think, one)
    return (time.perf_counter() - began) / count


async def measure(rounds: int, count: int, tokens: int) -> None:
    backend = Playing(tokens=tokens)
    engine = backend.build()
    print("| | traces | one process | Ray, two actors | more per question | more per trace |")
    print("| --- | --- | --- | --- | --- | --- |")
    async with engine, RayWorkers([backend], answers="number", actors=2) as remote:
        local = OneEngine(engine, kind("number"))
        remote.places(2)
        with anyio.fail_after(60):
            while len(remote.homes) < 2:  # noqa: ASYNC110  # other processes start
                await anyio.sleep(0.1)
        for many in (False, True):
            for whole in (False, True):
                for traces in (1, 8, 64):
                    took: dict[Workers, list[float]] = {local: [], remote: []}
                    for _ in range(rounds):
                        for workers, times in took.items():
                            times.append(
                                await seconds(workers, traces, whole=whole, many=many, count=count)
                            )
                    one, ray = (1000 * statistics.median(times) for times in took.values())
                    what = f"{'many at once' if many else 'one by one'}{', whole' * whole}"
                    print(
                        f"| {what} | {traces} | {one:.2f} ms | {ray:.2f} ms | {ray - one:+.2f} ms "
                        f"| {(ray - one) / traces:+.3f} ms |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=30, help="questions a round")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a trace")
    given = parser.parse_args()
    # Actors import what their engines are made of from here.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    sys.modules["ray_overhead"] = sys.modules["__main__"]
    Playing.__module__ = "ray_overhead"
    with connected("local"):
        anyio.run(measure, given.rounds, given.count, given.tokens)


if __name__ == "__main__":
    main()
