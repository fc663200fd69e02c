"""Policies on many pools at once: accuracy, tokens and time against majority voting.

    python benchmarks/many_pools.py FOLDER --each by-pool.md --csv means.csv
    python benchmarks/many_pools.py FOLDER --budget 16 --slots 4 inf --policy majority --policy esc

FOLDER holds pools, or recorded answers as JSON lines.
Prints a Markdown table per budget, of means over the pools (each counts the same). Everything is
held against majority voting with the largest budget, or against the policy that is named first:
accuracy, paired, in points, with 95% intervals of a bootstrap over questions and draws; tokens, and
the path (tokens one after another: time), as parts of what it takes with as many slots. Accuracy
and tokens are those of the largest number of slots.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conviction.lab.candidates import Candidate, parse
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import Bootstrap, Estimate, mean_of
from conviction.lab.trials import Trials, run_trials

NAMES = {
    "majority": "majority",
    "adaptive-consistency:bar=0.9": "Beta .90",
    "adaptive-consistency": "Beta .95",
    "adaptive-consistency:bar=0.99": "Beta .99",
    "settle:bar=0.9,slope=0,first=3,ahead=1": "Beta .90, by need",
    "settle:bar=0.95,slope=0,first=4,ahead=1": "Beta .95, by need",
    "settle:bar=0.99,slope=0,ahead=1": "Beta .99, by need",
    "esc": "ESC 4",
    "esc:window=5": "ESC 5",
    "settle-exact": "settle-exact",
    "settle": "settle",
    "settle-lean": "settle-lean",
}
"""The policies of the tables, and their names there. By need: without slope, settling is the Beta
rule; `first` traces are what it needs where all agree, and no trace is started that may turn out
needless."""

EACH = """# Every pool

Written by `benchmarks/many_pools.py --each`; see [what the columns mean](recorded-answers.md).
"""

WITH_CONFIDENCE = ("deepconf-high", "deepconf-low")
FEWEST_DRAWS = 16

Row = tuple[str, int]
"""A policy's name, and its budget."""


@dataclass(frozen=True)
class Result:
    """What one policy came to, on one pool or as the mean of several.

    Attributes:
        accuracy: Share of right verdicts.
        difference: Accuracy less that of what it is held against, in points.
        resampled: The same in every resample.
        tokens: As a part of the other's.
        path: The same, of the tokens one after another, by slots.
    """

    accuracy: float
    difference: float
    resampled: np.ndarray
    tokens: float
    path: Mapping[float, float]

    @property
    def points(self) -> Estimate:
        """The difference, with its interval."""
        return Estimate.of(self.difference, self.resampled)


Results = dict[Row, Result]


def row_of(candidate: Candidate) -> Row:
    return NAMES.get(candidate.spec, candidate.spec), candidate.policy.budget


def results(trials: Trials, seed: int) -> Results:
    """Every policy against the first policy with its largest budget, and with as many slots."""
    slots = max(candidate.concurrency for candidate in trials.candidates)
    places = {(row_of(one), one.concurrency): n for n, one in enumerate(trials.candidates)}
    first = trials.candidates[0].policy.name
    budget = max(one.policy.budget for one in trials.candidates if one.policy.name == first)
    other = (row_of(trials.candidates[0])[0], budget)

    _, questions, repeats = trials.runs.shape
    shown = [place for (_, at), place in places.items() if at == slots]
    means = dict(
        zip(
            shown,
            Bootstrap(questions, repeats, seed=seed).means(trials["correct"][shown]),
            strict=True,
        )
    )

    def part(field: str, row: Row, at: float) -> float:
        mine, others = (mean_of(trials[field][places[one, at]]) for one in (row, other))
        return mine / others

    base = places[other, slots]
    return {
        row: Result(
            mean_of(trials["correct"][place]),
            100 * mean_of(trials["correct"][place] * 1.0 - trials["correct"][base]),
            100 * (means[place] - means[base]),
            part("tokens", row, slots),
            {at: part("path", row, at) for one, at in places if one == row},
        )
        for row, place in ((row, places[row, slots]) for row, at in places if at == slots)
    }


def mean_results(found: Iterable[Results]) -> Results:
    """The mean over pools, each counting the same."""
    found = list(found)
    means: Results = {}
    for row in found[0]:
        each = [one[row] for one in found]
        means[row] = Result(
            mean_of([one.accuracy for one in each]),
            mean_of([one.difference for one in each]),
            np.mean([one.resampled for one in each], axis=0),
            mean_of([one.tokens for one in each]),
            {slots: mean_of([one.path[slots] for one in each]) for slots in each[0].path},
        )
    return means


