"""Figures of a run: accuracy with its interval, tokens, time, failures, and abstention."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isclose, nan
from typing import Any

from conviction.evaluation.results import QuestionResult
from conviction.lab.calibration import Calibration
from conviction.lab.statistics import Bootstrap, Estimate, finite, mean_of, wilson
from conviction.verdict import Right


@dataclass(frozen=True, slots=True)
class Sharing:
    """Outcomes of questions that shared a total of tokens; those that failed are left out.

    Attributes:
        total: Tokens that they shared.
        spent: Tokens of all traces, also of those that were lost to an interruption.
        settled: Questions of which the policy settled on an answer.
        whole_budget: Those answered by all the traces that one question may have.
        contested: Those answered by the votes that they had when the total was spent, or when their
            policy ended without a safe lead.
        unanswered: Those without an answer.
    """

    total: int
    spent: int
    settled: int
    whole_budget: int
    contested: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run, over the questions that came to an end.

    Attributes:
        questions: Questions of the data.
        finished: Those with a verdict.
        failed: Those that failed.
        right: Those with a right verdict.
        counted: Questions behind the accuracy; failed ones are among them only if asked for.
        accuracy: Share of the right ones, with its Wilson interval; NaN without right answers.
        no_answer: Verdicts without an answer; they count as wrong.
        tokens: Mean tokens per finished question, with its bootstrap interval; its ends are NaN
            where all questions took the same, or there is only one.
        all_tokens: Tokens of all questions, failed ones too.
        traces: Mean traces per finished question.
        seconds: Mean wall time per finished question.
        failures: Why questions failed, each reason once.
        sharing: What became of them, where they shared a total of tokens.
    """

    questions: int
    finished: int
    failed: int
    right: int
    counted: int
    accuracy: Estimate
    no_answer: int
    tokens: Estimate
    all_tokens: int
    traces: float
    seconds: float
    failures: tuple[str, ...]
    sharing: Sharing | None = None

    @property
    def complete(self) -> bool:
        """Whether every question has its verdict."""
        return self.finished == self.questions

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON types; null where there is nothing to tell."""
        return {
            "complete": self.complete,
            "questions": self.questions,
            "finished": self.finished,
            "failed": self.failed,
            "right": self.right,
            "counted": self.counted,
            "accuracy": self.accuracy.to_dict(),
            "no_answer": self.no_answer,
            "tokens_per_question": self.tokens.to_dict(),
            "tokens": self.all_tokens,
            "traces_per_question": finite(self.traces),
            "seconds_per_question": finite(self.seconds),
            "failures": list(self.failures),
            "sharing": asdict(self.sharing) if self.sharing else None,
        }


def summarise(
    results: Sequence[QuestionResult], questions: int, *, failures_wrong: bool = False
) -> Summary:
    """The figures of a run over `questions` questions.

    Questions that failed are left out of the accuracy, or count as wrong with `failures_wrong`.
    """
    finished = [result for result in results if not result.failed]
    failed = [result for result in results if result.failed]
    right, counted = accuracy_counts(results, failures_wrong=failures_wrong)
    tokens = Estimate(nan, nan, nan)
    if finished:
        [measured] = Bootstrap(len(finished)).estimates([result.tokens for result in finished])
        tokens = without_false_certainty(measured)
    return Summary(
        questions=questions,
        finished=len(finished),
        failed=len(failed),
        right=right,
        counted=counted,
        accuracy=proportion(right, counted),
        no_answer=sum(result.answer is None for result in finished),
        tokens=tokens,
        all_tokens=sum(result.tokens for result in results),
        traces=mean_of([result.traces for result in finished]),
        seconds=mean_of([result.seconds for result in finished]),
        failures=tuple(dict.fromkeys(result.error for result in failed if result.error)),
    )


def summarise_sharing(results: Sequence[QuestionResult], total: int, spent: int) -> Sharing:
    """Outcomes of questions that shared a total of tokens, of which some were spent."""
    answered = [result for result in results if result.answer is not None]
    return Sharing(
        total=total,
        spent=spent,
        settled=sum(result.settled for result in answered),
        whole_budget=sum(result.ended == "budget" for result in answered),
        contested=sum(result.contested for result in answered),
        unanswered=sum(result.answer is None and not result.failed for result in results),
    )


def accuracy_counts(
    results: Sequence[QuestionResult], *, failures_wrong: bool = False
) -> tuple[int, int]:
    """How many verdicts are right, and of how many questions."""
    graded = [result.correct for result in results if result.correct is not None]
    wrong = sum(result.failed and result.gold is not None for result in results)
    return sum(graded), len(graded) + (wrong if failures_wrong else 0)


def proportion(successes: int, total: int) -> Estimate:
    """A share with its Wilson interval; NaN of nothing."""
    if not total:
        return Estimate(nan, nan, nan)
    share = successes / total
    return Estimate(share, *wilson(share, total))


def without_false_certainty(estimate: Estimate) -> Estimate:
    """A figure from a bootstrap, without its interval where that has no width.

    Resampling questions that all agree, or a single one, says nothing about other questions.
    """
    if isclose(estimate.low, estimate.high, rel_tol=1e-9):
        return Estimate(estimate.value, nan, nan)
    return estimate


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
            "observed": self.observed.to_dict(),
            "abstain_below": self.below,
            "answered": self.answered,
            "abstained": len(self.abstained),
            "coverage": self.coverage.to_dict(),
            "accuracy_of_answered": self.accuracy.to_dict(),
            "abstained_questions": list(self.abstained),
        }


def abstain(
    results: Sequence[QuestionResult], calibration: Calibration, below: float | None
) -> Abstention:
    """Withhold the answers of a run whose calibrated probability lies below a limit, if any."""
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
        expected=mean_of([right[one.id].value for one in graded]),
        observed=proportion(sum(one.correct or False for one in graded), len(graded)),
        answered=len(given),
        abstained=tuple(one.id for one in answers if one.id not in kept),
        coverage=proportion(len(given), len(finished)),
        accuracy=proportion(sum(marked), len(marked)),
    )
