"""How safe the leader's lead is: the probability behind Adaptive-Consistency and settling."""

from collections.abc import Callable
from functools import lru_cache
from math import exp, lgamma, log

from conviction.core import Tally

_TINY = 1e-300
_EPSILON = 1e-15
_MOST_STEPS = 100_000


@lru_cache(maxsize=1 << 16)
def lead_probability(leader: float, runner_up: float) -> float:
    """P(p > 1/2) under Beta(leader + 1, runner_up + 1): that the leader is ahead for good.

    For whole votes it is 2^-(n+1) times the sum of C(n+1, k) over k from 0 to `leader`, n being
    the sum of both; votes, at least 0, may also carry weights. It is the regularised incomplete
    beta function at 1/2, by its continued fraction (DLMF 8.17.22, evaluated by Lentz's scheme);
    good to 1e-10 up to ten thousand votes.

    Source: Adaptive-Consistency, arXiv 2305.11860 (its Beta criterion).
    """
    # The fraction converges fast for the smaller of both tails.
    if runner_up > leader:
        return 1.0 - lead_probability(runner_up, leader)
    return 1.0 - _tail(leader + 1.0, runner_up + 1.0)


def lead_of(tally: Tally) -> float | None:
    """How likely the leader is to stay the most frequent answer with more samples, right or wrong.

    It counts whole votes, not weights, of the leader and of the most frequent other answer, so it
    lies in (0, 1], below 1/2 if another answer has more votes. None without votes.
    """
    if tally.leader is None:
        return None
    others = (entry.count for entry in tally.entries[1:])
    return lead_probability(tally.leader.count, max(others, default=0))


def fewest_votes(settle: Callable[[int], bool], most: int) -> int:
    """The fewest further votes that settle the verdict, from 1 to `most`; `most` if none do.

    If a number of votes settles it, so do more.
    """
    low, high = 1, max(most, 1)
    while low < high:
        middle = (low + high) // 2
        if settle(middle):
            high = middle
        else:
            low = middle + 1
    return low


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
