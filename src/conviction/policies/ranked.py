"""Votes by rank of confidence: best of n, and Borda."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from conviction.core import require
from conviction.policies.base import Standing
from conviction.policies.offline import Offline
from conviction.policies.scores import score
from conviction.policies.windows import fitting_window
from conviction.voting import Ballot


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
