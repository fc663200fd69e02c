"""DeepConf offline (METHOD section 3): complete traces, filtered and weighted by confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from conviction.confidence import Metric
from conviction.core import Trace, require
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Policy,
    Standing,
    Start,
    check_budget,
    may_vote,
)
from conviction.policies.scores import score
from conviction.policies.windows import check_window, fitting_window
from conviction.registry import unknown_name
from conviction.voting import Ballot, threshold_for


@dataclass
class DeepConfOffline(Policy):
    """Let every trace finish, keep the most confident ones, and weigh their votes.

    Attributes:
        budget: Traces to start; the paper takes 512.
        metric: How a trace's confidence is measured.
        keep: Share of the traces to keep, in (0, 1]; the paper takes 0.1 or 0.9.
        weighted: Whether a vote weighs as much as its trace's confidence, instead of 1.
        window: Tokens in a group; the paper takes 2048. None fits it to the traces.
    """

    name: ClassVar[str] = "deepconf-offline"
    needs_confidence: ClassVar[bool] = True

    budget: int = DEFAULT_BUDGET
    metric: Metric = Metric.TAIL
    keep: float = 0.1
    weighted: bool = True
    window: int | None = None
    _traces: list[Trace] = field(default_factory=list[Trace], init=False, repr=False)

    def __post_init__(self) -> None:
        check_budget(self.budget)
        check_window(self.window)
        require("keep", self.keep, low=1e-9, high=1.0)
        if self.metric not in set(Metric):
            raise unknown_name("metrics", str(self.metric), [metric.value for metric in Metric])
        self.metric = Metric(self.metric)

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """Start everything."""
        del conditions
        return [Start(self.budget)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Remember it, if it may vote."""
        if may_vote(trace):
            self._traces.append(trace)
        return []

    def standing(self) -> Standing:
        """The filtered, weighted vote among the traces so far.

        Where no confidence is known, of all of them, unweighted, and a note.
        """
        window = self.window or fitting_window(self._traces)
        scores = np.array([score(trace, self.metric, window) for trace in self._traces])
        threshold = threshold_for(scores, self.keep)
        blind = not np.isfinite(threshold)
        ballot = Ballot()
        for trace, weight in zip(self._traces, scores.tolist(), strict=True):
            if trace.answer and (blind or weight >= threshold):
                ballot.cast(trace.id, trace.answer, weight if self.weighted and not blind else 1.0)
        if not blind:
            return Standing(ballot.tally(), threshold, window)
        note = "No trace had a known confidence; this is the plain majority of all complete traces."
        return Standing(ballot.tally(), None, window, (note,) if self._traces else ())
