"""Votes: which traces are kept, which answer leads, and how safe its lead is."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, isfinite, lgamma, log

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, Tally, TallyEntry, require

_TINY = 1e-300
_EPSILON = 1e-15
_MOST_STEPS = 100_000


def threshold_for(scores: NDArray[np.float64], keep: float) -> float:
    """The score that the best `keep` of `scores` reach: percentile 100 (1 - keep), linear.

    Used for warm-up thresholds (Algorithm 2) and for filtered votes. Scores that are not
    finite are left out; without any other, it is minus infinity, which keeps everything.

    Args:
        scores: Confidences of traces, shape (traces,).
        keep: Share to keep, in (0, 1].
    """
    require("keep", keep, low=1e-9, high=1.0)
    finite = scores[np.isfinite(scores)]
    # 1 - 0.7 is a little more than 0.3: unrounded, the best 70% of 11 would be 7 instead of 8.
    percentile = round(100 * (1 - keep), 9)
    return float(np.percentile(finite, percentile)) if finite.size else -np.inf


@dataclass(slots=True)
class _Class:
    text: str
    key: str
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
        """Count one trace's vote; a weight of 1 is plain majority voting.

        Raises:
            ValueError: the weight is not finite, or negative.
        """
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"a vote's weight must be finite and not negative, not {weight}")
        entry = self._classes.get(answer.key)
        if entry is None:
            entry = self._classes[answer.key] = _Class(answer.text, answer.key, len(self._classes))
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
        entries = sorted(self._classes.values(), key=lambda entry: entry.rank, reverse=True)
        return Tally(tuple(TallyEntry(e.text, e.key, e.weight, tuple(e.votes)) for e in entries))


@lru_cache(maxsize=1 << 16)
def lead_probability(leader: float, runner_up: float) -> float:
    """P(p > 1/2) under Beta(leader + 1, runner_up + 1): that the leader is ahead for good.

    Both are votes or weights, at least 0. For whole votes it is 2^-(n+1) times the sum of C(n+1, k)
    over k from 0 to `leader`, n being the sum of both.

    It is the regularised incomplete beta function at 1/2, by its continued fraction (DLMF 8.17.22,
    evaluated by Lentz's scheme); good to 1e-10 up to ten thousand votes.

    Source: Adaptive-Consistency, arXiv 2305.11860 (its Beta criterion).
    """
    # The fraction converges fast for the smaller of both tails.
    if runner_up > leader:
        return 1.0 - lead_probability(runner_up, leader)
    return 1.0 - _tail(leader + 1.0, runner_up + 1.0)


def lead_of(tally: Tally) -> float | None:
    """How likely the leader is to stay the most frequent answer with more samples, in (0, 1].

    It comes from whole votes, whatever they weigh, of the leader and of the most frequent answer
    beside it: below 1/2 if that has more votes, though less weight. It says nothing about the
    leader being right. None without votes.
    """
    if tally.leader is None:
        return None
    others = (entry.count for entry in tally.entries[1:])
    return lead_probability(tally.leader.count, max(others, default=0))


def fewest_votes(settle: Callable[[int], bool], most: int) -> int:
    """The fewest further votes for the leader, from 1 to `most`, that settle the verdict.

    If some number of votes settles it, so do more; if not even `most` do, the result is `most`.
    """
    return bisect_left(range(1, most), True, key=settle) + 1  # noqa: FBT003  # the value searched for


def _tail(a: float, b: float) -> float:
    """I_(1/2)(a, b), the part of Beta(a, b) below 1/2, for a >= b."""
    scale = exp(lgamma(a + b) - lgamma(a) - lgamma(b) - (a + b) * log(2.0)) / a
    c, d = 1.0, 1.0 / _nonzero(1.0 - (a + b) / (a + 1.0) / 2.0)
    fraction = d
    for m in range(1, _MOST_STEPS):
        even = m * (b - m) / 2.0 / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) / 2.0 / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1.0 / _nonzero(1.0 + coefficient * d)
            c = _nonzero(1.0 + coefficient / c)
            fraction *= c * d
        if abs(c * d - 1.0) < _EPSILON:
            break
    return scale * fraction


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
