"""Majority voting (self-consistency), and its smallest case: a single trace."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from conviction.core import Trace
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Policy,
    Standing,
    Start,
    check_budget,
    vote_of,
)
from conviction.voting import Ballot


@dataclass
class Majority(Policy):
    """Start the whole budget, let every trace finish, give each answer one vote.

    Attributes:
        budget: Traces to start.
    """

    name: ClassVar[str] = "majority"

    budget: int = DEFAULT_BUDGET
    _ballot: Ballot = field(default_factory=Ballot, init=False, repr=False)

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start everything."""
        del conditions
        return [Start(self.budget)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Count its vote."""
        if answer := vote_of(trace):
            self._ballot.cast(trace.id, answer)
        return []

    def standing(self) -> Standing:
        """The votes so far."""
        return Standing(self._ballot.tally())


@dataclass
class Single(Majority):
    """One trace, as without conviction: the baseline."""

    name: ClassVar[str] = "single"

    budget: int = field(default=1, init=False)
