"""DeepConf online (Algorithm 2): weak traces are stopped as they grow, consensus ends the run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from conviction.confidence import Metric
from conviction.core import InvalidSettingError, Trace, require, require_whole
from conviction.gate import Gate
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Done,
    Policy,
    Standing,
    Start,
    vote_of,
)
from conviction.policies.measures import PAPER_WINDOW, check_window, fitting_window, score
from conviction.voting import Ballot, fewest_votes, threshold_for

PAPER_WARMUP = 16

PAPER_SETTINGS: dict[str, Any] = {
    "budget": 512,
    "warmup": PAPER_WARMUP,
    "window": PAPER_WINDOW,
    "quorum": 1,
}
"""Algorithm 2 as published, for `DeepConfLow(**PAPER_SETTINGS)` and `DeepConfHigh`."""


@dataclass
class DeepConfOnline(Policy):
    """Warm up with complete traces, set a threshold, stop later traces that fall below it.

    The paper draws traces one after another; here as many run as the engine can, and consensus
    cancels the running ones. Its own settings are `PAPER_SETTINGS`; the defaults scale down to
    small budgets and short traces.

    Attributes:
        keep: Share of the warm-up traces that pass the threshold, in (0, 1].
        budget: The most traces to start, warm-up included.
        warmup: Complete traces before the threshold is set; None takes a quarter of the
            budget, from 4 to the paper's 16.
        window: Tokens in a group; None fits it to the warm-up traces.
        consensus: Share of the weight at which the leader settles the verdict (tau), in (0, 1].
        quorum: Votes needed before consensus is looked at, or the whole budget if that is less;
            the paper needs only 1.
        weighted: Whether a vote weighs as much as its trace's lowest group confidence.
    """

    name: ClassVar[str] = "deepconf-online"
    needs_confidence: ClassVar[bool] = True

    keep: float = 0.9
    budget: int = DEFAULT_BUDGET
    warmup: int | None = None
    window: int | None = None
    consensus: float = 0.95
    quorum: int = 3
    weighted: bool = True

    _ballot: Ballot = field(default_factory=Ballot, init=False, repr=False)
    _unfiltered: Ballot = field(default_factory=Ballot, init=False, repr=False)
    _warm: list[Trace] = field(default_factory=list[Trace], init=False, repr=False)
    _waiting: int = field(default=0, init=False, repr=False)
    _gate: Gate | None = field(default=None, init=False, repr=False)
    _gated: int = field(default=0, init=False, repr=False)
    _longest: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole("budget", self.budget, low=1)
        check_window(self.window)
        require("keep", self.keep, low=1e-9, high=1.0)
        require("consensus", self.consensus, low=1e-9, high=1.0)
        require_whole("quorum", self.quorum, low=1)
        if self.warmup is not None:
            require_whole("warmup", self.warmup, low=1)
            if self.warmup > self.budget:
                raise InvalidSettingError(
                    tried=f"warm up with {self.warmup} traces of a budget of {self.budget}",
                    found="the warm-up is larger than the budget",
                    remedy="Raise the budget or lower the warm-up.",
                )

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start the warm-up: complete traces, no gate."""
        del conditions
        self._waiting = self.warmup or min(self.budget, PAPER_WARMUP, max(4, self.budget // 4))
        self.warmup = self._waiting
        return [Start(self._waiting)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Collect the warm-up; after it, count the vote and look at the consensus."""
        if answer := vote_of(trace):
            self._unfiltered.cast(trace.id, answer)
        if self._waiting:
            self._warm.append(trace)
            self._waiting -= 1
            return [] if self._waiting else self._end_warmup()
        self._gated += 1
        self._longest = max(self._longest, trace.tokens)
        self._vote(trace)
        return [Done("consensus")] if self._settled() else []

    def _end_warmup(self) -> Sequence[Action]:
        complete = [trace for trace in self._warm if trace.complete]
        self.window = self.window or fitting_window(complete)
        scores = np.array([self._score(trace) for trace in complete])
        threshold = threshold_for(scores, self.keep)
        if np.isfinite(threshold):
            self._gate = Gate(self.window, threshold)
        for trace, weight in zip(complete, scores.tolist(), strict=True):
            if weight >= threshold:
                self._vote(trace)
        if self._settled():
            return [Done("consensus")]
        rest = self.budget - len(self._warm)
        return [Start(rest, self._gate)] if rest else []

    def _score(self, trace: Trace) -> float:
        return score(trace, Metric.LOWEST_GROUP, self.window or PAPER_WINDOW)

    def _vote(self, trace: Trace) -> None:
        if answer := vote_of(trace):
            weight = self._score(trace)
            if np.isfinite(weight):
                self._ballot.cast(trace.id, answer, weight if self.weighted else 1.0)

    def _settled(self) -> bool:
        quorum = min(self.quorum, self.budget)
        return self._ballot.count >= quorum and self._ballot.share >= self.consensus

    @property
    def need(self) -> int | None:
        """The fewest votes of mean weight that would bring consensus, as far as it can start.

        None before the warm-up has brought votes.
        """
        if self._waiting or not self._ballot.count:
            return None
        votes, leading = self._ballot.count, self._ballot.count * self._ballot.share
        quorum = min(self.quorum, self.budget)

        def settle(more: int) -> bool:
            enough = votes + more >= quorum
            return enough and leading + more >= self.consensus * (votes + more)

        return fewest_votes(settle, self.budget - len(self._warm) - self._gated)

    def standing(self) -> Standing:
        """The vote of the traces that passed; without any, of all complete traces, and a note."""
        threshold = self._gate.threshold if self._gate else None
        if self._waiting:
            note = "The warm-up has not ended; this is the plain majority so far."
            return Standing(self._unfiltered.tally(), notes=(note,))
        notes = self._why_nothing_stopped()
        if self._ballot.count:
            return Standing(self._ballot.tally(), threshold, self.window, notes)
        note = (
            "No trace that passed the threshold gave an answer; "
            "this is the plain majority of all complete traces."
        )
        return Standing(self._unfiltered.tally(), threshold, self.window, (note, *notes))

    def _why_nothing_stopped(self) -> tuple[str, ...]:
        if self.budget == self.warmup:
            return ("Early stopping was inactive: the warm-up used up the whole budget.",)
        if self._gate is None:
            return ("Early stopping was inactive: no warm-up trace had a known confidence.",)
        if self._gated and self._longest < self._gate.window:
            reason = f"the longest gated trace had {self._longest} tokens"
            return (f"Early stopping was inactive: {reason}, the window {self._gate.window}.",)
        return ()


@dataclass
class DeepConfLow(DeepConfOnline):
    """DeepConf-low: keeps the most confident 10%, stops the most, saves the most."""

    name: ClassVar[str] = "deepconf-low"
    keep: float = 0.1


@dataclass
class DeepConfHigh(DeepConfOnline):
    """DeepConf-high: keeps 90%, stops only the weakest, closest to majority voting."""

    name: ClassVar[str] = "deepconf-high"
    keep: float = 0.9
