"""Settling with token confidence: votes that weigh it, and weak traces stopped by a gate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric
from conviction.core import Trace, require, require_whole
from conviction.gate import Gate
from conviction.policies.base import Standing, Start, vote_of
from conviction.policies.measures import check_metric, check_window, fitting_window, gain, score
from conviction.policies.settle import Settle
from conviction.voting import Ballot, threshold_for


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
        note = "No vote had a known confidence, so all weigh the same."
        blind = bool(self._voters) and not np.isfinite(self._confidences()).any()
        notes = (note,) if blind else ()
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
    """What votes weigh by confidence: powers of it, scaled to a mean of 1.

    Args:
        confidences: Shape (votes,). Negative ones count as 0; where none is positive, all votes
            weigh the same.
        power: At least 0.

    Returns:
        Shape (votes,), at least 0; 1 where the confidence is not finite.
    """
    weights = np.ones(confidences.size)
    known = np.isfinite(confidences)
    largest = confidences[known].max(initial=0.0)
    if largest > 0:
        # As parts of the largest, no power overflows, and equal confidences weigh exactly 1.
        powers = (np.maximum(confidences[known], 0.0) / largest) ** power
        weights[known] = powers / powers.mean()
    return weights
