"""Majority voting (self-consistency), and its smallest case: a single trace."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from conviction.core import Trace
from conviction.policies.base import Action, Conditions, PlainVote, Start


@dataclass
class Majority(PlainVote):
    """Start the whole budget, let every trace finish, give each answer one vote."""

    name: ClassVar[str] = "majority"

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start everything."""
        del conditions
        return [Start(self.budget)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Count its vote."""
        self._count(trace)
        return []


@dataclass
class Single(Majority):
    """One trace, as without conviction: the baseline."""

    name: ClassVar[str] = "single"

    budget: int = field(default=1, init=False)
