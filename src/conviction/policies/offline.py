"""Policies that let the whole budget finish, and then weigh votes by confidence.

DeepConf offline (METHOD section 3), and votes by rank of confidence: best of n, and Borda.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

import numpy as np

from conviction.confidence import Metric
from conviction.core import Trace, require, require_whole
from conviction.policies.base import (
    DEFAULT_BUDGET,
    Action,
    Conditions,
    Policy,
    Standing,
    Start,
    vote_of,
)
from conviction.policies.measures import check_metric, check_window, fitting_window, score
from conviction.voting import Ballot, threshold_for


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
        require_whole("budget", self.budget, low=1)
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


@dataclass
class DeepConfOffline(Offline):
    """Let every trace finish, keep the most confident ones, and weigh their votes.

    The paper starts 512, keeps 0.1 or 0.9 of them, and takes a window of 2048.

    Attributes:
        keep: Share of the traces to keep, in (0, 1].
        weighted: Whether a vote weighs as much as its trace's confidence, instead of 1.
    """

    name: ClassVar[str] = "deepconf-offline"

    metric: Metric = Metric.TAIL
    keep: float = 0.1
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("keep", self.keep, low=1e-9, high=1.0)

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


@dataclass
class BestOfN(Offline):
    """Let every trace finish and take the answer of the most confident one."""

    name: ClassVar[str] = "best-of-n"

    def standing(self) -> Standing:
        """The vote by rank among the traces so far; those of unknown confidence rank last."""
        window = self.window or fitting_window(self._traces)
        scored = [
            (score(trace, self.metric, window), trace.id, trace.answer)
            for trace in self._traces
            if trace.answer is not None
        ]
        # Among equals the trace that was started first ranks first.
        scored.sort(key=lambda item: (-item[0] if isfinite(item[0]) else float("inf"), item[1]))
        ballot = Ballot()
        for weight, (_, trace, answer) in zip(self._weights(len(scored)), scored, strict=False):
            ballot.cast(trace, answer, weight)
        return Standing(ballot.tally(), window=window)

    def _weights(self, count: int) -> Iterable[float]:
        """Weights of the votes by rank, the best first."""
        return [1.0] * min(count, 1)


@dataclass
class Borda(BestOfN):
    """Let every trace finish; of n votes the best weighs n^p, the next (n-1)^p, the last 1.

    Source: self-certainty with Borda voting, arXiv 2502.18581.

    Attributes:
        power: p, at least 0; 0 is plain majority voting, large values approach best of n.
    """

    name: ClassVar[str] = "borda"

    power: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("power", self.power, low=0.0, high=100.0)

    def _weights(self, count: int) -> Iterable[float]:
        return [float(count - rank) ** self.power for rank in range(count)]