def pools(folder: Path) -> list[tuple[str, PoolTraces]]:
    """The pools of a folder, recorded answers included."""
    return [
        (path.stem, PoolTraces.open(path))
        for path in sorted(folder.iterdir())
        if path.is_dir() or path.suffix in (".jsonl", ".parquet", ".db")
    ]


def data_set(pool: str) -> str:
    """What a pool's questions are, by its name: "aime2024" of "aime2024_Qwen3-14B"."""
    return pool.split("_", 1)[0]


def draws(source: PoolTraces, runs: int) -> int:
    """Draws per question that come to so many runs of a policy on a pool, and at least a few."""
    return max(round(runs / len(source.question_ids)), FEWEST_DRAWS)


def each_trials(
    found: Sequence[tuple[str, PoolTraces]],
    candidates: Sequence[Candidate],
    *,
    runs: int,
    processes: int,
) -> Iterator[tuple[str, Trials, int]]:
    """The trials of every pool, and the seed of its bootstrap.

    Pools of one data set resample the same questions: models find the same ones hard.
    """
    sets = list(dict.fromkeys(data_set(name) for name, _ in found))
    for name, source in found:
        trials = run_trials(source, candidates, repeats=draws(source, runs), processes=processes)
        print(f"{name}: done", file=sys.stderr)
        yield name, trials, sets.index(data_set(name))


def signed(points: Estimate) -> str:
    if points.low == points.high:
        return "none"
    return f"{points.value:+.2f} [{points.low:+.2f}, {points.high:+.2f}]"


def table(found: Results, budgets: Sequence[int], accuracy: str = "") -> Iterator[str]:
    """Lines of a Markdown table: the policies with these budgets."""
    largest = max(budget for _, budget in found)
    slots = list(next(iter(found.values())).path)
    paths = [f"path, {at:g} slots" if at < largest else f"path, {largest} or more" for at in slots]
    head = [*(["budget"] if len(budgets) > 1 else []), "policy", *([accuracy] if accuracy else [])]
    head += [f"against {next(iter(found))[0]} of {largest}", "tokens", *paths]
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for budget in budgets:
        for (name, own), result in found.items():
            if own != budget:
                continue
            cells = [*([str(budget)] if len(budgets) > 1 else []), name]
            cells += [f"{100 * result.accuracy:.1f}"] if accuracy else []
            cells += [signed(result.points), f"{result.tokens:.3f}"]
            yield f"| {' | '.join([*cells, *(f'{result.path[at]:.2f}' for at in slots)])} |"


def write_csv(path: Path, found: Results) -> None:
    """The means as numbers, for a figure."""
    slots = list(next(iter(found.values())).path)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["policy", "budget", "difference", "low", "high", "tokens"]
            + [f"path_{at:g}" for at in slots]
        )
        for (name, budget), one in found.items():
            numbers = [*(one.points.value, one.points.low, one.points.high, one.tokens)]
            numbers += [one.path[at] for at in slots]
            writer.writerow([name, budget, *(f"{number:.4f}" for number in numbers)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--policy", action="append", help="the first is what others are held against"
    )
    parser.add_argument("--budget", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--slots", type=float, nargs="+", default=[4.0, 16.0, 64.0])
    parser.add_argument("--runs", type=int, default=2000, help="of a policy on a pool, about")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--each", type=Path, help="write the tables of every pool to this file")
    parser.add_argument("--csv", type=Path, help="write the means to this file")
    given = parser.parse_args()
    sources = pools(given.folder)
    confident = all(source.top_k for _, source in sources)
    specs = given.policy or [*NAMES, *(WITH_CONFIDENCE if confident else ())]
    candidates = parse(specs, budgets=given.budget, concurrencies=sorted(given.slots))
    found = {
        name: results(trials, seed)
        for name, trials, seed in each_trials(
            sources, candidates, runs=given.runs, processes=given.processes
        )
    }
    means = mean_results(found.values())
    budgets = sorted({budget for _, budget in means}, reverse=True)
    for budget in budgets:
        print(f"\n## Budget {budget}\n", *table(means, [budget]), sep="\n")
    if given.each:
        lines = [
            line
            for name, one in found.items()
            for line in (f"\n## {name}\n", *table(one, budgets, accuracy="right, %"))
        ]
        given.each.write_text("\n".join([EACH.rstrip(), *lines]) + "\n")
    if given.csv:
        write_csv(given.csv, means)


if __name__ == "__main__":
    main()
