"""Settling: stop when the lead is safe enough for what was spent, and start what may be needed.

`SettleConfident` weighs votes by confidence and stops weak traces; `SettleRegenerate` asks which
answer comes again where the vote stays contested.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from math import ceil, isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric
from conviction.core import FinishReason, Tally, Trace, require, require_whole
from conviction.errors import InvalidSettingError
from conviction.gate import Gate
from conviction.policies.base import (
    Action,
    Conditions,
    Continue,
    Done,
    Forget,
    PlainVote,
    Standing,
    Start,
    Stop,
    vote_of,
)
from conviction.policies.measures import check_metric, check_window, fitting_window, gain, score
from conviction.voting import Ballot, fewest_votes, lead_probability, threshold_for

_LEAST = 2
"""Traces that have to end before anything is settled."""


@dataclass
class Settle(PlainVote):
    """Stop when the lead is safe enough for what was spent; keep running what may be needed.

    Adaptive-Consistency's probability that the leader stays ahead is held against a bar that
    falls with every trace that ends, also without an answer. How many run at once follows the
    need: the fewest further votes for the leader that would settle it, times `ahead`.

    Attributes:
        bar: Probability of a safe lead that settles the verdict, before any trace has ended, in
            [0.5, 1).
        slope: By how much the bar falls with each trace that ends, at least 0. As no lead is less
            probable than 1/2, all is settled after (bar - 1/2) / slope traces.
        first: Traces to start with, at least 1; fewer where the engine runs fewer at once.
        ahead: Traces in flight per vote needed, at least 1: 1 starts nothing that may turn out
            needless, more ends sooner.
    """

    name: ClassVar[str] = "settle"

    bar: float = 0.97
    slope: float = 0.008
    first: int = 6
    ahead: float = 3.0

    _slots: int = field(default=1, init=False, repr=False)
    _started: int = field(default=0, init=False, repr=False)
    _ended: int = field(default=0, init=False, repr=False)
    _failed: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require("bar", self.bar, low=0.5, high=1.0 - 1e-9)
        require("slope", self.slope, low=0.0, high=1.0)
        require_whole("first", self.first, low=1)
        require("ahead", self.ahead, low=1.0, high=1e6)

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start the first traces."""
        self._slots = max(conditions.concurrency, 1)
        return self._keep_in_flight(self.first)

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Count it; settle, or see to it that enough is in flight."""
        if trace.finish is FinishReason.ERROR:
            # It says nothing about the question, so that it lowers no bar.
            self._failed += 1
        else:
            self._ended += 1
        self._count(trace)
        if self._ended >= _LEAST and self._settles(0):
            return [Done("settled")]
        return self._keep_in_flight(ceil(self.ahead * self.need))

    @property
    def need(self) -> int:
        """The fewest further votes for the leader that would settle it, as far as it can start."""
        return fewest_votes(self._settles, self._most - self._ended - self._failed)

    @property
    def _most(self) -> int:
        """The most traces of its own; a subclass may keep some of the budget."""
        return self.budget

    @property
    def _running(self) -> int:
        return self._started - self._ended - self._failed

    def _settles(self, more: int) -> bool:
        """Whether `more` traces, all for the leader, would settle it."""
        leader, runner_up = self._ballot.front_runners
        bar = self.bar - self.slope * (self._ended + more)
        return lead_probability(leader + more, runner_up) > bar

    def _keep_in_flight(self, wanted: int) -> Sequence[Start]:
        count = min(min(wanted, self._slots) - self._running, self._most - self._started)
        if count < 1:
            return []
        self._started += count
        return [Start(count)]


@dataclass
class SettleLean(Settle):
    """Settling that gives up on contested questions sooner."""

    name: ClassVar[str] = "settle-lean"

    slope: float = 0.012


@dataclass
class SettleExact(Settle):
    """Settling that comes closest to the whole budget's answers."""

    name: ClassVar[str] = "settle-exact"

    bar: float = 0.98
    slope: float = 0.006


