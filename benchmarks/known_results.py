"""What settling is known to do, found again on the recorded answers it was tuned on.

    python benchmarks/known_results.py FOLDER

FOLDER holds the 11 pools of recorded answers. The known figures come from the prototype of
settling: other code, other draws. Prints a Markdown table of means over the pools, budget 64 and 64
slots: accuracy against majority voting in points, tokens and path as parts of its own; known, found
here, and how far apart; then the same of two pools by themselves: majority voting's accuracy, and
what the Beta rule saves and starts.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
from many_pools import Results, draws, each_trials, mean_results, pools, results, row_of

from conviction.core import Trace
from conviction.lab.candidates import Candidate, parse
from conviction.lab.comparison import compare
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import mean_of
from conviction.lab.trials import Trials, draw
from conviction.policies import Action, AdaptiveConsistency, Done

BUDGET = 64
WITHIN_POINTS = 0.15
WITHIN_TOKENS = 0.03


@dataclass(frozen=True)
class Known:
    """What a policy was measured to do.

    Attributes:
        policy: Its name in the table.
        spec: The same on the command line; None for the oracle, which is no policy.
        difference: Accuracy less majority voting's, in points; NaN if not known.
        tokens: As a part of majority voting's.
        path: The same; NaN if not known.
    """

    policy: str
    spec: str | None
    difference: float
    tokens: float
    path: float

    def agrees(self, difference: float, tokens: float) -> bool:
        """Whether found figures are as near as other code and other draws should come."""
        near = isnan(self.difference) or abs(difference - self.difference) <= WITHIN_POINTS
        return near and abs(tokens / self.tokens - 1) <= WITHIN_TOKENS


@dataclass
class AskedWithinWaves(AdaptiveConsistency):
    """The Beta rule in waves, asked after every trace: what the prototype's waves did."""

    name: ClassVar[str] = "asked-within-waves"

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Settle before the wave has ended, where the votes so far allow it."""
        actions = super().on_finished(trace)
        return [Done("settled")] if self._settled() else actions


KNOWN = [
    Known("Beta .95, one after another", "adaptive-consistency", 0.01, 0.285, 9.2),
    Known("Beta .95, by need", "settle:bar=0.95,slope=0,first=4,ahead=1", 0.00, 0.285, 2.6),
    Known("Beta .95, waves of 16", "adaptive-consistency:wave=16", -0.21, 0.345, 0.86),
    Known("the same, asked after every trace", "asked-within-waves:wave=16", -0.21, 0.345, 0.86),
    Known("ESC 4", "esc", -0.01, 0.397, 4.1),
    Known("settle-lean", "settle-lean", -0.38, 0.160, 0.77),
    Known("settle", "settle", -0.19, 0.201, 0.89),
    Known("settle-exact", "settle-exact", -0.10, 0.220, nan),
    Known("oracle", None, nan, 0.103, nan),
    Known("the same, leading with others is enough", None, nan, 0.103, nan),
]


KNOWN_POOLS = {
    "aime2025_gpt-oss-20b": (0.890, 0.66, 13.3),
    "aime2024_Qwen3-4B": (0.800, 0.77, 10.6),
}
"""Majority voting's accuracy, and what the Beta rule saves and starts, measured elsewhere."""


def leaders(answers: Sequence[str | None]) -> Iterator[list[str]]:
    """The answers with most votes after each trace, the one seen first at the front."""
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
        most = max(votes.values(), default=0)
        yield [one for one, count in votes.items() if count == most]


def settled_after(answers: Sequence[str | None]) -> tuple[int, int]:
    """Traces after which the final leader leads and stays; and leads, if with others."""
    led = list(leaders(answers))
    final = led[-1][:1]
    alone = shared = len(led)
    while alone > 1 and led[alone - 2][:1] == final:
        alone -= 1
    while shared > 1 and set(final) <= set(led[shared - 2]):
        shared -= 1
    return alone, shared


