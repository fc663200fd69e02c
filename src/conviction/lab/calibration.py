"""How far the share of the vote can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from conviction.lab.statistics import Bootstrap, Estimate, mean_of
from conviction.lab.trials import Trials

_BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """How often majority is right where its leader has a certain share of the vote.

    Attributes:
        low: Least share in this bin.
        high: Its end; the last bin includes it.
        questions: How many questions fell into it, in the mean over draws.
        share: Their mean share of the vote.
        accuracy: Share of them that majority got right.
    """

    low: float
    high: float
    questions: float
    share: float
    accuracy: Estimate


def calibration(trials: Trials) -> tuple[CalibrationBin, ...]:
    """Majority's share of the vote against how often it is right, by tenths of the share.

    Args:
        trials: Runs of majority, the first candidate; those in which no trace voted are left out.
    """
    runs = trials.runs[0]
    voted = ~runs["empty"]
    place = np.minimum((runs["share"] * _BINS).astype(int), _BINS - 1)
    inside = [voted & (place == number) for number in range(_BINS)]
    accuracy = Bootstrap(*runs.shape).shares(
        [np.where(mask, runs["correct"], nan) for mask in inside]
    )
    return tuple(
        CalibrationBin(
            low=number / _BINS,
            high=(number + 1) / _BINS,
            questions=float(mask.sum() / runs.shape[1]),
            share=mean_of(runs["share"][mask]),
            accuracy=accuracy[number],
        )
        for number, mask in enumerate(inside)
        if mask.any()
    )


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance of share and accuracy over the questions; NaN without any."""
    total = sum(one.questions for one in bins)
    if not total:
        return nan
    return sum(one.questions * abs(one.share - one.accuracy.value) for one in bins) / total
