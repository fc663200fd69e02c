"""Policies on many pools at once: accuracy and tokens against majority voting, and the time.

    python benchmarks/many_pools.py FOLDER
    python benchmarks/many_pools.py FOLDER --budget 16 --slots 4 inf --policy majority --policy esc

FOLDER holds pools, or recorded answers as JSON lines.
Prints two Markdown tables: the mean over pools, and accuracy and tokens of every pool. Differences
are paired, in points, with 95% intervals of a bootstrap over questions and draws (each pool counts
the same); tokens and path are parts of what majority voting takes with the same slots.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from conviction.answers import kind
from conviction.evaluation.grading import is_correct
from conviction.lab.candidates import parse
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import Bootstrap, Estimate, mean_of
from conviction.lab.trials import Trials, run_trials
from conviction.recordings.importing import import_files

DEFAULT = ["majority", "adaptive-consistency:bar=0.9/0.95/0.99", "esc:window=4/5"]


Key = tuple[str, float]
"""A policy's label, and the slots of the machine."""


@dataclass(frozen=True)
class Result:
    """What one policy came to on one pool, by slots.

    Attributes:
        accuracy: Share of right verdicts.
        difference: Accuracy less that of majority voting, in points.
        resampled: The same in every resample.
        tokens: As a part of majority's.
        path: The same, of the tokens one after another.
    """

    accuracy: float
    difference: float
    resampled: np.ndarray
    tokens: float
    path: float


def results(trials: Trials, seed: int) -> dict[Key, Result]:
    """Every candidate against the first with as many slots."""
    runs = trials.runs
    _, questions, repeats = runs.shape
    means = Bootstrap(questions, repeats, seed=seed).means(runs["correct"])
    found: dict[Key, Result] = {}
    first: dict[float, int] = {}
    for number, candidate in enumerate(trials.candidates):
        other = first.setdefault(candidate.concurrency, number)
        run, majority = runs[number], runs[other]
        found[candidate.label, candidate.concurrency] = Result(
            mean_of(run["correct"]),
            100 * (mean_of(run["correct"]) - mean_of(majority["correct"])),
            100 * (means[number] - means[other]),
            mean_of(run["tokens"]) / mean_of(majority["tokens"]),
            mean_of(run["path"]) / mean_of(majority["path"]),
        )
    return found


def pools(folder: Path, made: Path) -> list[tuple[str, PoolTraces]]:
    """The pools of a folder; recorded answers are imported."""
    found: list[tuple[str, PoolTraces]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".jsonl":
            import_files([path], made / path.stem, answers=kind("math"), grade=is_correct)
            found.append((path.stem, PoolTraces.open(made / path.stem)))
        elif path.is_dir() or path.suffix == ".parquet":
            found.append((path.stem, PoolTraces.open(path)))
    return found


def points(value: float, resampled: np.ndarray) -> str:
    estimate = Estimate.of(value, resampled)
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def mean_table(found: list[tuple[str, dict[Key, Result]]], slots: Sequence[float]) -> None:
    paths = " | ".join(f"path, {_slots(one)}" for one in slots)
    print(f"| policy | against majority, points | tokens | {paths} |")
    print(f"| --- | --- | --- {'| --- ' * len(slots)}|")
    for label in _labels(found):
        last = [one[label, slots[-1]] for _, one in found]
        difference = points(
            float(np.mean([one.difference for one in last])),
            np.mean([one.resampled for one in last], axis=0),
        )
        tokens = np.mean([one.tokens for one in last])
        times = " | ".join(
            f"{np.mean([one[label, slot].path for _, one in found]):.2f}" for slot in slots
        )
        print(f"| {label} | {difference} | {tokens:.3f} | {times} |")


def pool_table(found: list[tuple[str, dict[Key, Result]]], slots: Sequence[float]) -> None:
    first, *others = _labels(found)
    print(f"| pool | {' | '.join([first, *others])} |")
    print(f"| --- {'| --- ' * (1 + len(others))}|")
    for name, one in found:
        cells = [f"{100 * one[first, slots[-1]].accuracy:.1f}"]
        for label in others:
            result = one[label, slots[-1]]
            cells.append(f"{points(result.difference, result.resampled)} / {result.tokens:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")


def _labels(found: list[tuple[str, dict[Key, Result]]]) -> list[str]:
    return list(dict.fromkeys(label for label, _ in found[0][1]))


def _slots(slots: float) -> str:
    return "all at once" if slots == inf else f"{slots:g} at once"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--policy", action="append", help="the first is what others are held against"
    )
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--slots", type=float, nargs="+", default=[64.0])
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    candidates = parse(given.policy or DEFAULT, budgets=[given.budget], concurrencies=given.slots)
    found: list[tuple[str, dict[Key, Result]]] = []
    with tempfile.TemporaryDirectory() as made:
        for number, (name, source) in enumerate(pools(given.folder, Path(made))):
            trials = run_trials(
                source, candidates, repeats=given.repeats, processes=given.processes
            )
            found.append((name, results(trials, number)))
            print(f"{name}: done", file=sys.stderr)
    mean_table(found, given.slots)
    print()
    pool_table(found, given.slots)


if __name__ == "__main__":
    main()
