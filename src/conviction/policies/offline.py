"""What all policies share that let the whole budget finish and then weigh it by confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from conviction.confidence import Metric
from conviction.core import Trace
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Policy,
    Start,
    check_budget,
    vote_of,
)
from conviction.policies.scores import check_metric
from conviction.policies.windows import check_window


@dataclass
class Offline(Policy):
    """Starts everything, and remembers the traces that may vote.

    Attributes:
        budget: Traces to start.
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None fits it to the traces.
    """

    needs_confidence: ClassVar[bool] = True

    budget: int = DEFAULT_BUDGET
    metric: Metric = Metric.MEAN
    window: int | None = None
    _traces: list[Trace] = field(default_factory=list[Trace], init=False, repr=False)

    def __post_init__(self) -> None:
        check_budget(self.budget)
        check_window(self.window)
        self.metric = check_metric(self.metric)

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start everything."""
        del conditions
        return [Start(self.budget)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Remember it, if it may vote."""
        if vote_of(trace):
            self._traces.append(trace)
        return []
