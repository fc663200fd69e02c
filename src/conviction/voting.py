"""Votes: which traces are kept, and which answer leads."""

from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, Tally, TallyEntry, require


def threshold_for(scores: NDArray[np.float64], keep: float) -> float:
    """The score that the best `keep` of `scores` reach: percentile 100 (1 - keep), linear.

    Used for warm-up thresholds (Algorithm 2) and for filtered votes. Scores that are not
    finite are left out.

    Args:
        scores: Confidences of traces, shape (traces,).
        keep: Share to keep, in (0, 1].

    Returns:
        The threshold; minus infinity if no score is finite, so that everything is kept.
    """
    require("keep", keep, low=1e-9, high=1.0)
    finite = scores[np.isfinite(scores)]
    # 1 - 0.7 is a little more than 0.3: unrounded, the best 70% of 11 would be 7 instead of 8.
    percentile = round(100 * (1 - keep), 9)
    return float(np.percentile(finite, percentile)) if finite.size else -np.inf


@dataclass(slots=True)
class _Class:
    text: str
    order: int
    weight: float = 0.0
    votes: list[int] = field(default_factory=list[int])

    @property
    def rank(self) -> tuple[float, int, int]:
        """Sorts by weight, then votes, then for the answer seen first."""
        return self.weight, len(self.votes), -self.order


class Ballot:
    """Counts votes as they come; `front_runners` and `share` take constant time."""

    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}
        self._leader: _Class | None = None
        self._runner_up: _Class | None = None
        self._total = 0.0

    def cast(self, trace: int, answer: Answer, weight: float = 1.0) -> None:
        """Count one trace's vote.

        Args:
            trace: Its id.
            answer: What it votes for.
            weight: Finite and not negative; 1 is plain majority voting.

        Raises:
            ValueError: the weight is not finite, or negative.
        """
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"a vote's weight must be finite and not negative, not {weight}")
        entry = self._classes.get(answer.key)
        if entry is None:
            entry = self._classes[answer.key] = _Class(answer.text, len(self._classes))
        entry.weight += weight
        entry.votes.append(trace)
        self._total += weight
        if self._leader is None or entry.rank > self._leader.rank:
            if entry is not self._leader:
                self._runner_up = self._leader
            self._leader = entry
        elif entry is not self._leader and (
            self._runner_up is None or entry.weight > self._runner_up.weight
        ):
            self._runner_up = entry

    @property
    def front_runners(self) -> tuple[float, float]:
        """Weights of the leading answer and of the heaviest one beside it; 0 for none."""
        leader = self._leader.weight if self._leader else 0.0
        return leader, self._runner_up.weight if self._runner_up else 0.0

    @property
    def count(self) -> int:
        """Votes cast."""
        return sum(len(entry.votes) for entry in self._classes.values())

    @property
    def share(self) -> float:
        """The leader's part of all weight (beta of Algorithm 2); 0 before the first vote."""
        if self._leader is None or self._total <= 0:
            return 0.0
        return self._leader.weight / self._total

    def tally(self) -> Tally:
        """All votes so far, the leader first."""
        ranked = sorted(self._classes.items(), key=lambda item: item[1].rank, reverse=True)
        return Tally(
            tuple(
                TallyEntry(entry.text, key, entry.weight, tuple(entry.votes))
                for key, entry in ranked
            )
        )
