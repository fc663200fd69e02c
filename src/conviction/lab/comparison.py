"""Candidates side by side, and the Pareto front of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.errors import InvalidSettingError
from conviction.lab.candidates import Candidate
from conviction.lab.columns import COLUMNS, Figure, Resampled
from conviction.lab.replay import CONTINUES, RUN_LIVE
from conviction.lab.sources import TraceSource
from conviction.lab.statistics import any_seed, finite, pareto_front
from conviction.lab.trials import Trials

_ANSWERS_ONLY = "it needs token confidences, and this pool holds answers only"
_RECORD_MORE = (
    "Use policies without confidence, such as majority and adaptive-consistency; or record with an "
    "engine that gives log-probabilities."
)

_RESOLVING = 30
"""Fewer questions than this come with a note."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one candidate by column: means over questions.

    Each column is also an attribute, as in `row.accuracy`.
    """

    candidate: Candidate
    figures: Mapping[str, Figure]

    def __getattr__(self, name: str) -> Any:
        if name != "figures" and name in self.figures:
            return self.figures[name]
        raise AttributeError(f"{type(self).__name__} has no column {name!r}")

    def record(self) -> dict[str, Any]:
        """The row as plain JSON types; figures without a value are None."""
        values: dict[str, Any] = {
            "policy": self.candidate.label,
            "spec": self.candidate.spec,
            "budget": self.candidate.policy.budget,
            "concurrency": finite(self.candidate.concurrency),
        }
        for column in COLUMNS:
            values |= column.record(self.figures[column.name])
        return values


def compare(trials: Trials, *, questions: NDArray[np.bool_] | None = None) -> tuple[Row, ...]:
    """All candidates, each against the first; on some questions, shape (questions,), or on all."""
    runs = trials.runs if questions is None else trials.runs[:, questions]
    resampled = Resampled(runs, [candidate.budget for candidate in trials.candidates])
    return tuple(
        Row(candidate, {one.name: one.figure(resampled, number) for one in COLUMNS})
        for number, candidate in enumerate(trials.candidates)
    )


@dataclass(frozen=True, eq=False)
class Front:
    """The candidates that no other beats in both accuracy and tokens.

    They are chosen on one half of the questions and reported on the other: the best of hundreds of
    candidates looks better than it is on the questions that made it the best.

    Attributes:
        chosen: Which candidates, shape (candidates,).
        where_chosen: All candidates on the questions that chose.
        elsewhere: All candidates on the other questions.
        questions: Questions in either half.
    """

    chosen: NDArray[np.bool_]
    where_chosen: tuple[Row, ...] = field(repr=False)
    elsewhere: tuple[Row, ...] = field(repr=False)
    questions: tuple[int, int]

    @property
    def rows(self) -> list[tuple[Row, Row]]:
        """Each chosen candidate, where it was chosen and elsewhere."""
        pairs = zip(self.where_chosen, self.elsewhere, strict=True)
        return [pair for pair, chosen in zip(pairs, self.chosen, strict=True) if chosen]


def find_front(trials: Trials, *, seed: int = 0) -> Front:
    """The Pareto front of accuracy and tokens; `seed` decides which half of the questions chooses.

    Raises:
        InvalidSettingError: there are fewer than two questions.
    """
    half = halves(len(trials.question_ids), seed=seed)
    where_chosen, elsewhere = (compare(trials, questions=part) for part in (half, ~half))
    cost = np.array([row.tokens.value for row in where_chosen])
    worth = np.array([row.accuracy.value for row in where_chosen])
    sizes = int(half.sum()), int((~half).sum())
    return Front(pareto_front(cost, worth), where_chosen, elsewhere, sizes)


def halves(questions: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """A random half of the questions, shape (questions,); the smaller one if they are odd.

    Raises:
        InvalidSettingError: there are fewer than two questions.
    """
    if questions < 2:
        raise InvalidSettingError(
            tried="choose on one half of the questions and report on the other",
            found=f"there is {questions} question",
            remedy="Record at least two; dozens tell something.",
        )
    half = np.zeros(questions, np.bool_)
    half[np.random.default_rng(any_seed(seed)).permutation(questions)[: questions // 2]] = True
    return half


def distinct(trials: Trials) -> Trials:
    """Without candidates whose every run equals that of one before on the same machine.

    Some settings of a sweep do the same, such as waves of 8 and of 16 with a budget of 8.
    """
    first: dict[tuple[float, bytes], int] = {}
    for number, candidate in enumerate(trials.candidates):
        first.setdefault((candidate.concurrency, trials.runs[number].tobytes()), number)
    kept = sorted(first.values())
    candidates = tuple(trials.candidates[number] for number in kept)
    return replace(trials, candidates=candidates, runs=trials.runs[kept])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that cannot be replayed on these traces, why, and in a sentence what to do."""

    candidate: Candidate
    reason: str
    remedy: str


def runnable(
    candidates: Sequence[Candidate], source: TraceSource
) -> tuple[list[Candidate], list[Refusal]]:
    """Which candidates the recorded traces allow, and why not the others."""
    able: list[Candidate] = []
    refused: list[Refusal] = []
    for one in candidates:
        if one.policy.needs_continuation:
            refused.append(Refusal(one, CONTINUES, RUN_LIVE))
        elif one.policy.needs_confidence and not source.top_k:
            refused.append(Refusal(one, _ANSWERS_ONLY, _RECORD_MORE))
        else:
            able.append(one)
    return able, refused


def remarks(trials: Trials, *, with_replacement: bool = False) -> list[str]:
    """What a reader should know before trusting the figures."""
    notes: list[str] = []
    budget = max(candidate.policy.budget for candidate in trials.candidates)
    least = trials.least_traces
    if 2 * budget > least and not with_replacement:
        if least == 1:
            taken = "the only recorded trace"
        else:
            taken = f"{'all' if budget == least else f'{budget} of the'} {least} recorded traces"
        notes.append(
            f"Each draw takes {taken} of a question, so draws have most "
            "traces in common: the intervals show what other questions would change, and too "
            "little of what other traces would."
        )
    if len(trials.question_ids) == 1:
        notes.append("A single question says next to nothing about others; record dozens.")
    elif len(trials.question_ids) < _RESOLVING:
        notes.append(
            f"{len(trials.question_ids)} questions resolve only large differences; "
            "look at the intervals."
        )
    return notes
