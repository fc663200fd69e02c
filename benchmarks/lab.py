"""What the lab costs.

    python benchmarks/lab.py speed                   online DeepConf on generated traces
    python benchmarks/lab.py reading                 one large question out of a pool

The generated traces are cut out of one long stretch of noise, a question at a time, so making
them costs little and memory holds one question per process.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

from conviction.core import Answer, FinishReason
from conviction.lab.candidates import parse
from conviction.lab.comparison import compare
from conviction.lab.replay import PlayedTrace
from conviction.lab.trials import run_trials
from conviction.recordings import Pool, PoolMeta, PoolWriter, RecordedTrace, pack

PAPER = "warmup=16,window=2048,quorum=1"
ONLINE = [f"deepconf-low:{PAPER}", f"deepconf-high:{PAPER}"]
ANSWERS = ("0", "1", "2", "3", "4")
MIX = (0.4, 0.2, 0.2, 0.1, 0.1)
RIGHT_BONUS = 0.5


@dataclass(frozen=True)
class Generated:
    """Questions whose right traces are a little more confident than the wrong ones."""

    questions: int
    size: int
    tokens: int
    top_k: int = 20
    max_tokens: int = 1 << 20

    @property
    def question_ids(self) -> tuple[str, ...]:
        return tuple(f"question {number}" for number in range(self.questions))

    def count(self, question_id: str) -> int:
        del question_id
        return self.size

    @cached_property
    def _noise(self) -> np.ndarray:
        return np.random.default_rng(0).gamma(9.0, 1.5, 4_000_000).astype(np.float32)

    def traces(self, question_id: str) -> list[PlayedTrace]:
        random = np.random.default_rng(self.question_ids.index(question_id))
        traces = []
        for _ in range(self.size):
            key = ANSWERS[int(random.choice(len(ANSWERS), p=MIX))]
            begin = int(random.integers(0, self._noise.size - self.tokens))
            level = random.normal(RIGHT_BONUS if key == ANSWERS[0] else 0.0, 1.0)
            values = self._noise[begin : begin + self.tokens] + np.float32(level)
            answer = Answer(key, key)
            traces.append(
                PlayedTrace(
                    self.tokens, FinishReason.STOP, answer, key == ANSWERS[0], np.abs(values)
                )
            )
        return traces


def speed(arguments: argparse.Namespace) -> None:
    source = Generated(arguments.questions, arguments.pool, arguments.tokens)
    for spec in ONLINE:
        for concurrency in (1, 64):
            candidates = parse([spec], budgets=[arguments.budget], concurrencies=[concurrency])
            began = time.perf_counter()
            trials = run_trials(
                source, candidates, repeats=arguments.repeats, processes=arguments.processes
            )
            seconds = time.perf_counter() - began
            started = int(trials["started"].sum())
            (row,) = compare(trials)
            print(
                f"{spec.partition(':')[0]:<14} {concurrency:>3} at once {seconds:6.1f} s "
                f"{started:>9,} traces  {1e6 * seconds / started:5.1f} us each  "
                f"saved {row.saving.value:.0%}  stopped {row.stopped:.0f}"
            )
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    most = (here + arguments.processes * largest) / 2**20
    print(f"memory: at most {most:.2f} GiB in {1 + arguments.processes} processes")


def reading(arguments: argparse.Namespace) -> None:
    # Each step has a process of its own, so that none is charged for the memory of another.
    alone = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, alone:
        source = Generated(1, arguments.pool, arguments.tokens)
        parts, packed = Path(folder) / "pool", Path(folder) / "pool.parquet"
        alone.submit(record, source, parts).result()
        alone.submit(pack_whole, parts, packed).result()
        for name, path in (("many parts", parts), ("one file", packed)):
            rounds = [alone.submit(read, path).result() for _ in range(arguments.rounds)]
            size, opened, peak, first, again = (
                median(column) for column in zip(*rounds, strict=True)
            )
            print(
                f"{name:<11} {size / 2**20:5.0f} MiB of confidences: {first:4.2f} s at first, "
                f"{again:4.2f} s again, process {opened / 2**20:.0f} -> {peak / 2**20:.0f} MiB, "
                f"{peak / size:.2f} of them in all, {(peak - opened) / size:.2f} to read"
            )


def record(source: Generated, path: Path) -> None:
    meta = PoolMeta("generated", source.top_k, "number")
    with PoolWriter(path, meta) as writer:
        for question_id in source.question_ids:
            for number, trace in enumerate(source.traces(question_id)):
                row = RecordedTrace(
                    question_id=question_id,
                    number=number,
                    prompt_hash="",
                    question="",
                    finish=trace.finish,
                    tokens=trace.tokens,
                    gold=ANSWERS[0],
                    answer=trace.answer,
                    correct=trace.correct,
                    confidences=trace.confidences,
                )
                writer.append(row)


def pack_whole(path: Path, target: Path) -> None:
    pack(Pool.open(path), target)


def read(path: Path) -> tuple[float, float, float, float, float]:
    """Bytes of confidences, of the process before and at its peak; seconds, twice."""
    pool = Pool.open(path)
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        traces = pool.traces(pool.questions[0].id)
        seconds.append(time.perf_counter() - began)
        size = 0 if traces.flat is None else traces.flat.nbytes
        del traces
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size, before, peak, *seconds


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--questions", type=int, default=30)
    fast.add_argument("--pool", type=int, default=1024)
    fast.add_argument("--tokens", type=int, default=20_000)
    fast.add_argument("--budget", type=int, default=512)
    fast.set_defaults(work=speed)
    whole = commands.add_parser("reading")
    whole.add_argument("--pool", type=int, default=4096)
    whole.add_argument("--tokens", type=int, default=20_000)
    whole.add_argument("--rounds", type=int, default=5)
    whole.set_defaults(work=reading)
    arguments = parser.parse_args(given)
    arguments.work(arguments)


if __name__ == "__main__":
    main()
