"""How sure a measured figure is: bootstrap intervals, and how well a score ranks right first."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 21
"""Weights held at once, a few copies of 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: The figure as measured; NaN where there is none.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Numbers) -> Self:
        """A figure, and the percentile interval of what it is when resampled."""
        finite = resampled[np.isfinite(resampled)]
        if not finite.size:
            return cls(value, np.nan, np.nan)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(finite, [tail, 100 - tail])
        return cls(value, float(low), float(high))


class Bootstrap:
    """Means over questions and repeats, as they would come out for other questions and draws.

    Both are resampled: questions with replacement, and for each question that is taken its
    repeats with replacement. All figures see the same resamples, so differences of figures are
    paired. Source: the two-stage bootstrap, Davison & Hinkley 1997, section 3.8.

    Args:
        questions: Number of questions, at least 1.
        repeats: Repeats of each, at least 1.
        resamples: How often everything is drawn anew.
        seed: Makes it reproducible.
    """

    def __init__(
        self, questions: int, repeats: int = 1, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.questions = questions
        self.repeats = repeats
        self.resamples = resamples
        self.seed = seed

    def means(self, values: ArrayLike) -> Numbers:
        """The mean of each figure in each resample.

        Args:
            values: Shape (figures, questions, repeats); NaN where there is nothing to measure.

        Returns:
            Shape (figures, resamples), NaN where a resample has nothing to measure.
        """
        columns = np.asarray(values, np.float64).reshape(-1, self.questions * self.repeats).T
        present = np.isfinite(columns)
        whole = bool(present.all())
        columns = np.where(present, columns, 0.0)
        sums = np.empty((self.resamples, columns.shape[1]))
        counts = np.full(sums.shape, float(columns.shape[0]))
        block = max(_BLOCK // columns.shape[0], 1)
        random = np.random.default_rng(self.seed)
        for begin in range(0, self.resamples, block):
            end = min(begin + block, self.resamples)
            weights = self._weights(random, end - begin)
            sums[begin:end] = weights @ columns
            if not whole:
                counts[begin:end] = weights @ present
        with np.errstate(invalid="ignore"):
            return (sums / counts).T

    def estimates(self, values: ArrayLike) -> list[Estimate]:
        """The mean of each figure with its interval.

        Args:
            values: Shape (figures, questions, repeats); NaN where there is nothing to measure.
        """
        flat = np.asarray(values, np.float64).reshape(-1, self.questions * self.repeats)
        return [
            Estimate.of(mean_of(row), resampled)
            for row, resampled in zip(flat, self.means(values), strict=True)
        ]

    def _weights(self, random: np.random.Generator, count: int) -> Numbers:
        """How often each resample holds each value, shape (count, questions x repeats)."""
        size = self.questions * self.repeats
        taken = random.integers(0, self.questions, (count, self.questions, 1))
        within = random.integers(0, self.repeats, (count, self.questions, self.repeats))
        within += taken * self.repeats + np.arange(count)[:, None, None] * size
        flat = np.bincount(within.ravel(), minlength=count * size)
        return flat.reshape(count, size).astype(np.float64)


def mean_of(values: ArrayLike) -> float:
    """The mean of all values that are there; NaN if none is."""
    array = np.asarray(values, np.float64)
    present = array[np.isfinite(array)]
    return float(present.mean()) if present.size else float("nan")


def auroc(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """How often a right trace scores higher than a wrong one; a tie counts half.

    Args:
        scores: Shape (traces,); traces whose score is NaN are left out.
        right: Whether each is right, shape (traces,).

    Returns:
        0.5 for chance, 1 if every right one scores higher; NaN unless there are both.
    """
    known = ~np.isnan(scores)
    good, bad = scores[known & right], np.sort(scores[known & ~right])
    if not good.size or not bad.size:
        return float("nan")
    below = np.searchsorted(bad, good, side="left")
    below_or_equal = np.searchsorted(bad, good, side="right")
    return float((below + below_or_equal).mean() / (2 * bad.size))


def pareto_front(cost: NDArray[np.floating], worth: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which points no other beats: none costs less or as much and is worth more or as much.

    Args:
        cost: The less the better, shape (points,).
        worth: The more the better, shape (points,).

    Returns:
        Shape (points,); of equal points the first.
    """
    order = np.lexsort((np.arange(cost.size), -worth, cost))
    ranked = worth[order]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(ranked)[:-1]))
    front = np.zeros(cost.size, np.bool_)
    front[order] = ranked > best_before
    return front
