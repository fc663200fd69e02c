"""Candidates side by side: what each came to, and whether the difference is real."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.errors import InvalidSettingError
from conviction.lab.candidates import Candidate
from conviction.lab.replay import CONTINUES, RUN_LIVE
from conviction.lab.sources import TraceSource
from conviction.lab.statistics import (
    Bootstrap,
    Estimate,
    Numbers,
    any_seed,
    mean_of,
    pareto_front,
)
from conviction.lab.trials import Trials

_ANSWERS_ONLY = "it needs token confidences, and this pool holds answers only"
_RECORD_MORE = (
    "Use policies without confidence, such as majority and adaptive-consistency; or record with an "
    "engine that gives log-probabilities."
)

_RESOLVING = 30
"""Questions from which on nobody has to be warned."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one candidate came to, per question.

    Attributes:
        candidate: The candidate.
        accuracy: Share of the verdicts that are right, in [0, 1].
        difference: Its accuracy less that of the baseline, paired.
        tokens: Tokens generated.
        saving: Share of the tokens that majority voting with the same budget takes in addition.
        path: Tokens that were generated one after another before the verdict stood: time.
        started: Traces started.
        stopped: Of these, stopped for low confidence.
        cancelled: Of these, cancelled when the verdict stood.
        empty: Share of the runs in which no trace voted.
        questions: How many questions these are means over.
    """

    candidate: Candidate
    accuracy: Estimate
    difference: Estimate
    tokens: Estimate
    saving: Estimate
    path: Estimate
    started: float
    stopped: float
    cancelled: float
    empty: float
    questions: int

    @property
    def tokens_in_total(self) -> float:
        """Tokens generated to answer every question once."""
        return self.tokens.value * self.questions

    def record(self) -> dict[str, Any]:
        """The row as plain JSON types; figures without a value are None."""
        values: dict[str, Any] = {
            "policy": self.candidate.label,
            "spec": self.candidate.spec,
            "budget": self.candidate.policy.budget,
            "concurrency": _plain(self.candidate.concurrency),
        }
        for name in ("accuracy", "difference", "tokens", "saving", "path"):
            estimate: Estimate = getattr(self, name)
            values[name] = _plain(estimate.value)
            values[f"{name}_low"] = _plain(estimate.low)
            values[f"{name}_high"] = _plain(estimate.high)
        for name in ("started", "stopped", "cancelled", "empty"):
            values[name] = getattr(self, name)
        values["tokens_in_total"] = _plain(self.tokens_in_total)
        return values


def compare(
    trials: Trials, *, baseline: int = 0, questions: NDArray[np.bool_] | None = None
) -> tuple[Row, ...]:
    """All candidates, each against the baseline.

    Args:
        trials: What came of every run.
        baseline: Number of the candidate that the others are compared to.
        questions: Which questions to look at, shape (questions,); None for all.
    """
    runs = trials.runs if questions is None else trials.runs[:, questions]
    _, count, repeats = runs.shape
    bootstrap = Bootstrap(count, repeats)
    right = bootstrap.means(runs["correct"])
    tokens = bootstrap.means(runs["tokens"])
    full = _full_tokens(bootstrap, trials.candidates, runs)
    paths = bootstrap.means(runs["path"])
    rows: list[Row] = []
    for number, candidate in enumerate(trials.candidates):
        run = runs[number]
        rows.append(
            Row(
                candidate,
                accuracy=Estimate.of_share(run["correct"], right[number]),
                difference=_difference(runs["correct"], right, number, baseline),
                tokens=Estimate.of_amount(mean_of(run["tokens"]), tokens[number], count),
                saving=Estimate.of_amount(
                    _saving(mean_of(run["tokens"]), mean_of(run["full_tokens"])),
                    _saving(tokens[number], full[candidate.budget]),
                    count,
                ),
                path=Estimate.of_amount(mean_of(run["path"]), paths[number], count),
                **{
                    name: mean_of(run[name])
                    for name in ("started", "stopped", "cancelled", "empty")
                },
                questions=count,
            )
        )
    return tuple(rows)


def _difference(
    correct: NDArray[np.bool_], resampled: Numbers, number: int, baseline: int
) -> Estimate:
    if number == baseline:
        return Estimate(0.0, 0.0, 0.0)
    values = correct[number].astype(np.float64) - correct[baseline]
    return Estimate.of_difference(values, resampled[number] - resampled[baseline])


def _full_tokens(
    bootstrap: Bootstrap, candidates: Sequence[Candidate], runs: NDArray[Any]
) -> dict[int, Numbers]:
    """Tokens of majority voting in each resample, by budget."""
    first = {candidate.budget: number for number, candidate in enumerate(candidates)}
    means = bootstrap.means(runs["full_tokens"][list(first.values())])
    return dict(zip(first, means, strict=True))


def _saving(tokens: Any, full: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - np.float64(tokens) / full


def _plain(value: float) -> float | None:
    return float(value) if isfinite(value) else None


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


def find_front(trials: Trials, *, baseline: int = 0, seed: int = 0) -> Front:
    """The Pareto front of accuracy and tokens.

    Args:
        trials: What came of every run.
        baseline: Number of the candidate that the others are compared to.
        seed: Decides which half of the questions chooses.

    Raises:
        InvalidSettingError: there are fewer than two questions.
    """
    half = halves(len(trials.question_ids), seed=seed)
    where_chosen = compare(trials, baseline=baseline, questions=half)
    elsewhere = compare(trials, baseline=baseline, questions=~half)
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
    """Without candidates that came to the same in every run as one before on the same machine.

    Of a sweep's settings some do the same, such as waves of 8 and of 16 with a budget of 8.
    """
    first: dict[tuple[float, bytes], int] = {}
    for number, candidate in enumerate(trials.candidates):
        first.setdefault((candidate.concurrency, trials.runs[number].tobytes()), number)
    kept = sorted(first.values())
    candidates = tuple(trials.candidates[number] for number in kept)
    return replace(trials, candidates=candidates, runs=trials.runs[kept])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that cannot be replayed on these traces.

    Attributes:
        candidate: The candidate.
        reason: Why.
        remedy: What to do about it; a whole sentence.
    """

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
