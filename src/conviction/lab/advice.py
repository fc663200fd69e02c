"""What a diagnosis comes down to, in plain words."""

from dataclasses import dataclass

from conviction.confidence import Metric
from conviction.lab.statistics import Estimate

_MAJORITY = "majority"
_NOTHING_TO_TELL = (
    "Use majority: no question has both right and wrong traces among its votes, so there is "
    "nothing that confidence could tell apart."
)


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
    """

    metric: Metric
    window: int | None
    keep: float
    spec: str
    questions: tuple[int, int]
    where_chosen: Estimate
    elsewhere: Estimate


def advise(choice: Choice, ranking: Estimate, mixed: int) -> tuple[str, str]:
    """What to do, and with which policy.

    Args:
        choice: The best filter of one half, on the other half.
        ranking: AUROC of the metric that ranks best among the votes.
        mixed: Questions with both right and wrong traces.
    """
    if not mixed:
        return _NOTHING_TO_TELL, _MAJORITY
    chose, others = choice.questions
    found = (
        f"The best filter on {chose} of the questions ({choice.spec}, "
        f"{_points(choice.where_chosen.value)} there) comes to {_points(choice.elsewhere.value)} "
        f"against majority on the {others} others, 95% interval "
        f"{100 * choice.elsewhere.low:+.1f} to {100 * choice.elsewhere.high:+.1f}."
    )
    ranks = (
        f"The metric that ranks best puts a right trace above a wrong one of the same question in "
        f"{ranking.value:.0%} of all pairs (chance: 50%; interval {ranking.low:.0%} to "
        f"{ranking.high:.0%})."
    )
    if choice.where_chosen.value <= 0:
        least = f"no filter beats it even on the {chose} questions on which filters were chosen."
        return f"Use majority: {least} {ranks}", _MAJORITY
    if choice.elsewhere.low > 0:
        return f"Confidence helps here: use {choice.spec}. {found} {ranks}", choice.spec
    if choice.elsewhere.high < 0:
        return f"Use majority: filtering by confidence does harm here. {found} {ranks}", _MAJORITY
    return f"Use majority: no gain from confidence could be shown. {found} {ranks}", _MAJORITY


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