def oracle_tokens(source: PoolTraces, repeats: int) -> tuple[float, float]:
    """Tokens of runs that end after `settled_after` traces, as parts of majority's."""
    taken: list[tuple[int, int, int]] = []
    for question in source.question_ids:
        traces = source.traces(question)
        for repeat in range(repeats):
            order = draw(len(traces), BUDGET, seed=0, question_id=question, repeat=repeat)
            drawn = [traces[place] for place in order.tolist()]
            lengths = np.cumsum([trace.tokens for trace in drawn]).tolist()
            alone, shared = settled_after([_vote(trace) for trace in drawn])
            taken.append((lengths[alone - 1], lengths[shared - 1], lengths[-1]))
    alone, shared, whole = (mean_of(column) for column in zip(*taken, strict=True))
    return alone / whole, shared / whole


def _vote(trace: PlayedTrace) -> str | None:
    return trace.answer.key if trace.answer and trace.finish == "stop" else None


def candidate(spec: str) -> Candidate:
    """The policy of a line; the one that is only here, too."""
    name, _, wave = spec.partition(":wave=")
    if name == AskedWithinWaves.name:
        return Candidate(AskedWithinWaves(budget=BUDGET, wave=int(wave)), BUDGET, BUDGET)
    return parse([spec], budgets=[BUDGET], concurrencies=[BUDGET])[0]


def line(known: Known, difference: float, tokens: float, path: float) -> str:
    """A row of the table."""

    def cells(was: float, found: float, form: str) -> list[str]:
        return ["" if isnan(one) else form.format(one) for one in (was, found)]

    points = cells(known.difference, difference, "{:+.2f}")
    gap = difference - known.difference
    parts = [
        *points,
        "" if isnan(gap) else f"{gap:+.2f}",
        *cells(known.tokens, tokens, "{:.3f}"),
        f"{tokens / known.tokens - 1:+.1%}",
        *cells(known.path, path, "{:.2f}"),
        "yes" if known.agrees(difference, tokens) else "no",
    ]
    return f"| {' | '.join([known.policy, *parts])} |"


def pool_line(name: str, known: tuple[float, float, float], trials: Trials) -> str:
    """A row of the table of single pools."""
    rows = {row.candidate.spec: row for row in compare(trials)}
    rule = rows["adaptive-consistency"]
    found = (rows["majority"].accuracy.value, rule.saving.value, rule.started)
    cells = zip(("{:.3f}", "{:.2f}", "{:.1f}"), known, found, strict=True)
    pairs = (f"{form.format(was)} | {form.format(now)}" for form, was, now in cells)
    return f"| {' | '.join([name, *pairs])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=8000, help="of a policy on a pool, about")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    candidates = [
        *parse(["majority"], budgets=[BUDGET], concurrencies=[BUDGET]),
        *(candidate(known.spec) for known in KNOWN if known.spec),
    ]
    with tempfile.TemporaryDirectory() as made:
        sources = pools(given.folder, Path(made))
        oracles = iter(
            np.mean([oracle_tokens(one, draws(one, given.runs)) for _, one in sources], axis=0)
        )
        told = each_trials(sources, candidates, runs=given.runs, processes=given.processes)
        each: list[Results] = []
        pool_lines: list[str] = []
        for name, trials, seed in told:
            each.append(results(trials, seed))
            if known := KNOWN_POOLS.get(name):
                pool_lines.append(pool_line(name, known, trials))
        found = mean_results(each)
    print("| policy | points, known | found | apart | tokens, known | found | apart ", end="")
    print("| path, known | found | within 0.15 points and 3% of tokens |")
    print(f"|{' --- |' * 10}")
    for known in KNOWN:
        if known.spec is None:
            print(line(known, nan, float(next(oracles)), nan))
            continue
        one = found[row_of(candidate(known.spec))]
        print(line(known, one.difference, one.tokens, one.path[BUDGET]))
    print("\n| pool | accuracy, known | found | saved, known | found | traces, known | found |")
    print("\n".join([f"|{' --- |' * 7}", *pool_lines]))


if __name__ == "__main__":
    main()
