"""How sure a measured figure is: bootstrap intervals, and how well a score ranks right first."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 21
"""Weights held at once, a few copies of 8 bytes each."""
_QUANTILE = NormalDist().inv_cdf((1 + LEVEL) / 2)
_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: The figure as measured; NaN where there is none.
        low: Lower end of its 95% interval; NaN where the figure is known and no interval is.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON types; None where there is nothing to tell."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}

    @classmethod
    def of(cls, value: float, resampled: Numbers) -> Self:
        """A figure, and the percentile interval of what it is when resampled."""
        finite = resampled[np.isfinite(resampled)]
        if not finite.size:
            return cls(value, np.nan, np.nan)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(finite, [tail, 100 - tail])
        return cls(value, float(low), float(high))

    @classmethod
    def of_share(cls, values: ArrayLike, resampled: Numbers) -> Self:
        """The mean of values in [0, 1], shape (questions, repeats), from its resampled means.

        Where all questions agree, the resampled interval has no width; there it is Wilson's. NaN
        stands where there is nothing to measure.
        """
        means = _question_means(values)
        if not _agree(means):
            return cls.of(mean_of(values), resampled)
        return cls(mean_of(values), *wilson(mean_of(values), means.size))

    @classmethod
    def of_difference(cls, values: ArrayLike, resampled: Numbers) -> Self:
        """The mean of paired differences in [-1, 1], as `of_share`.

        Where all questions agree on a gain or a loss, the interval is that of gains less losses,
        each Wilson's; where no question differs, there is none.
        """
        value, means = mean_of(values), _question_means(values)
        if not _agree(means):
            return cls.of(value, resampled)
        if not value:
            return cls(0.0, nan, nan)
        gain, loss = (wilson(max(signed, 0.0), means.size) for signed in (value, -value))
        return cls(value, max(gain[0] - loss[1], -1.0), min(gain[1] - loss[0], 1.0))

    @classmethod
    def of_amount(cls, value: float, resampled: Numbers, questions: int) -> Self:
        """An amount such as tokens; one question says nothing about how others differ."""
        return cls(value, nan, nan) if questions < 2 else cls.of(value, resampled)


class Bootstrap:
    """Means over questions and repeats in resamples of both, the same for all figures.

    There is at least one question, and one repeat of each.

    Source: the two-stage bootstrap, Davison & Hinkley 1997, section 3.8.
    """

    def __init__(
        self, questions: int, repeats: int = 1, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.questions = questions
        self.repeats = repeats
        self.resamples = resamples
        self.seed = seed

    def means(self, values: ArrayLike) -> Numbers:
        """The mean of each figure in each resample, shape (figures, resamples).

        Of values of shape (figures, questions, repeats); NaN where there is nothing to measure.
        """
        columns = np.asarray(values, np.float64).reshape(-1, self.questions * self.repeats).T
        present = np.isfinite(columns)
        whole = bool(present.all())
        columns = np.where(present, columns, 0.0)
        sums = np.empty((self.resamples, columns.shape[1]))
        counts = np.full(sums.shape, float(columns.shape[0]))
        block = max(_BLOCK // columns.shape[0], 1)
        random = np.random.default_rng(any_seed(self.seed))
        for begin in range(0, self.resamples, block):
            end = min(begin + block, self.resamples)
            weights = self._weights(random, end - begin)
            sums[begin:end] = weights @ columns
            if not whole:
                counts[begin:end] = weights @ present
        with np.errstate(invalid="ignore"):
            return (sums / counts).T

    def estimates(self, values: ArrayLike) -> list[Estimate]:
        """The mean of each figure with its interval; of values as `means` takes them."""
        flat = np.asarray(values, np.float64).reshape(-1, self.questions * self.repeats)
        return [
            Estimate.of(mean_of(row), resampled)
            for row, resampled in zip(flat, self.means(values), strict=True)
        ]

    def shares(self, values: ArrayLike) -> list[Estimate]:
        """`estimates` of values in [0, 1], as in `Estimate.of_share`."""
        return [Estimate.of_share(*pair) for pair in self._figures(values)]

    def differences(self, values: ArrayLike) -> list[Estimate]:
        """`estimates` of paired differences in [-1, 1], as in `Estimate.of_difference`."""
        return [Estimate.of_difference(*pair) for pair in self._figures(values)]

    def _figures(self, values: ArrayLike) -> Iterable[tuple[Numbers, Numbers]]:
        grid = np.asarray(values, np.float64).reshape(-1, self.questions, self.repeats)
        return zip(grid, self.means(grid), strict=True)

    def _weights(self, random: np.random.Generator, count: int) -> Numbers:
        """How often each resample holds each value, shape (count, questions x repeats)."""
        size = self.questions * self.repeats
        taken = random.integers(0, self.questions, (count, self.questions, 1))
        within = random.integers(0, self.repeats, (count, self.questions, self.repeats))
        within += taken * self.repeats + np.arange(count)[:, None, None] * size
        flat = np.bincount(within.ravel(), minlength=count * size)
        return flat.reshape(count, size).astype(np.float64)


def finite(value: float) -> float | None:
    """The value as JSON has it: None where there is none."""
    return float(value) if isfinite(value) else None


def mean_of(values: ArrayLike) -> float:
    """The mean of all values that are there; NaN if none is."""
    array = np.asarray(values, np.float64)
    present = array[np.isfinite(array)]
    return float(present.mean()) if present.size else float("nan")


def any_seed(seed: int) -> int:
    """A seed for numpy's generators, which refuse negative ones."""
    return seed % _SEEDS


def _question_means(values: ArrayLike) -> Numbers:
    """The mean of each question that has something to measure."""
    grid = np.asarray(values, np.float64)
    grid = grid.reshape(grid.shape[0], -1)
    present = np.isfinite(grid)
    some = present.any(axis=1)
    sums = np.where(present, grid, 0.0).sum(axis=1)[some]
    return sums / present.sum(axis=1)[some]


def _agree(means: Numbers) -> bool:
    return bool(means.size) and float(np.ptp(means)) < 1e-12


def wilson(share: float, total: float) -> tuple[float, float]:
    """The 95% interval of a share in [0, 1] of `total`; holds for small numbers, at 0 and at 1.

    Source: the score interval, Wilson 1927.
    """
    spread = _QUANTILE**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # Rounding must not move an end across the share itself.
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of the exact sign test of questions that gained and lost; 1 where none did.

    Where a question has one verdict, this is McNemar's test (1947) with the exact binomial
    distribution.
    """
    tosses = better + worse
    fewest = min(better, worse)
    # Whole numbers of any size, so that thousands of questions lose no precision.
    ways = tail = 1
    for heads in range(1, fewest + 1):
        ways = ways * (tosses - heads + 1) // heads
        tail += ways
    return min(2 * tail / 2**tosses, 1.0)


def auroc(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """How often a right trace scores higher than a wrong one; a tie counts half.

    Of arrays of shape (traces,); traces whose score is NaN are left out. 0.5 is chance, and 1 means
    that every right one scores higher; NaN unless there are both.
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

    All arrays have shape (points,); of equal points the first is one.
    """
    order = np.lexsort((np.arange(cost.size), -worth, cost))
    ranked = worth[order]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(ranked)[:-1]))
    front = np.zeros(cost.size, np.bool_)
    front[order] = ranked > best_before
    return front
