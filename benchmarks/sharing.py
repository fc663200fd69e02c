"""A total of tokens shared by a data set, against the same total split evenly.

    python benchmarks/sharing.py FOLDER
    python benchmarks/sharing.py examples/*.parquet --budget 16 --policy settle --totals 0.1 0.2
    python benchmarks/sharing.py FOLDER --policy adaptive-consistency --strictly

The arguments are pools, or folders of pools or of recorded answers as JSON lines. Every question
gets as many recorded traces in random order as the budget. Totals are parts of what majority voting
takes with the whole budget. Prints a Markdown table per policy, of means over the pools: accuracy
and questions settled with the total shared by `conviction.sharing`; and the difference of the
accuracy in points, with a 95% interval over draws and questions, to the same total split evenly
over the questions, and to an even split of so much more that as many tokens are spent.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
from many_pools import pools

from conviction.core import FinishReason, Trace
from conviction.lab.candidates import parse
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import PoolTraces
from conviction.policies.base import Conditions, Done, Policy, Start
from conviction.sharing import Place, Slots

Questions = Sequence[Sequence[PlayedTrace]]
"""Recorded traces by question."""

NOTHING = np.empty(0, np.float32)


@dataclass(eq=False)
class Asked:
    """A question while it is played."""

    policy: Policy
    traces: Sequence[PlayedTrace]
    place: Place
    queue: list[Start] = field(default_factory=list)
    started: int = 0
    settled: bool = False
    running: dict[int, float] = field(default_factory=dict)

    def act(self, actions: Sequence[object]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.queue += [Start(1, action.gate)] * action.count
            elif isinstance(action, Done):
                self.settled = True
                self.queue.clear()

    def line_up(self) -> None:
        self.place.want(len(self.queue), self.policy.need)

    @property
    def correct(self) -> bool:
        leader = self.policy.standing().tally.leader
        return leader is not None and self.traces[leader.votes[0]].correct


class Table:
    """Plays questions on a clock that counts tokens: every running trace gains one a tick."""

    def __init__(self, policy: Policy, questions: Questions, slots: Slots, at: Conditions) -> None:
        self.slots, self.at, self.now, self.begun = slots, at, 0.0, 0
        self.ends: list[tuple[float, int, int, int]] = []
        self.asked = [Asked(policy.fresh(), traces, slots.place()) for traces in questions]

    def play(self) -> int:
        """Play to the end; the tokens spent."""
        for number, one in enumerate(self.asked):
            one.place.begin = lambda number=number: self.begin(number)
            one.place.end = one.queue.clear
            one.act(one.policy.begin(self.at))
        for one in self.asked:
            one.line_up()
        while self.ends and not self.slots.over:
            end, _, number, trace = heappop(self.ends)
            if trace in self.asked[number].running:
                self.tick(end)
                if not self.slots.over:
                    self.conclude(self.asked[number], trace)
        return self.slots.spent

    def begin(self, number: int) -> None:
        one = self.asked[number]
        trace, gate = one.started, one.queue.pop(0).gate
        recorded = one.traces[trace]
        stop = recorded.stop_position(gate) if gate else None
        one.started += 1
        one.running[trace] = self.now
        length = recorded.tokens if stop is None else stop
        self.begun += 1
        heappush(self.ends, (self.now + length, self.begun, number, trace))

    def tick(self, until: float) -> None:
        """Count the tokens of all running traces up to then, or to where the total ends."""
        elapsed = until - self.now
        if self.slots.total is None:
            self.now = until
            return
        left = max(0, self.slots.total - self.slots.spent)
        elapsed = min(elapsed, left // max(self.slots.running, 1) + 1)
        self.now += elapsed
        for one in self.asked:
            if one.place.running and not self.slots.over:
                one.place.generated(int(elapsed) * one.place.running)

    def conclude(self, one: Asked, trace: int) -> None:
        recorded = one.traces[trace]
        tokens = int(self.now - one.running.pop(trace))
        whole = tokens == recorded.tokens
        confidences = NOTHING if recorded.confidences is None else recorded.confidences
        ended = Trace(
            id=trace,
            finish=recorded.finish if whole else FinishReason.LOW_CONFIDENCE,
            tokens=tokens,
            confidences=confidences[:tokens],
            answer=recorded.answer if whole else None,
        )
        one.act(one.policy.on_finished(ended))
        one.place.ended(ended)
        if not one.settled:
            one.line_up()
            return
        if self.slots.total is None:
            self.slots.spent += sum(int(self.now - began) for began in one.running.values())
        one.running.clear()
        with one.place:
            pass


@dataclass(frozen=True)
class Played:
    """What came of the questions, in their order."""

    right: list[bool]
    settled: list[bool]
    spent: int


def shared(policy: Policy, questions: Questions, total: int | None, at: Conditions) -> Played:
    """All questions share the total."""
    table = Table(policy, questions, Slots(at.concurrency, total=total, longest=at.max_tokens), at)
    spent = table.play()
    return Played([one.correct for one in table.asked], [one.settled for one in table.asked], spent)


def split(policy: Policy, questions: Questions, total: int, at: Conditions) -> Played:
    """Every question by itself, with one slot and an even part of the total."""
    part = max(1, total // len(questions))
    each = []
    for traces in questions:
        table = Table(policy, [traces], Slots(1, total=part, longest=at.max_tokens), at)
        spent = table.play()
        each.append((table.asked[0].correct, table.asked[0].settled, spent))
    right, settled, tokens = zip(*each, strict=True)
    return Played(list(right), list(settled), sum(tokens))


def split_spending(policy: Policy, questions: Questions, spent: int, at: Conditions) -> Played:
    """The same with even parts so large that as much is spent, as nearly as eight steps come."""
    low, high = spent, 8 * spent
    for _ in range(8):
        middle = (low + high) // 2
        if split(policy, questions, middle, at).spent > spent:
            high = middle
        else:
            low = middle
    return split(policy, questions, low, at)


def draws(source: PoolTraces, budget: int, repeats: int, seed: int) -> list[Questions]:
    """Traces of every question in an order of their own, as many as the budget."""
    random = np.random.default_rng(seed)
    recorded = [source.traces(question) for question in source.question_ids]
    if (fewest := min(map(len, recorded))) < budget:
        raise SystemExit(f"A question has {fewest} traces: give --budget {fewest} or less.")
    return [
        [[traces[i] for i in random.permutation(len(traces))[:budget]] for traces in recorded]
        for _ in range(repeats)
    ]


@dataclass
class Row:
    """What one policy came to at one total on one pool, by way of giving out the total.

    Attributes:
        right: Which questions were right, shape (repeats, questions).
        settled: Part of the questions that were settled.
        spent: Tokens, as a part of what majority voting takes.
    """

    right: dict[str, np.ndarray]
    settled: dict[str, float]
    spent: dict[str, float]


def measure(
    source: PoolTraces, policy: Policy, options: argparse.Namespace
) -> dict[float | None, Row]:
    """Rows by total; None stands for no total."""
    drawn = draws(source, policy.budget, options.repeats, options.seed)
    longest = max(trace.tokens for one in drawn for traces in one for trace in traces)
    at = Conditions(options.slots, longest, source.top_k)
    whole = float(np.mean([sum(t.tokens for ts in one for t in ts) for one in drawn]))

    def row(**ways: list[Played]) -> Row:
        return Row(
            {way: np.array([one.right for one in runs], float) for way, runs in ways.items()},
            {way: float(np.mean([one.settled for one in runs])) for way, runs in ways.items()},
            {
                way: float(np.mean([one.spent for one in runs])) / whole
                for way, runs in ways.items()
            },
        )

    free = [shared(policy, questions, None, at) for questions in drawn]
    rows: dict[float | None, Row] = {None: row(shared=free)}
    for part in options.totals:
        total = round(part * whole)
        ours = [shared(policy, questions, total, at) for questions in drawn]
        rows[part] = row(
            shared=ours,
            split=[split(policy, questions, total, at) for questions in drawn],
            spending=[
                split_spending(policy, questions, one.spent, at)
                for questions, one in zip(drawn, ours, strict=True)
            ],
        )
    return rows


def resampled(difference: np.ndarray, seed: int) -> np.ndarray:
    """1,000 resampled means of differences of shape (repeats, questions), over both."""
    random = np.random.default_rng(seed)
    repeats, questions = difference.shape
    return np.array(
        [
            difference[random.integers(repeats, size=repeats)][
                :, random.integers(questions, size=questions)
            ].mean()
            for _ in range(1_000)
        ]
    )


def print_table(rows: list[dict[float | None, Row]], seed: int) -> None:
    """Means over pools, each counting the same."""
    print("| total | shared | against an even split | against one that spends as much |")
    print("| --- | --- | --- | --- |")
    for part in rows[0]:
        found = [one[part] for one in rows]
        accuracy = 100 * np.mean([one.right["shared"].mean() for one in found])
        settled = 100 * np.mean([one.settled["shared"] for one in found])
        spent = np.mean([one.spent["shared"] for one in found])
        cells = [f"{accuracy:.1f} % right, {settled:.0f} % settled, {spent:.3f} spent"]
        cells += [_difference(found, way, seed) for way in ("split", "spending")]
        print(f"| {'none' if part is None else f'{part:g}'} | {' | '.join(cells)} |", flush=True)


def _difference(rows: list[Row], way: str, seed: int) -> str:
    if way not in rows[0].right:
        return ""
    points = [100 * (one.right["shared"] - one.right[way]) for one in rows]
    means = np.mean([resampled(one, seed) for one in points], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    difference = np.mean([one.mean() for one in points])
    spent = np.mean([one.spent[way] for one in rows])
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}], {spent:.3f} spent"


def _strictly(place: Place) -> tuple[bool, int, int]:
    need = place.begun if place.need is None else place.need
    return place.further, need if place.further else place.begun, place.number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--policy", action="append")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--totals", type=float, nargs="+", default=[0.03, 0.06, 0.1, 0.15, 0.2])
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--strictly", action="store_true", help="nearest first, however long others have waited"
    )
    options = parser.parse_args()
    if options.strictly:
        Place.turn = property(_strictly)  # type: ignore[assignment]
    found = [
        pool
        for path in options.pools
        for pool in (pools(path) if path.is_dir() else [(path.stem, PoolTraces.open(path))])
    ]
    for spec in options.policy or ["settle", "majority"]:
        [candidate] = parse([spec], budgets=[options.budget])
        print(f"\n{candidate.label}, {options.slots} slots, {len(found)} pools\n")
        rows = [measure(source, candidate.policy, options) for _, source in found]
        print_table(rows, options.seed)


if __name__ == "__main__":
    main()
