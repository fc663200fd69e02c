"""The best of many on one half of the questions, reported on the other, and the advice from it.

On the questions that chose it, the best of many looks better than it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric
from conviction.lab.statistics import Bootstrap, Estimate, mean_of, sign_test
from conviction.lab.trials import Trials
from conviction.policies import DeepConfOffline

Measure = tuple[Metric, int | None]
"""How a trace's confidence is measured: the metric, and tokens in a group where it has groups."""

ALPHA = 0.05
"""A difference less likely than this by chance counts as shown."""

FEWEST_DIFFERENT = next(count for count in range(1, 100) if sign_test(count, 0) < ALPHA)
"""Questions that have to differ, all the same way, before a difference can be shown at all."""

_MAJORITY = "majority"
_NOTHING_TO_TELL = (
    "Use majority: no question has both right and wrong traces among its votes, so there is "
    "nothing that confidence could tell apart."
)


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """The filter that is best on one half of the questions, and what it does on the other.

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None where the metric has none.
        keep: Share of the traces that are kept.
        spec: The filter as a policy on the command line.
        questions: Questions that chose it, and the others.
        where_chosen: Its accuracy less majority's on those that chose it: in-sample, optimistic.
        elsewhere: The same on the others.
        better: Others that it answers rightly more often than majority does.
        worse: Others that it answers rightly less often.
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
        where_chosen: Its AUROC among the votes on those that chose it: in-sample, optimistic.
        elsewhere: The same on the others; NaN where none has both right and wrong votes.
        mixed: Questions with both right and wrong votes, of those that chose and of the others.
    """

    metric: Metric
    window: int | None
    where_chosen: Estimate
    elsewhere: Estimate
    mixed: tuple[int, int]


def choose_filter(trials: Trials, half: NDArray[np.bool_]) -> FilterChoice:
    """The filter with the best accuracy on one half; among equals the one that drops least.

    The first candidate is majority, the others are filters; `half` has shape (questions,).
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
    return FilterChoice(
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

    `areas` are the AUROC among the votes, shape (measures, questions), NaN where there is none.
    None where no question of that half, shape (questions,), has both right and wrong votes.
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
    both = int(mixed[half].sum()), int(mixed[~half].sum())
    return RankingChoice(metric, window, where_chosen, elsewhere, both)


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


def advise(choice: FilterChoice, ranking: RankingChoice | None, mixed: int) -> tuple[str, str]:
    """What to do, and with which policy, given the number of questions with right and wrong votes.

    A filter is advised only if, on the questions that did not choose it, both the interval and an
    exact paired test show a gain: resampled intervals of few questions are too narrow.
    """
    if not mixed:
        return _NOTHING_TO_TELL, _MAJORITY
    chose, others = choice.questions
    ranks = _ranks(ranking)
    if others < FEWEST_DIFFERENT:
        few = (
            f"there are too few questions to tell. What is chosen on {_questions(chose)} has to "
            f"make a difference on at least {FEWEST_DIFFERENT} others, and there "
            f"{'is' if others == 1 else 'are'} {others}."
        )
        return f"Use majority: {few} {ranks}".strip(), _MAJORITY
    if choice.where_chosen.value <= 0:
        least = f"no filter beats it even on the {chose} questions on which filters were chosen."
        return f"Use majority: {least} {ranks}".strip(), _MAJORITY
    found = f"{_found(choice)} {ranks}".strip()
    shown = choice.p < ALPHA
    if shown and choice.elsewhere.low > 0:
        return f"Confidence helps here: use {choice.spec}. {found}", choice.spec
    if shown and choice.elsewhere.high < 0:
        return f"Use majority: filtering by confidence does harm here. {found}", _MAJORITY
    return f"Use majority: no gain from confidence could be shown. {found}", _MAJORITY


def _found(choice: FilterChoice) -> str:
    chose, others = choice.questions
    there = f"The best filter on {chose} of the questions ({choice.spec}, "
    there += f"{_points(choice.where_chosen.value)} there)"
    if not choice.better + choice.worse:
        return f"{there} changes no verdict for better or worse on the {others} others."
    gain, interval = choice.elsewhere, ""
    if isfinite(gain.low):
        interval = f", 95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    return (
        f"{there} comes to {_points(gain.value)} against majority on the {others} "
        f"others{interval}: better on {choice.better} of them, worse on {choice.worse} (exact "
        f"sign test: p = {choice.p:.2g})."
    )


def _ranks(ranking: RankingChoice | None) -> str:
    if ranking is None:
        return ""
    measure = f"{ranking.metric}, window {ranking.window}" if ranking.window else ranking.metric
    best = f"The metric that ranks best on one half of the questions ({measure})"
    if not ranking.mixed[1]:
        return f"{best} has nothing to rank on the other: no question has right and wrong votes."
    there = ranking.elsewhere
    return (
        f"{best} puts a right trace above a wrong one of the same question in {there.value:.0%} of "
        f"all pairs on the other half (chance: 50%; 95% interval {there.low:.0%} to "
        f"{there.high:.0%}; {_questions(ranking.mixed[1])} with both)."
    )


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
