"""Does confidence make settling better? Chosen on one half of the questions, told of the other.

    python benchmarks/settle_confidence.py POOL... --slots 8

Every option has a grid of settings, and plain settle among them: to leave it off. So have bar and
slope of plain settle, to show what tuning brings without confidence. Half of the questions chooses,
the other half tells, ten times over both ways, so that every question is told of ten times. Two
ways to choose: the most right (of equals, the fewest tokens), and the fewest tokens among those
that are as right as plain settle. With several pools, each also chooses for the others.

Prints Markdown tables per pool. Differences and ratios are paired, with 95% intervals of a
bootstrap over questions and draws, which do not hold the chance in the choice itself.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conviction.lab.candidates import Candidate, parse
from conviction.lab.comparison import halves
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import Bootstrap, Estimate, mean_of
from conviction.lab.trials import Trials, run_trials

SPLITS = 10

PLAIN = "settle"
REFERENCES = [
    PLAIN,
    "settle-lean",
    "settle-exact",
    "majority",
    "adaptive-consistency",
    "deepconf-low",
    "deepconf-high",
]
CONFIDENT = "settle-confident:"
AS_THEY_ARE = [
    *REFERENCES,
    "settle-confident",
    "settle-confident:power=4",
    "settle-confident:metric=tail,power=4",
    "settle-confident:gain=1,power=4",
    "settle-confident:power=0,keep=0.1",
    "settle-confident:power=0,keep=0.5",
    "settle-confident:power=0,keep=0.9",
]
OPTIONS = {
    "bar and slope, no confidence": [
        "settle:bar=0.9/0.95/0.97/0.98/0.99,slope=0.004/0.008/0.012/0.016"
    ],
    "weights": [
        CONFIDENT + "metric=mean,power=0.1/1/2/4/8/16",
        CONFIDENT + "metric=tail/bottom-10/lowest-group,window=none/32,power=0.1/1/2/4/8/16",
    ],
    "weights by confidence and its gain": [
        CONFIDENT + "metric=mean,gain=0.25/0.5/1/2/4,power=0.1/1/2/4/8/16"
    ],
    "gate": [CONFIDENT + "power=0,keep=0.1/0.3/0.5/0.7/0.9,warmup=2/4/6,window=none/32"],
    "weights and gate": [
        CONFIDENT + "metric=mean/tail,power=1/4,keep=0.1/0.3/0.5/0.7/0.9,warmup=2/4"
    ],
}

Numbers = NDArray[np.float64]
Choose = Callable[[Numbers, Numbers, float], int]


def most_right(right: Numbers, tokens: Numbers, plain: float) -> int:
    """The most right; of equals, the one with the fewest tokens."""
    del plain
    return int(np.lexsort((tokens, -right))[0])


def fewest_tokens(right: Numbers, tokens: Numbers, plain: float) -> int:
    """The fewest tokens among those that are as right as plain settle."""
    return int(np.where(right >= plain - 1e-12, tokens, inf).argmin())


WAYS: dict[str, Choose] = {"most right": most_right, "fewest tokens": fewest_tokens}


@dataclass(frozen=True)
class Told:
    """What a policy, or a choice among several, came to on questions that did not choose.

    Attributes:
        name: The policy, or the option and the way it was chosen.
        right: Share of the verdicts that are right, shape (questions, repeats).
        tokens: The same of their tokens.
        path: The same of their critical paths.
        there: Accuracy less plain settle's on what chose; NaN where nothing was chosen.
        chosen: How often each candidate was.
    """

    name: str
    right: Numbers
    tokens: Numbers
    path: Numbers
    there: float
    chosen: Counter[str]


def reference(trials: Trials, number: int) -> Told:
    """A policy as it is."""
    right, tokens, path = (
        trials[one][number].astype(float) for one in ("correct", "tokens", "path")
    )
    name = trials.candidates[number].spec
    return Told(name, right, tokens, path, np.nan, Counter())


def choose(trials: Trials, name: str, among: Sequence[int], way: Choose) -> Told:
    """The choice of one half of the questions on the other, over all splits.

    The first of `among` is plain settle.
    """
    figures = {one: trials[one][list(among)].astype(float) for one in ("correct", "tokens", "path")}
    told = {one: np.zeros_like(values[0]) for one, values in figures.items()}
    there: list[float] = []
    chosen: Counter[str] = Counter()
    questions = len(trials.question_ids)
    for seed in range(SPLITS):
        half = halves(questions, seed=seed)
        for choosing in (half, ~half):
            right, tokens = (
                figures[one][:, choosing].mean((1, 2)) for one in ("correct", "tokens")
            )
            best = way(right, tokens, right[0])
            there.append(right[best] - right[0])
            chosen[trials.candidates[among[best]].spec] += 1
            for one, values in told.items():
                values[~choosing] += figures[one][best, ~choosing] / SPLITS
    return Told(name, told["correct"], told["tokens"], told["path"], float(np.mean(there)), chosen)


def choose_on_another(
    trials: Trials, other: Trials, name: str, among: Sequence[int], way: Choose
) -> Told:
    """The choice of all questions of another pool on those of this one."""
    right, tokens = (other[one][list(among)].mean((1, 2)) for one in ("correct", "tokens"))
    best = way(right, tokens, right[0])
    found = reference(trials, among[best])
    chosen = Counter({found.name: 1})
    there = float(right[best] - right[0])
    return Told(name, found.right, found.tokens, found.path, there, chosen)


class Against:
    """Others against one policy, on the same resamples."""

    def __init__(self, other: Told) -> None:
        self._other = other
        self._bootstrap = Bootstrap(*other.right.shape)

    def points(self, told: Told) -> str:
        """Accuracy less the other's, in points."""
        difference = told.right - self._other.right
        if not difference.any():
            return "none"
        (found,) = self._bootstrap.differences([difference])
        return f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"

    def tokens(self, told: Told) -> str:
        """Tokens as a part of the other's."""
        return self._ratio(told.tokens, self._other.tokens)

    def path(self, told: Told) -> str:
        """The critical path as a part of the other's."""
        return self._ratio(told.path, self._other.path)

    def _ratio(self, mine: Numbers, others: Numbers) -> str:
        above, below = self._bootstrap.means([mine, others])
        found = Estimate.of(mean_of(mine) / mean_of(others), above / below)
        return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def report(
    path: Path, trials: Trials, options: dict[str, list[int]], others: dict[Path, Trials]
) -> None:
    """Print the tables of one pool."""
    references = [reference(trials, number) for number in range(len(AS_THEY_ARE))]
    named = {told.name: told for told in references}
    told = [
        choose(trials, f"{option}: {name}", [0, *numbers], way)
        for option, numbers in options.items()
        for name, way in WAYS.items()
    ]
    elsewhere = [
        choose_on_another(trials, other, f"{option}: {name}", [0, *numbers], way)
        for other in others.values()
        for option, numbers in options.items()
        for name, way in WAYS.items()
    ]
    plain = Against(named[PLAIN])
    better = max((named["majority"], named["deepconf-low"]), key=lambda one: mean_of(one.right))
    low, best = Against(named["deepconf-low"]), Against(better)
    print(f"\n### {path.name}: {len(trials.question_ids)} questions\n")
    print("| policy | right | against settle, points | where chosen | tokens | path |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in [*references, *told]:
        print(row(one.name, one, plain))
    print(f"\n| policy | tokens of deepconf-low | against {better.name}, points |")
    print("| --- | --- | --- |")
    for one in [named[PLAIN], *told]:
        print(f"| {one.name} | {low.tokens(one)} | {best.points(one)} |")
    print(f"\n| option | chosen, of {2 * SPLITS} times |\n| --- | --- |")
    for one in told:
        common = ", ".join(f"`{spec}` {count}" for spec, count in one.chosen.most_common(3))
        print(f"| {one.name} | {common} |")

    if not elsewhere:
        return
    print(f"\nChosen on {', '.join(other.name for other in others)}:\n")
    print("| option | chosen | right | against settle, points | where chosen | tokens | path |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in elsewhere:
        print(row(f"{one.name} | `{next(iter(one.chosen))}`", one, plain))


def row(name: str, told: Told, plain: Against) -> str:
    """A line of a table."""
    there = "" if np.isnan(told.there) else f"{100 * told.there:+.2f}"
    cells = [name, f"{100 * mean_of(told.right):.1f}%", plain.points(told), there]
    return f"| {' | '.join([*cells, plain.tokens(told), plain.path(told)])} |"


def candidates(budget: int, slots: float) -> tuple[list[Candidate], dict[str, list[int]]]:
    """All candidates, those as they are first, and where those of each option are."""

    def parsed(specs: Sequence[str]) -> list[Candidate]:
        return parse(specs, budgets=[budget], concurrencies=[slots])

    found = parsed(AS_THEY_ARE)
    options: dict[str, list[int]] = {}
    for option, specs in OPTIONS.items():
        own = parsed(specs)
        options[option] = list(range(len(found), len(found) + len(own)))
        found += own
    return found, options


def main() -> None:
    """Read the command line, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--slots", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    compared, options = candidates(given.budget, given.slots)
    trials: dict[Path, Trials] = {}
    for path in given.pools:
        source = PoolTraces.open(path, only_graded=True)
        trials[path] = run_trials(
            source, compared, repeats=given.repeats, processes=given.processes
        )
        print(f"{path.name}: replayed", file=sys.stderr)
    for path, own in trials.items():
        others = {one: other for one, other in trials.items() if one != path}
        report(path, own, options, others)


if __name__ == "__main__":
    main()
