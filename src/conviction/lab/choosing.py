"""The best of many on one half of the questions, reported on the other.

The best of many looks better than it is on the questions that made it the best; what it does on
others is what there is to expect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric
from conviction.lab.statistics import Bootstrap, Estimate, mean_of, sign_test
from conviction.lab.trials import Trials
from conviction.policies import DeepConfOffline

Measure = tuple[Metric, int | None]
"""How a trace's confidence is measured: the metric, and tokens in a group where it has groups."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The filter that is best on one half of the questions, and what it does on the other.

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None where the metric has none.
        keep: Share of the traces that are kept.
        spec: The filter as a policy on the command line.
        questions: Questions that chose it, and the others.
        where_chosen: Its accuracy less majority's on those that chose it: too good to be true.
        elsewhere: The same on the others.
        better: How many of the others it answers rightly more often than majority does.
        worse: How many of the others less often.
        p: Two-sided p of the exact sign test of these two.
    """

    metric: Metric
    window: int | None
    keep: float
    spec: str
    questions: tuple[int, int]
    where_chosen: Estimate
    elsewhere: Estimate
    better: int
    worse: int
    p: float


@dataclass(frozen=True, slots=True)
class RankingChoice:
    """The measure that ranks best on one half of the questions, and how it ranks on the other.

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None where the metric has none.
        where_chosen: Its AUROC among the votes on those that chose it: too good to be true.
        elsewhere: The same on the others; NaN where none has both right and wrong votes.
        mixed: Questions with both right and wrong votes, of those that chose and of the others.
    """

    metric: Metric
    window: int | None
    where_chosen: Estimate
    elsewhere: Estimate
    mixed: tuple[int, int]


def choose_filter(trials: Trials, half: NDArray[np.bool_]) -> Choice:
    """The filter with the best accuracy on one half; among equals the one that drops least.

    Args:
        trials: Runs of majority, the first candidate, and of filters.
        half: The questions that choose, shape (questions,).
    """
    right = trials["correct"].astype(float)
    there = right[1:, half].mean(axis=(1, 2))
    filters = filters_of(trials)
    best = max(range(len(filters)), key=lambda number: (there[number], filters[number].keep))
    gain = right[1 + best] - right[0]
    where_chosen, elsewhere = (
        Bootstrap(int(part.sum()), gain.shape[1]).differences(gain[part])[0]
        for part in (half, ~half)
    )
    per_question = gain[~half].sum(axis=1)
    better, worse = int((per_question > 0).sum()), int((per_question < 0).sum())
    policy = filters[best]
    return Choice(
        metric=policy.metric,
        window=policy.window,
        keep=policy.keep,
        spec=trials.candidates[1 + best].spec,
        questions=(int(half.sum()), int((~half).sum())),
        where_chosen=where_chosen,
        elsewhere=elsewhere,
        better=better,
        worse=worse,
        p=sign_test(better, worse),
    )


def choose_ranking(
    measures: Sequence[Measure], areas: NDArray[np.float64], half: NDArray[np.bool_]
) -> RankingChoice | None:
    """The measure with the highest AUROC on one half; the first among equals.

    Args:
        measures: What was measured.
        areas: AUROC among the votes, shape (measures, questions); NaN where there is none.
        half: The questions that choose, shape (questions,).

    Returns:
        None where no question of that half has both right and wrong votes.
    """
    there = [mean_of(row) for row in areas[:, half]]
    if not np.isfinite(there).any():
        return None
    best = int(np.nanargmax(there))
    where_chosen, elsewhere = (
        Bootstrap(int(part.sum())).shares(areas[best, part])[0] for part in (half, ~half)
    )
    mixed = np.isfinite(areas[best])
    metric, window = measures[best]
    return RankingChoice(
        metric,
        window,
        where_chosen,
        elsewhere,
        mixed=(int(mixed[half].sum()), int(mixed[~half].sum())),
    )


def best_windows(
    measures: Sequence[Measure], areas: NDArray[np.float64], half: NDArray[np.bool_]
) -> dict[Metric, int | None]:
    """The window of each metric with the highest AUROC on one half; see `choose_ranking`."""
    found: dict[Metric, int | None] = {}
    for metric in dict.fromkeys(one for one, _ in measures):
        own = [number for number, (one, _) in enumerate(measures) if one is metric]
        chosen = choose_ranking([measures[number] for number in own], areas[own], half)
        found[metric] = chosen.window if chosen else measures[own[0]][1]
    return found


def filters_of(trials: Trials) -> list[DeepConfOffline]:
    """The filters among the candidates, in order."""
    policies = [candidate.policy for candidate in trials.candidates]
    return [policy for policy in policies if isinstance(policy, DeepConfOffline)]
