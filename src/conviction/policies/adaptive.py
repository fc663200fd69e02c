"""Stopping rules that look at answers alone: Adaptive-Consistency and Early-Stopping Consistency.

Both run in waves: as many traces as the wave holds are started together, and the rule is asked
when all of them have ended. A wave of one is the published, sequential rule. Asking earlier would
favour answers that are found fast.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import lgamma, log
from typing import ClassVar

import numpy as np

from conviction.core import Trace, require, require_whole
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Done,
    Policy,
    Standing,
    Start,
    check_budget,
    may_vote,
)
from conviction.voting import Ballot


@lru_cache(maxsize=1 << 16)
def lead_probability(leader: int, runner_up: int) -> float:
    """P(p > 1/2) under Beta(leader + 1, runner_up + 1): that the leader is ahead for good.

    Closed form: 2^-(n+1) times the sum of C(n+1, k) over k from 0 to `leader`, n being the sum of
    both counts; in logarithms, so that thousands of votes do no harm.

    Source: Adaptive-Consistency, arXiv 2305.11860 (its Beta criterion).

    Args:
        leader: Votes of the leading answer, at least 0.
        runner_up: Votes of the second answer, at least 0.
    """
    trials = leader + runner_up + 1
    # The shorter tail is summed: it is exact where it is small, and the other is its complement.
    last = min(leader, runner_up)
    terms = np.array([-lgamma(k + 1) - lgamma(trials - k + 1) for k in range(last + 1)])
    scale = lgamma(trials + 1) - trials * log(2)
    if leader <= runner_up:
        return float(np.exp(terms + scale).sum())
    return 1.0 - float(np.exp(terms + scale).sum())


@dataclass
class _InWaves(Policy):
    """Starts waves of traces until a rule says that the verdict is settled."""

    budget: int = DEFAULT_BUDGET
    _ballot: Ballot = field(default_factory=Ballot, init=False, repr=False)
    _started: int = field(default=0, init=False, repr=False)
    _running: int = field(default=0, init=False, repr=False)

    @property
    @abstractmethod
    def _wave(self) -> int:
        """Traces that are started together."""

    @abstractmethod
    def _settled(self) -> bool:
        """Whether no further wave is needed."""

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start the first wave."""
        del conditions
        return self._next_wave()

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Count its vote; when its wave has ended, ask the rule."""
        self._count(trace)
        self._running -= 1
        if self._running:
            return []
        return [Done("settled")] if self._settled() else self._next_wave()

    def standing(self) -> Standing:
        """The votes so far."""
        return Standing(self._ballot.tally())

    def _count(self, trace: Trace) -> None:
        if may_vote(trace) and trace.answer:
            self._ballot.cast(trace.id, trace.answer)

    def _next_wave(self) -> Sequence[Action]:
        count = min(self._wave, self.budget - self._started)
        self._started += count
        self._running = count
        return [Start(count)] if count else []


@dataclass
class AdaptiveConsistency(_InWaves):
    """Stop when the leader is ahead of the runner-up beyond reasonable doubt.

    Source: arXiv 2305.11860; its bar is 0.95, one trace after another.

    Attributes:
        budget: The most traces to start.
        bar: Probability that the leader is ahead for good at which the verdict is settled, in
            (0.5, 1).
        wave: Traces that are started together, at least 1.
    """

    name: ClassVar[str] = "adaptive-consistency"

    bar: float = 0.95
    wave: int = 1

    def __post_init__(self) -> None:
        check_budget(self.budget)
        require("bar", self.bar, low=0.5, high=1.0 - 1e-9)
        require_whole("wave", self.wave, low=1)

    @property
    def _wave(self) -> int:
        return self.wave

    def _settled(self) -> bool:
        leader, runner_up = self._ballot.front_runners
        return lead_probability(leader, runner_up) >= self.bar


@dataclass
class EarlyStoppingConsistency(_InWaves):
    """Stop when all traces of one window give the same answer.

    Source: ESC, arXiv 2401.10480. The answer is that of all traces so far.

    Attributes:
        budget: The most traces to start.
        window: Traces that have to agree, at least 2; they are started together.
    """

    name: ClassVar[str] = "esc"

    window: int = 4
    _answers: list[str | None] = field(default_factory=list[str | None], init=False, repr=False)

    def __post_init__(self) -> None:
        check_budget(self.budget)
        require_whole("window", self.window, low=2)

    @property
    def _wave(self) -> int:
        return self.window

    def _count(self, trace: Trace) -> None:
        super()._count(trace)
        self._answers.append(trace.answer.key if may_vote(trace) and trace.answer else None)

    def _settled(self) -> bool:
        # A last window that the budget cuts short settles nothing, and there is no further one.
        window = self._answers[-self.window :]
        whole = len(self._answers) % self.window == 0
        return whole and None not in window and len(set(window)) == 1
