"""Two runs over the same questions: which is better, and is the difference more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from conviction.errors import InvalidSettingError
from conviction.evaluation import counted
from conviction.evaluation.results import QuestionResult
from conviction.evaluation.stored import Run
from conviction.evaluation.summary import proportion, without_false_certainty
from conviction.lab.statistics import Bootstrap, Estimate, finite, sign_test

_Pair = tuple[QuestionResult, QuestionResult]

SIGNIFICANT = 0.05
"""A run counts as worse only if chance alone would come out like that less often than this."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a second run compares to a first, over the questions that both have.

    Attributes:
        questions: Questions that both have.
        both_right: Those that both answer rightly.
        only_first_right: Those that only the first answers rightly.
        only_second_right: Those that only the second answers rightly.
        accuracies: Of the first and of the second, each with its Wilson interval.
        difference: Accuracy of the second minus that of the first, with Newcombe's interval.
        p: Two-sided p of McNemar's exact test: how likely a difference of this size is by chance.
        tokens: Mean tokens per question of the first and of the second.
        tokens_ratio: Tokens of the second over those of the first, with its bootstrap interval;
            its ends are NaN where all questions have the same ratio, or there is only one.
        notes: What was left out, and in what else the runs differ; whole sentences.
    """

    questions: int
    both_right: int
    only_first_right: int
    only_second_right: int
    accuracies: tuple[Estimate, Estimate]
    difference: Estimate
    p: float
    tokens: tuple[float, float]
    tokens_ratio: Estimate
    notes: tuple[str, ...] = ()

    @property
    def neither_right(self) -> int:
        """Questions that neither answers rightly."""
        known = self.both_right + self.only_first_right + self.only_second_right
        return self.questions - known

    @property
    def worse(self) -> bool:
        """Whether the second is worse by more than chance.

        Both must say so: the interval of the difference lies below 0, and McNemar's exact p is
        below `SIGNIFICANT`. The interval is approximate, and too narrow for a few questions.
        """
        return self.difference.high < 0 and self.p < SIGNIFICANT

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain JSON types; null where there is nothing to tell."""
        return {
            "questions": self.questions,
            "both_right": self.both_right,
            "only_first_right": self.only_first_right,
            "only_second_right": self.only_second_right,
            "neither_right": self.neither_right,
            "accuracies": [accuracy.to_dict() for accuracy in self.accuracies],
            "difference": self.difference.to_dict(),
            "mcnemar_p": self.p,
            "worse": self.worse,
            "tokens_per_question": [finite(tokens) for tokens in self.tokens],
            "tokens_ratio": self.tokens_ratio.to_dict(),
            "notes": list(self.notes),
        }


def compare(first: Run, second: Run, *, failures_wrong: bool = False, seed: int = 0) -> Comparison:
    """Compare a second run to a first, question by question.

    Questions that failed are left out, or count as wrong with `failures_wrong`. `seed` makes the
    interval of the tokens' ratio reproducible.

    Raises:
        InvalidSettingError: they have no question in common, a question or its right answer is not
            the same in both, or there are no right answers.
    """
    shared = _shared(first, second)
    pairs = [pair for pair in shared if failures_wrong or not (pair[0].failed or pair[1].failed)]
    if not pairs:
        raise _refused(first, second, "they have no question in common that both answered")
    right = np.array([[bool(a.correct), bool(b.correct)] for a, b in pairs]).T
    tokens = np.array([[a.tokens, b.tokens] for a, b in pairs], np.float64).T
    only_first = int((right[0] & ~right[1]).sum())
    only_second = int((right[1] & ~right[0]).sum())
    both = int((right[0] & right[1]).sum())
    first_right, second_right = (proportion(int(one.sum()), len(pairs)) for one in right)
    return Comparison(
        questions=len(pairs),
        both_right=both,
        only_first_right=only_first,
        only_second_right=only_second,
        accuracies=(first_right, second_right),
        difference=paired_difference(both, only_first, only_second, len(pairs)),
        p=sign_test(only_second, only_first),
        tokens=(float(tokens[0].mean()), float(tokens[1].mean())),
        tokens_ratio=_ratio(tokens, Bootstrap(len(pairs), seed=seed)),
        notes=_notes(first, second, shared=len(shared), paired=len(pairs)),
    )


def paired_difference(both: int, only_first: int, only_second: int, questions: int) -> Estimate:
    """The second's share of right answers less the first's, with its 95% interval.

    It has a width also where the runs never differ, or always in the same direction. Source:
    Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10, which joins the score intervals
    of both shares by their correlation.
    """
    first = proportion(both + only_first, questions)
    second = proportion(both + only_second, questions)
    together = _correlation(both, only_first, only_second, questions)
    value = (only_second - only_first) / questions

    def reach(one: float, other: float) -> float:
        return sqrt(max(one**2 - 2 * together * one * other + other**2, 0.0))

    below = reach(second.value - second.low, first.high - first.value)
    above = reach(second.high - second.value, first.value - first.low)
    return Estimate(value, max(value - below, -1.0), min(value + above, 1.0))


def _correlation(both: int, only_first: int, only_second: int, questions: int) -> float:
    """Of the two runs' right answers, in [-1, 1], with Newcombe's correction for continuity."""
    neither = questions - both - only_first - only_second
    first = (both + only_first) * (only_second + neither)
    second = (both + only_second) * (only_first + neither)
    spread = first * second
    if not spread:
        return 0.0
    excess = both * neither - only_first * only_second
    return (max(excess - questions / 2, 0.0) if excess > 0 else excess) / sqrt(spread)


def _shared(first: Run, second: Run) -> Sequence[_Pair]:
    """The results of the questions that both have, in the first one's order."""
    others = {result.id: result for result in second.results}
    shared = [(result, others[result.id]) for result in first.results if result.id in others]
    if not shared:
        raise _refused(first, second, "they have no question in common")
    for mine, other in shared:
        if mine.question != other.question:
            raise _refused(first, second, f"the question {mine.id!r} has other words")
        if mine.gold != other.gold:
            found = f"the right answer to {mine.id!r} is {mine.gold!r} and {other.gold!r}"
            raise _refused(first, second, found)
        if mine.gold is None:
            raise _refused(first, second, f"there is no right answer to {mine.id!r}")
    return shared


def _refused(first: Run, second: Run, found: str) -> InvalidSettingError:
    return InvalidSettingError(
        tried=f"compare {first.path} with {second.path}",
        found=found,
        remedy="Compare runs over the same questions, with right answers.",
    )


def _ratio(tokens: np.ndarray[Any, np.dtype[np.float64]], bootstrap: Bootstrap) -> Estimate:
    first, second = bootstrap.means(tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(tokens[1].sum() / tokens[0].sum())
        return without_false_certainty(Estimate.of(ratio, second / first))


def _notes(first: Run, second: Run, *, shared: int, paired: int) -> tuple[str, ...]:
    notes: list[str] = []
    for run in (first, second):
        if len(run.results) > shared:
            notes.append(f"Questions that only {run.path} has: {len(run.results) - shared}.")
        if len(run.results) < run.description.data.questions:
            whole = counted(run.description.data.questions, "question")
            notes.append(f"{run.path} is not complete: it has {len(run.results):,} of {whole}.")
    if shared > paired:
        notes.append(f"Left out, because they failed in one of the runs: {shared - paired}.")
    kinds = [run.description.settings.get("answers") for run in (first, second)]
    if kinds[0] != kinds[1]:
        notes.append(f"Answers were compared as {kinds[0]} in one and as {kinds[1]} in the other.")
    return tuple(notes)