@dataclass
class SettleConfident(Settle):
    """Settling by votes that weigh their traces' confidence; `keep` also stops weak traces.

    The lead is that of the weights, divided by their mean: n votes count n in all, and a vote of
    unknown confidence counts 1. A trace that is stopped counts as ended, and for no answer.

    Sources: the gate, DeepConf, arXiv 2508.15260; the gain, confidence dynamics, arXiv 2605.25244.

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group, of the metric and of the gate; None fits it to the traces of the
            warm-up.
        power: Votes weigh their confidence to this power, at least 0; 0 weighs them all the same.
        gain: By how much of its gain, last tenth less first, a trace's confidence is raised, at
            least 0.
        keep: Share of the warm-up's traces that would pass the gate, in (0, 1]; None for no gate.
        warmup: Complete traces before the gate is set, at least 1; what runs by then has none.
    """

    name: ClassVar[str] = "settle-confident"
    needs_confidence: ClassVar[bool] = True

    metric: Metric = Metric.MEAN
    window: int | None = None
    power: float = 1.0
    gain: float = 0.0
    keep: float | None = None
    warmup: int = 4

    _voters: list[Trace] = field(default_factory=list[Trace], init=False, repr=False)
    _warm: list[Trace] = field(default_factory=list[Trace], init=False, repr=False)
    _gate: Gate | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metric = check_metric(self.metric)
        check_window(self.window)
        require("power", self.power, low=0.0, high=100.0)
        require("gain", self.gain, low=0.0, high=100.0)
        if self.keep is not None:
            require("keep", self.keep, low=1e-9, high=1.0)
        require_whole("warmup", self.warmup, low=1)

    def standing(self) -> Standing:
        """The weighted votes so far."""
        threshold = self._gate.threshold if self._gate else None
        notes = ()
        if self._voters and not np.isfinite(self._confidences()).any():
            notes = ("No vote had a known confidence, so all weigh the same.",)
        return Standing(self._ballot.tally(), threshold, self._fitted, notes)

    def _count(self, trace: Trace) -> None:
        if trace.complete and len(self._warm) < self.warmup:
            self._warm.append(trace)
            if len(self._warm) == self.warmup:
                self._set_gate()
        if vote_of(trace):
            self._voters.append(trace)
        # Each vote changes the mean, and so what all of them weigh.
        weights = vote_weights(self._confidences(), self.power).tolist()
        self._ballot = Ballot()
        for voter, weight in zip(self._voters, weights, strict=True):
            if voter.answer:
                self._ballot.cast(voter.id, voter.answer, weight)

    def _set_gate(self) -> None:
        if self.keep is None:
            return
        scores = [score(trace, Metric.LOWEST_GROUP, self._fitted) for trace in self._warm]
        threshold = threshold_for(np.array(scores), self.keep)
        if isfinite(threshold):
            self._gate = Gate(self._fitted, threshold)

    def _keep_in_flight(self, wanted: int) -> Sequence[Start]:
        return [Start(start.count, self._gate) for start in super()._keep_in_flight(wanted)]

    def _confidences(self) -> NDArray[np.float64]:
        """Of the votes, shape (votes,); NaN where unknown."""
        window = self._fitted
        measured = np.array([score(voter, self.metric, window) for voter in self._voters])
        if self.gain:
            measured += self.gain * np.array([gain(voter) for voter in self._voters])
        return measured

    @property
    def _fitted(self) -> int:
        return self.window or fitting_window(self._warm)


