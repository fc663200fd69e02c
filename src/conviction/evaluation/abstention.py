"""What a calibration says of a run: how many are right, and which answers it withholds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from conviction.evaluation.results import QuestionResult
from conviction.evaluation.summary import estimate_to_dict, finite, proportion
from conviction.lab.calibration import Calibration
from conviction.lab.statistics import Estimate, mean_of
from conviction.verdict import Right


@dataclass(frozen=True, slots=True)
class Abstention:
    """A run as a calibration sees it. Questions that failed are left out.

    Attributes:
        pool: Name of the recording that was learned from.
        learned_from: Its questions.
        below: Least calibrated probability of an answer that is given; None to give all.
        told: Verdicts with a calibrated probability.
        untold: Verdicts with an answer and without one, which are withheld if any are.
        expected: Mean probability of those that are graded; NaN if none is.
        observed: How many of the same were right, with its Wilson interval.
        answered: Questions with an answer that is given.
        abstained: Ids of the questions whose answer is withheld.
        coverage: Share of the questions that are answered, with its Wilson interval.
        accuracy: Share of the answered ones that are right, with its Wilson interval.
    """

    pool: str
    learned_from: int
    below: float | None
    told: int
    untold: int
    expected: float
    observed: Estimate
    answered: int
    abstained: tuple[str, ...]
    coverage: Estimate
    accuracy: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; null where there is nothing to tell."""
        return {
            "pool": self.pool,
            "questions": self.learned_from,
            "told": self.told,
            "untold": self.untold,
            "expected": finite(self.expected),
            "observed": estimate_to_dict(self.observed),
            "abstain_below": self.below,
            "answered": self.answered,
            "abstained": len(self.abstained),
            "coverage": estimate_to_dict(self.coverage),
            "accuracy_of_answered": estimate_to_dict(self.accuracy),
            "abstained_questions": list(self.abstained),
        }


def abstain(
    results: Sequence[QuestionResult], calibration: Calibration, below: float | None
) -> Abstention:
    """Withhold the answers of a run that are not probable enough to be right.

    Args:
        results: The results of the run.
        calibration: Made with its policy.
        below: Least probability of an answer that is given; None to give all.
    """
    finished = [result for result in results if not result.failed]
    answers = [result for result in finished if result.answer is not None]
    found = {one.id: calibration.right(one.share, one.votes, one.ended) for one in answers}
    right = {name: value for name, value in found.items() if isinstance(value, Right)}
    graded = [one for one in answers if one.id in right and one.correct is not None]
    given = [
        one
        for one in answers
        if below is None or (one.id in right and right[one.id].value >= below)
    ]
    kept = {one.id for one in given}
    marked = [one.correct for one in given if one.correct is not None]
    return Abstention(
        pool=calibration.pool,
        learned_from=calibration.questions,
        below=below,
        told=len(right),
        untold=len(answers) - len(right),
        expected=mean_of([right[one.id].value for one in graded]) if graded else nan,
        observed=proportion(sum(one.correct or False for one in graded), len(graded)),
        answered=len(given),
        abstained=tuple(one.id for one in answers if one.id not in kept),
        coverage=proportion(len(given), len(finished)),
        accuracy=proportion(sum(marked), len(marked)),
    )
