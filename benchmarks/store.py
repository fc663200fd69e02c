"""Recordings as a store against Parquet: size, writing, reading, and memory for a large question.

    python benchmarks/store.py                    # 640 traces with texts, 7 runs
    python benchmarks/store.py --traces 4096 --tokens 20000 --runs 3 --large

Traces are made up: confidences of a gamma distribution, texts of common words. Parquet is what
`conviction record --export` writes; before stores, it was what a pool's parts were. With `--large`
all traces are of one question, and each reading is done in a process of its own, so that its peak
memory is known. Times are CPU seconds, which other programs disturb least; medians of the runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from conviction.core import Answer, FinishReason, Sampling
from conviction.recordings import Pool, PoolMeta, PoolWriter, RecordedTrace
from conviction.recordings.transfer import write_part

META = PoolMeta("made-up", 20, "number", Sampling(max_tokens=1 << 20))
WORDS = (Path(__file__).parent.parent / "docs" / "how-it-works.md").read_text().split()
QUESTIONS = 20
AT_ONCE = 16
"""Traces that are appended together, as when they end at about the same time."""


def rows(question: str, traces: int, tokens: int, *, texts: bool) -> Iterator[RecordedTrace]:
    random = np.random.default_rng([*question.encode(), traces])
    for number in range(traces):
        size = int(random.integers(tokens // 2, tokens * 3 // 2))
        words = random.choice(WORDS, size * 3 // 4).tolist() if texts else []
        answer = str(random.integers(40, 45))
        yield RecordedTrace(
            question_id=question,
            number=number,
            prompt_hash="0" * 16,
            question="What is six times seven?",
            gold="42",
            seed=int(random.integers(1 << 62)),
            text=" ".join(words) if texts else None,
            answer=Answer(answer, answer),
            correct=answer == "42",
            finish=FinishReason.STOP,
            tokens=size,
            prompt_tokens=30,
            confidences=random.gamma(9.0, 1.3, size).astype(np.float32),
            started=float(random.uniform(0, 9)),
            ended=float(random.uniform(10, 90)),
        )


def write_store(path: Path, groups: Iterable[list[RecordedTrace]]) -> None:
    with PoolWriter(path, META) as writer:
        for group in groups:
            for first in range(0, len(group), AT_ONCE):
                writer.append(*group[first : first + AT_ONCE])


def read(path: Path, *, texts: bool) -> int:
    pool = Pool.open(path)
    tokens = 0
    for question in pool.questions:
        tokens += int(pool.traces(question.id).tokens.sum())
        if texts:
            pool.texts(question.id)
    return tokens


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


READ = """
import json, re, sys, time
from conviction.recordings import Pool
pool = Pool.open(sys.argv[1])
began = time.process_time(), time.perf_counter()
pool.traces(pool.questions[0].id)
took = time.process_time() - began[0], time.perf_counter() - began[1]
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())  # that of this program
print(json.dumps([*took, int(peak[1]) / 1024]))
"""


def large(path: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--traces", type=int, default=640)
    parser.add_argument("--tokens", type=int, default=2000, help="of a trace, in the mean")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    texts = not given.large
    questions = 1 if given.large else QUESTIONS
    each = given.traces // questions
    with tempfile.TemporaryDirectory() as folder:
        paths = {"Parquet": Path(folder) / "pool.parquet", "store": Path(folder) / "pool"}

        def groups() -> Iterator[list[RecordedTrace]]:
            for number in range(questions):
                yield list(rows(str(number), each, given.tokens, texts=texts))

        def store_of() -> None:
            paths["store"].unlink(missing_ok=True)
            write_store(paths["store"], made)

        made = [*groups()]
        writers = {
            "Parquet": lambda: write_part(paths["Parquet"], made, META),
            "store": store_of,
        }
        writing = {
            name: [seconds(work) for _ in range(given.runs)] for name, work in writers.items()
        }
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        print("| | MB | of Parquet | written, CPU s | read, CPU s | read, s | peak memory, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, path in paths.items():
            if given.large:
                found = np.median([large(path) for _ in range(given.runs)], axis=0)
                reading = [f"{found[0]:.2f}", f"{found[1]:.2f}", f"{found[2]:.0f}"]
            else:
                took = [
                    seconds(lambda path=path: read(path, texts=True)) for _ in range(given.runs)
                ]
                reading = [f"{median(took):.2f}", "", ""]
            cells = [f"{sizes[name] / 1e6:.1f}", f"{sizes[name] / sizes['Parquet']:.2f}"]
            print(f"| {' | '.join([name, *cells, f'{median(writing[name]):.2f}', *reading])} |")


if __name__ == "__main__":
    main()