def vote_weights(confidences: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """Weights of votes: powers of their confidences, scaled to a mean of 1; both shape (votes,).

    Negative confidences count as 0, and those that are not finite weigh 1. Where none is positive,
    all votes weigh the same.
    """
    weights = np.ones(confidences.size)
    known = np.isfinite(confidences)
    largest = confidences[known].max(initial=0.0)
    if largest > 0:
        # As parts of the largest, no power overflows, and equal confidences weigh exactly 1.
        powers = (np.maximum(confidences[known], 0.0) / largest) ** power
        weights[known] = powers / powers.mean()
    return weights


@dataclass
class SettleRegenerate(Settle):
    """Settling that regenerates the ends of traces where the vote stays contested.

    It settles like `settle`, with as many traces fewer as it may regenerate. If the leader's lead
    is not safe then, traces that voted for the two front-runners are continued in turns, and a vote
    weighs how often its answer came again: (again + 1) / (tried + 2). Other answers weigh like the
    front-runner that came again less often: none wins untried.

    It needs an engine that continues a given beginning, and recordings cannot replay it.

    Source: after prefix consistency, arXiv 2605.07654.

    Attributes:
        regenerate: Continuations, at least 1, and fewer than the budget that holds them, too.
        keep: Share of a trace that is kept, in (0, 1).
        safe: Probability of a safe lead from which on nothing is regenerated, in [0.5, 1].
    """

    name: ClassVar[str] = "settle-regenerate"
    needs_continuation: ClassVar[bool] = True

    regenerate: int = 4
    keep: float = 0.75
    safe: float = 0.95

    _answers: dict[int, str] = field(default_factory=dict[int, str], init=False, repr=False)
    _awaited: int = field(default=0, init=False, repr=False)
    _tried: Counter[str] = field(default_factory=Counter[str], init=False, repr=False)
    _again: Counter[str] = field(default_factory=Counter[str], init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("regenerate", self.regenerate, low=1)
        require("keep", self.keep, low=1e-9, high=1.0 - 1e-9)
        require("safe", self.safe, low=0.5, high=1.0)
        if self.regenerate >= self.budget:
            raise InvalidSettingError(
                tried=f"regenerate {self.regenerate} traces with a budget of {self.budget}",
                found="nothing is left for traces to begin with",
                remedy="Raise the budget, or regenerate fewer.",
            )

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Settle; or, when that is over, count what came again."""
        if trace.continues is not None:
            return self._compare(trace, trace.continues)
        if self._answers:
            # It ended while ends are regenerated: its vote counts, and nothing else follows.
            self._count(trace)
            return []
        actions = super().on_finished(trace)
        over = any(isinstance(action, Done) for action in actions) or not self._running
        return (over and self._contest()) or actions

    def standing(self) -> Standing:
        """The votes so far, weighed by how often their answers came again."""
        tally = self._ballot.tally()
        if not self._tried:
            return Standing(tally)
        rates = {key: self._rate(key) for key in self._answers.values()}
        least = min(rates.values())
        weighed = (
            replace(entry, weight=entry.count * rates.get(entry.key, least))
            for entry in tally.entries
        )
        # Sorting keeps the order of equals: the answer that was seen first.
        ranked = sorted(weighed, key=lambda entry: (entry.weight, entry.count), reverse=True)
        return Standing(Tally(tuple(ranked)), notes=(self._note(tally),))

    @property
    def need(self) -> int:
        """Votes, or continuations, that would settle it."""
        return self._awaited or super().need

    @property
    def _most(self) -> int:
        return self.budget - self.regenerate

    def _contest(self) -> Sequence[Action]:
        """Regenerate ends of what the two front-runners' traces wrote; nothing if one is safe."""
        front = self._ballot.tally().entries[:2]
        if len(front) < 2 or lead_probability(front[0].count, front[1].count) >= self.safe:
            return []
        self._answers = {vote: entry.key for entry in front for vote in entry.votes}
        self._awaited = self.regenerate
        votes = [cycle(entry.votes) for entry in front]
        chosen = (next(votes[number % 2]) for number in range(self.regenerate))
        running = tuple(range(self._started))
        return [Forget(), Stop(running), *(Continue(vote, self.keep) for vote in chosen)]

    def _compare(self, trace: Trace, source: int) -> Sequence[Action]:
        self._awaited -= 1
        if trace.complete:
            key = self._answers[source]
            self._tried[key] += 1
            came = trace.answer if trace.finish is FinishReason.STOP else None
            self._again[key] += came is not None and came.key == key
        return [] if self._awaited else [Done("contested")]

    def _rate(self, key: str) -> float:
        """How often an answer came again, as if two more had been tried and one had."""
        return (self._again[key] + 1) / (self._tried[key] + 2)

    def _note(self, tally: Tally) -> str:
        texts = {entry.key: entry.text for entry in tally.entries}
        found = ", ".join(
            f"{texts[key]} came again in {self._again[key]} of {tried}"
            for key, tried in self._tried.items()
        )
        return f"The vote was contested, so ends of traces were regenerated: {found}."
