"""A total of tokens shared by a data set, against the same total split evenly.

    python benchmarks/sharing.py examples/*.parquet
    python benchmarks/sharing.py FOLDER --policy settle --budget 64 --totals 0.05 0.1 0.2

The arguments are pools, or a folder of pools or of recorded answers as JSON lines. Every question
gets as many draws of recorded traces as its pool allows up to the budget; the slots are as many as
questions. Totals are parts of what majority voting takes with the whole budget. Prints a Markdown
table per pool and one of means: accuracy in percent with the total shared by `conviction.sharing`,
its difference to the same total split evenly over the questions, in points with a 95% interval
over draws and questions, and what the policy spends and reaches without a total.
"""

import argparse
import tempfile
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

NOTHING = np.empty(0, np.float32)


@dataclass(eq=False)
class Asked:
    """A question while it is played."""

    policy: Policy
    traces: Sequence[PlayedTrace]
    place: Place
    queue: list[Start] = field(default_factory=list)
    started: int = 0
    ended: bool = False
    running: dict[int, float] = field(default_factory=dict)

    def act(self, actions: Sequence[object]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.queue += [Start(1, action.gate)] * action.count
            elif isinstance(action, Done):
                self.end()

    def end(self) -> None:
        self.ended = True
        self.queue.clear()

    @property
    def correct(self) -> bool:
        leader = self.policy.standing().tally.leader
        return leader is not None and self.traces[leader.votes[0]].correct


class Table:
    """Plays questions on a clock that counts tokens: every running trace gains one a tick."""

    def __init__(
        self,
        policy: Policy,
        questions: Sequence[Sequence[PlayedTrace]],
        slots: Slots,
        conditions: Conditions,
    ) -> None:
        self.slots, self.now, self.begun = slots, 0.0, 0
        self.ends: list[tuple[float, int, int, int]] = []
        self.asked = [Asked(policy.fresh(), traces, slots.place()) for traces in questions]
        self.conditions = conditions

    def play(self) -> int:
        """Play to the end; the tokens spent."""
        for number, one in enumerate(self.asked):
            one.place.begin = lambda number=number: self.begin(number)
            one.place.end = one.end
            one.act(one.policy.begin(self.conditions))
        for one in self.asked:
            self.line_up(one)
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
        total = self.slots.total
        if total is None:
            self.now = until
            return
        elapsed = until - self.now
        if self.slots.running:
            elapsed = min(elapsed, max(0, total - self.slots.spent) // self.slots.running + 1)
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
        if not one.ended:
            self.line_up(one)
            return
        if self.slots.total is None:
            self.slots.spent += sum(int(self.now - began) for began in one.running.values())
        one.running.clear()
        with one.place:
            pass

    def line_up(self, one: Asked) -> None:
        one.place.want(len(one.queue), one.policy.need)


def shared(
    policy: Policy, questions: Sequence[Sequence[PlayedTrace]], total: int | None, top_k: int
) -> tuple[np.ndarray, int]:
    """Which questions are right, and the tokens spent."""
    conditions = Conditions(len(questions), _longest(questions), top_k)
    slots = Slots(len(questions), total=total, longest=conditions.max_tokens)
    table = Table(policy, questions, slots, conditions)
    spent = table.play()
    return np.array([one.correct for one in table.asked]), spent


def split(
    policy: Policy, questions: Sequence[Sequence[PlayedTrace]], total: int, top_k: int
) -> tuple[np.ndarray, int]:
    """The same, every question by itself with one slot and an even part of the total."""
    part = max(1, total // len(questions))
    spent, right = 0, []
    # The policy is told the same as where all share.
    conditions = Conditions(len(questions), _longest(questions), top_k)
    for traces in questions:
        slots = Slots(1, total=part, longest=conditions.max_tokens)
        table = Table(policy, [traces], slots, conditions)
        spent += table.play()
        right.append(table.asked[0].correct)
    return np.array(right), spent


def _longest(questions: Sequence[Sequence[PlayedTrace]]) -> int:
    return max(trace.tokens for traces in questions for trace in traces)


def draws(
    source: PoolTraces, budget: int, repeats: int, seed: int
) -> list[list[list[PlayedTrace]]]:
    random = np.random.default_rng(seed)
    recorded = [source.traces(question) for question in source.question_ids]
    return [
        [
            [traces[i] for i in random.permutation(len(traces))[: min(budget, len(traces))]]
            for traces in recorded
        ]
        for _ in range(repeats)
    ]


@dataclass
class Row:
    """One policy at one total on one pool: rights of shape (repeats, questions)."""

    shared: np.ndarray
    split: np.ndarray
    spent_shared: float
    spent_split: float


def measure(
    source: PoolTraces, policy: Policy, totals: Sequence[float], repeats: int, seed: int
) -> tuple[dict[float, Row], float, float]:
    """Rows by total; accuracy and part of majority's tokens without a total."""
    played = draws(source, policy.budget, repeats, seed)
    whole = np.mean([sum(t.tokens for ts in one for t in ts) for one in played])
    rows: dict[float, Row] = {}
    for part in totals:
        total = round(part * whole)
        ours = [shared(policy, one, total, source.top_k) for one in played]
        even = [split(policy, one, total, source.top_k) for one in played]
        rows[part] = Row(
            np.array([right for right, _ in ours]),
            np.array([right for right, _ in even]),
            float(np.mean([spent for _, spent in ours]) / whole),
            float(np.mean([spent for _, spent in even]) / whole),
        )
    free = [shared(policy, one, None, source.top_k) for one in played]
    accuracy = 100 * float(np.mean([right for right, _ in free]))
    return rows, accuracy, float(np.mean([spent for _, spent in free]) / whole)


def interval(difference: np.ndarray, seed: int) -> np.ndarray:
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


def _show(value: float, resampled: np.ndarray) -> str:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--policy", action="append")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--totals", type=float, nargs="+", default=[0.03, 0.06, 0.1, 0.15, 0.2])
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        found = [
            pool
            for path in options.pools
            for pool in (
                pools(path, Path(made)) if path.is_dir() else [(path.stem, PoolTraces.open(path))]
            )
        ]
        for spec in options.policy or ["settle", "majority"]:
            [candidate] = parse([spec], budgets=[options.budget])
            table(found, candidate.policy, options)


def table(found: list[tuple[str, PoolTraces]], policy: Policy, options: argparse.Namespace) -> None:
    print(f"\n{policy.name}, budget {policy.budget}\n")
    print("| pool | without a total: accuracy, tokens | ", end="")
    print(" | ".join(f"total {part:g}" for part in options.totals), "|")
    print(f"| --- {'| --- ' * (len(options.totals) + 1)}|")
    values: dict[float, list[tuple[float, float, np.ndarray]]] = {}
    for name, source in found:
        rows, accuracy, tokens = measure(
            source, policy, options.totals, options.repeats, options.seed
        )
        cells = [f"{accuracy:.1f}, {tokens:.3f}"]
        for part, row in rows.items():
            mean = 100 * float(row.shared.mean())
            difference = 100.0 * (row.shared.astype(float) - row.split)
            resampled = interval(difference, options.seed)
            values.setdefault(part, []).append((mean, float(difference.mean()), resampled))
            cells.append(
                f"{mean:.1f}, {_show(float(difference.mean()), resampled)}; "
                f"{row.spent_shared:.3f}, {row.spent_split:.3f}"
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    means = [
        f"{np.mean([one[0] for one in rows]):.1f}, "
        + _show(float(np.mean([one[1] for one in rows])), np.mean([one[2] for one in rows], axis=0))
        for rows in values.values()
    ]
    print(f"| mean | | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
