"""Stopping rules that look at answers alone: Adaptive-Consistency and Early-Stopping Consistency.

Traces start in waves, and the rule is applied when all of a wave have ended: earlier it would
favour answers that are found fast. A wave of one is the published, sequential rule.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from conviction.core import InvalidSettingError, Trace, require, require_whole
from conviction.policies.base import Action, Conditions, Done, PlainVote, Start, vote_of
from conviction.voting import fewest_votes, lead_probability


@dataclass
class _InWaves(PlainVote):
    """Starts waves of traces until the verdict is settled."""

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
        """Count its vote; when its wave has ended, apply the rule."""
        self._count(trace)
        self._running -= 1
        if self._running:
            return []
        return [Done("settled")] if self._settled() else self._next_wave()

    @property
    def _left(self) -> int:
        """Traces that have not ended or can still be started."""
        return self.budget - self._started + self._running

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
        bar: Probability that the leader is ahead for good at which the verdict is settled, in
            (0.5, 1).
        wave: Traces that are started together, at least 1.
    """

    name: ClassVar[str] = "adaptive-consistency"

    bar: float = 0.95
    wave: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("bar", self.bar, low=0.5, high=1.0 - 1e-9)
        if self.bar <= lead_probability(0, 0):
            raise InvalidSettingError(
                tried=f"use bar = {self.bar!r}",
                found="no lead is less probable than 0.5, so that it would settle without a vote",
                remedy="Use a bar above 0.5 and below 1.",
            )
        require_whole("wave", self.wave, low=1)

    @property
    def _wave(self) -> int:
        return self.wave

    @property
    def need(self) -> int:
        """The fewest further votes for the leader that would settle it, as far as it can start."""
        return fewest_votes(self._settles, self._left)

    def _settled(self) -> bool:
        return self._settles(0)

    def _settles(self, more: int) -> bool:
        leader, runner_up = self._ballot.front_runners
        return lead_probability(leader + more, runner_up) >= self.bar


@dataclass
class EarlyStoppingConsistency(_InWaves):
    """Stop when all traces of one window give the same answer.

    Source: ESC, arXiv 2401.10480. The answer is that of all traces so far.

    Attributes:
        window: Traces that have to agree, at least 2; they are started together.
    """

    name: ClassVar[str] = "esc"

    window: int = 4
    _answers: list[str | None] = field(default_factory=list[str | None], init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("window", self.window, low=2)

    @property
    def _wave(self) -> int:
        return self.window

    def _count(self, trace: Trace) -> None:
        super()._count(trace)
        answer = vote_of(trace)
        self._answers.append(answer.key if answer else None)

    @property
    def need(self) -> int:
        """What is missing of a window that agrees so far, else of the next one."""
        done = len(self._answers) % self.window
        begun = set(self._answers[-done:]) if done else set[str | None]()
        broken = None in begun or len(begun) > 1
        return min(self.window - done + self.window * broken, max(self._left, 1))

    def _settled(self) -> bool:
        # A last window that the budget cuts short settles nothing, and there is no further one.
        window = self._answers[-self.window :]
        whole = len(self._answers) % self.window == 0
        return whole and None not in window and len(set(window)) == 1
