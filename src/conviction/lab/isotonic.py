"""How often verdicts are right as what they show grows: steps that never fall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from conviction.lab.statistics import Estimate, Numbers, wilson

_PRIOR = 2.0
"""Prior weight in questions."""

_DOUBT = 0.1
"""How far the prior is drawn from what verdicts show to one half."""


@dataclass(frozen=True, slots=True)
class Step:
    """Verdicts that show about the same.

    Attributes:
        low: The least that one of them shows.
        high: The most.
        mean: What they show in the mean.
        right: How often they were right, with its 95% interval.
        questions: How many independent questions stand behind that.
    """

    low: float
    high: float
    mean: float
    right: Estimate
    questions: float


@dataclass(frozen=True, slots=True)
class Steps:
    """How often verdicts are right by what they show: a figure that never falls as it grows.

    Attributes:
        steps: The lowest first; empty if there was no verdict.
    """

    steps: tuple[Step, ...]

    @classmethod
    def fit(cls, shown: Numbers, right: NDArray[np.bool_], voted: NDArray[np.bool_]) -> Self:
        """Learn from verdicts of which it is known whether they are right.

        Isotonic regression by pooling adjacent violators (Ayer et al. 1955), over bins of at least
        one question's worth of draws each. A bin's interval is Wilson's for its effective number of
        questions (Kish 1965: the squared sum of weights over the sum of squares). Its figure is
        shrunk toward what its verdicts show with a prior weight of two questions; it stays inside
        the interval, and is never 0 or 1.

        Args:
            shown: What each verdict shows, in [0, 1], shape (questions, draws).
            right: Whether it is right.
            voted: Whether there is one; runs without any vote are left out.
        """
        questions, draws = shown.shape
        numbers = np.nonzero(voted)[0]
        shown, right = shown[voted], right[voted]
        bins = _bins(shown, draws)
        piles: list[_Pile] = []
        for number in range(int(bins.max(initial=-1)) + 1):
            inside = bins == number
            counts = np.bincount(numbers[inside], minlength=questions).astype(np.float64)
            good = np.bincount(numbers[inside & right], minlength=questions).astype(np.float64)
            piles.append(_Pile(counts, good, shown[inside]))
            while len(piles) > 1 and piles[-2].figure >= piles[-1].figure:
                upper = piles.pop()
                piles[-1] = piles[-1].joined(upper)
        return cls(tuple(pile.step() for pile in piles))

    def at(self, shown: float) -> Estimate | None:
        """How often verdicts that show this are right, interpolated between the steps' means.

        Constant above the most that any verdict showed, None below the least.
        """
        if not self.steps or shown < self.steps[0].low:
            return None
        means = [step.mean for step in self.steps]
        ends: list[Sequence[float]] = [
            [getattr(step.right, name) for step in self.steps] for name in ("value", "low", "high")
        ]
        return Estimate(*(float(np.interp(shown, means, end)) for end in ends))


def _bins(shown: Numbers, least: int) -> NDArray[np.int64]:
    """The bin of each verdict: equal ones are never parted, and each bin holds at least so many."""
    values, places, counts = np.unique(shown, return_inverse=True, return_counts=True)
    bins = np.zeros(values.size, np.int64)
    held = number = 0
    for place, count in enumerate(counts.tolist()):
        if held >= least:
            held, number = 0, number + 1
        bins[place] = number
        held += count
    if held < least:
        bins[bins == number] = max(number - 1, 0)
    return bins[places]


@dataclass(frozen=True, slots=True, eq=False)
class _Pile:
    """Verdicts of one bin: how many of each question, how many of these are right."""

    counts: Numbers
    good: Numbers
    shown: Numbers

    @property
    def questions(self) -> float:
        """Their effective number."""
        return float(self.counts.sum() ** 2 / (self.counts**2).sum())

    @property
    def share(self) -> float:
        """The part that is right."""
        return float(self.good.sum() / self.counts.sum())

    @property
    def figure(self) -> float:
        guess = (1 - _DOUBT) * float(self.shown.mean()) + _DOUBT / 2
        return (self.share * self.questions + _PRIOR * guess) / (self.questions + _PRIOR)

    def joined(self, other: "_Pile") -> "_Pile":
        shown = np.concatenate((self.shown, other.shown))
        return _Pile(self.counts + other.counts, self.good + other.good, shown)

    def step(self) -> Step:
        return Step(
            low=float(self.shown.min()),
            high=float(self.shown.max()),
            mean=float(self.shown.mean()),
            right=Estimate(self.figure, *wilson(self.share, self.questions)),
            questions=self.questions,
        )
