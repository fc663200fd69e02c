"""What a diagnosis comes down to, in plain words."""

from math import isfinite

from conviction.lab.choosing import Choice, RankingChoice
from conviction.lab.statistics import sign_test

ALPHA = 0.05
"""A difference less likely than this by chance counts as shown."""

FEWEST_DIFFERENT = next(count for count in range(1, 100) if sign_test(count, 0) < ALPHA)
"""Questions that have to differ, all the same way, before a difference can be shown at all."""

_MAJORITY = "majority"
_NOTHING_TO_TELL = (
    "Use majority: no question has both right and wrong traces among its votes, so there is "
    "nothing that confidence could tell apart."
)


def advise(choice: Choice, ranking: RankingChoice | None, mixed: int) -> tuple[str, str]:
    """What to do, and with which policy.

    A filter is advised only if, on the questions that did not choose it, both the interval and an
    exact paired test show a gain: resampled intervals of few questions are too narrow.

    Args:
        choice: The best filter of one half, on the other half.
        ranking: The measure that ranks best on one half, on the other; None where none could be
            chosen.
        mixed: Questions with both right and wrong traces.
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


def _found(choice: Choice) -> str:
    chose, others = choice.questions
    there = f"The best filter on {chose} of the questions ({choice.spec}, "
    there += f"{_points(choice.where_chosen.value)} there)"
    if not choice.better + choice.worse:
        return f"{there} changes no verdict for better or worse on the {others} others."
    interval = (
        f", 95% interval {100 * choice.elsewhere.low:+.1f} to {100 * choice.elsewhere.high:+.1f}"
        if isfinite(choice.elsewhere.low)
        else ""
    )
    return (
        f"{there} comes to {_points(choice.elsewhere.value)} against majority on the {others} "
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
