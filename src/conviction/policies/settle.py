"""Settling: stop when the lead is safe enough for what was spent, and start what may be needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

from conviction.core import FinishReason, Trace, require, require_whole
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Done,
    Policy,
    Standing,
    Start,
    check_budget,
    vote_of,
)
from conviction.voting import Ballot, fewest_votes, lead_probability

_LEAST = 2
"""Traces that have to end before anything is settled."""


@dataclass
class Settle(Policy):
    """Stop when the lead is safe enough for what was spent; keep running what may be needed.

    Adaptive-Consistency's probability that the leader stays ahead is held against a bar that
    falls with every trace that ends: an open question is given up rather than bought dearly.
    Traces without an answer count there, too. How many run at once follows the need: the fewest
    further votes for the leader that would settle it, times `ahead`.

    Attributes:
        budget: The most traces to start.
        bar: Probability of a safe lead that settles the verdict, before any trace has ended, in
            [0.5, 1).
        slope: By how much the bar falls with each trace that ends, at least 0. As no lead is less
            probable than 1/2, all is settled after (bar - 1/2) / slope traces.
        first: Traces to start with, at least 1; fewer where the engine runs fewer at once.
        ahead: Traces in flight per vote needed, at least 1: 1 starts nothing that may turn out
            needless, more ends sooner.
    """

    name: ClassVar[str] = "settle"

    budget: int = DEFAULT_BUDGET
    bar: float = 0.97
    slope: float = 0.008
    first: int = 6
    ahead: float = 3.0

    _ballot: Ballot = field(default_factory=Ballot, init=False, repr=False)
    _slots: int = field(default=1, init=False, repr=False)
    _started: int = field(default=0, init=False, repr=False)
    _ended: int = field(default=0, init=False, repr=False)
    _failed: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_budget(self.budget)
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

    def standing(self) -> Standing:
        """The votes so far."""
        return Standing(self._ballot.tally())

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

    def _count(self, trace: Trace) -> None:
        if answer := vote_of(trace):
            self._ballot.cast(trace.id, answer)

    def _settles(self, more: int) -> bool:
        """Whether it would be settled if so many more traces ended, all for the leader."""
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
    """Settling that gives up contested questions sooner."""

    name: ClassVar[str] = "settle-lean"

    slope: float = 0.012


@dataclass
class SettleExact(Settle):
    """Settling that comes closest to the whole budget's answers."""

    name: ClassVar[str] = "settle-exact"

    bar: float = 0.98
    slope: float = 0.006
