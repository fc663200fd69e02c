"""Whether confidence helps: how well it ranks traces, and what filtering by it changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric, measure_pool
from conviction.core import FinishReason
from conviction.errors import InvalidSettingError
from conviction.lab.candidates import WITHOUT_WINDOW, Candidate, fitting_windows
from conviction.lab.comparison import halves, remarks, runnable
from conviction.lab.selection import (
    FilterChoice,
    Measure,
    RankingChoice,
    advise,
    best_windows,
    choose_filter,
    choose_ranking,
    filters_of,
)
from conviction.lab.sources import TraceSource, dropping, typical_tokens
from conviction.lab.statistics import Bootstrap, Estimate, any_seed, auroc, mean_of
from conviction.lab.study import usual_budget
from conviction.lab.trials import OnProgress, Trials, run_trials
from conviction.lab.workers import each_question
from conviction.policies import DeepConfOffline, Majority

REPEATS = 16
"""Draws per question: what other questions would change outweighs what more draws would."""

KEPT = (0.1, 0.3, 0.5, 0.7, 0.9)
_SHOWN = (0.1, 0.5, 0.9)
_BINS = 10


@dataclass(frozen=True, slots=True)
class Ranking:
    """How often a right trace of a question is more confident than a wrong one (AUROC).

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None where the metric has none.
        votes: Among the traces that vote, mean over the questions that have both kinds.
        all: Among all complete traces; those without an answer count as wrong.
    """

    metric: Metric
    window: int | None
    votes: Estimate
    all: Estimate


@dataclass(frozen=True, slots=True)
class LogprobRanking:
    """`Ranking` by a trace's mean log-probability, for comparison only: no policy filters by it."""

    votes: Estimate
    all: Estimate


@dataclass(frozen=True, slots=True)
class FilterEffect:
    """What keeping the most confident traces changes, on the half that did not choose the window.

    Attributes:
        metric: How a trace's confidence is measured.
        window: Tokens in a group; None where the metric has none.
        keep: Share of the traces that are kept.
        better: Share of the questions whose verdict becomes right.
        worse: Share of the questions whose verdict becomes wrong.
        difference: The gain in accuracy.
    """

    metric: Metric
    window: int | None
    keep: float
    better: Estimate
    worse: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """How often majority is right where its leader has a share of the vote from low to high.

    Attributes:
        low: Least share in this bin.
        high: Its end; the last bin includes it.
        questions: Questions in it, mean over draws.
        share: Their mean share of the vote.
        accuracy: Share of them that majority got right.
    """

    low: float
    high: float
    questions: float
    share: float
    accuracy: Estimate


@dataclass(frozen=True)
class Diagnosis:
    """Whether confidence helps on these traces.

    Attributes:
        questions: Questions looked at.
        mixed: Of these, with both right and wrong traces among the votes.
        budget: Traces of each draw.
        repeats: Draws per question.
        rankings: AUROC by metric and window, on all questions: it describes, and chooses nothing.
        log_probability: AUROC of the mean log-probability, for comparison; None unless all
            complete traces were recorded with log-probabilities.
        filters: What filtering changes on one half of the questions, by metric, at the window that
            ranks best on the other.
        calibration: Majority's share of the vote against how often it is right.
        calibration_error: Mean distance of the two.
        choice: The best filter of one half of the questions, on the other half.
        ranking: The measure that ranks best on the one half, on the other; None where that half
            has nothing to rank.
        advice: What to do, in plain words.
        use: The policy to use, as on the command line.
        notes: What a reader should know before trusting the figures.
    """

    questions: int
    mixed: int
    budget: int
    repeats: int
    rankings: tuple[Ranking, ...]
    log_probability: LogprobRanking | None
    filters: tuple[FilterEffect, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float
    choice: FilterChoice
    ranking: RankingChoice | None
    advice: str
    use: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; figures without a value are None."""
        return {"schema_version": 1, **msgspec.json.decode(msgspec.json.encode(self))}


def diagnose(
    source: TraceSource,
    *,
    budget: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Find out whether confidence helps on recorded traces, in `processes` processes at most.

    Each of the `repeats` draws per question takes `budget` traces; None takes as many as the
    questions have, at most 64. `seed` decides on draws and halves. Progress counts each question
    twice, as it is read twice.

    Raises:
        InvalidSettingError: the traces have no confidences, or a question has too few traces.
        RecordingError: the traces cannot be read.
    """
    budget = usual_budget(source) if budget is None else budget
    half = halves(len(source.question_ids), seed=seed)
    windows = fitting_windows(typical_tokens(source)) if source.top_k else ()
    measures: list[Measure] = [
        (metric, window)
        for metric in Metric
        for window in ((None,) if metric in WITHOUT_WINDOW else windows)
    ]
    filters = [
        Candidate(DeepConfOffline(budget, metric, window, keep=keep), budget)
        for metric, window in measures
        for keep in KEPT
    ]
    _, refused = runnable(filters, source)
    if refused:
        raise InvalidSettingError(
            tried="find out whether confidence helps",
            found=refused[0].reason,
            remedy="Record with an engine that gives log-probabilities; until then use majority "
            "or another policy that looks at answers alone.",
        )
    total = 2 * len(source.question_ids)
    ranked: dict[int, _Areas] = {}
    for number, areas in each_question(_Rank(measures), source, processes=processes):
        ranked[number] = areas
        if on_progress:
            on_progress(len(ranked), total)
    trials = run_trials(
        source,
        [Candidate(Majority(budget), budget), *filters],
        repeats=repeats,
        seed=any_seed(seed),
        processes=processes,
        on_progress=on_progress and (lambda done, _: on_progress(total // 2 + done, total)),
    )
    return _concluded(source, trials, measures, [ranked[one] for one in range(len(ranked))], half)


def _concluded(
    source: TraceSource,
    trials: Trials,
    measures: Sequence[Measure],
    ranked: Sequence["_Areas"],
    half: NDArray[np.bool_],
) -> Diagnosis:
    areas = np.stack([one.measures for one in ranked], axis=-1)
    votes = areas[:, 0]
    mixed = int(np.isfinite(votes).any(axis=0).sum())
    choice = choose_filter(trials, half)
    ranking = choose_ranking(measures, votes, half)
    advice, use = advise(choice, ranking, mixed)
    bins = calibration(trials)
    return Diagnosis(
        questions=len(source.question_ids),
        mixed=mixed,
        budget=trials.candidates[0].budget,
        repeats=trials.runs.shape[2],
        rankings=_rankings(measures, areas),
        log_probability=_logprob_ranking([one.logprob for one in ranked]),
        filters=_effects(trials, best_windows(measures, votes, half), ~half),
        calibration=bins,
        calibration_error=calibration_error(bins),
        choice=choice,
        ranking=ranking,
        advice=advice,
        use=use,
        notes=(*dropping(source), *remarks(trials)),
    )


class _Areas(NamedTuple):
    """AUROC of one question among the votes and among all traces, NaN where there is none.

    Of each measure, shape (measures, 2), and of the mean log-probability, shape (2,), if recorded.
    """

    measures: NDArray[np.float64]
    logprob: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Rank:
    """Ranks the traces of one question."""

    measures: Sequence[Measure]

    def __call__(self, source: TraceSource, question_id: str) -> _Areas:
        everything = source.traces(question_id)
        traces = [one for one in everything if one.confidences is not None]
        right = np.array([one.correct for one in traces], np.bool_)
        votes = np.array(
            [one.answer is not None and one.finish is FinishReason.STOP for one in traces], np.bool_
        )

        def areas(scores: NDArray[np.float64]) -> tuple[float, float]:
            return auroc(scores[votes], right[votes]), auroc(scores, right)

        measured = np.full((len(self.measures), 2), nan)
        logprobs = source.mean_logprobs(question_id)
        likelihood = None
        if logprobs is not None:
            measurable = [one.confidences is not None for one in everything]
            likelihood = np.array(areas(logprobs[measurable]))
        if not right.any() or right.all():
            return _Areas(measured, likelihood)
        lengths = [0, *(one.tokens for one in traces)]
        flat = np.concatenate([one.confidences for one in traces if one.confidences is not None])
        for number, (metric, window) in enumerate(self.measures):
            scores = measure_pool(metric, flat, np.cumsum(lengths), window or 1)
            measured[number] = areas(scores)
        return _Areas(measured, likelihood)


def _rankings(measures: Sequence[Measure], areas: NDArray[np.float64]) -> tuple[Ranking, ...]:
    bootstrap = Bootstrap(areas.shape[-1])
    votes, everything = (bootstrap.shares(areas[:, kind]) for kind in (0, 1))
    return tuple(
        Ranking(metric, window, *estimates)
        for (metric, window), *estimates in zip(measures, votes, everything, strict=True)
    )


def _logprob_ranking(areas: Sequence[NDArray[np.float64] | None]) -> LogprobRanking | None:
    known = [one for one in areas if one is not None]
    if len(known) < len(areas):
        return None
    # The same resamples as those of the metrics, so that the intervals compare.
    return LogprobRanking(*Bootstrap(len(known)).shares(np.stack(known, axis=-1)))


def _effects(
    trials: Trials, windows: Mapping[Metric, int | None], questions: NDArray[np.bool_]
) -> tuple[FilterEffect, ...]:
    """The effects at certain windows on certain questions; the majority is the first candidate."""
    shown = {
        number: policy
        for number, policy in enumerate(filters_of(trials), start=1)
        if policy.keep in _SHOWN and policy.window == windows[policy.metric]
    }
    right = trials["correct"][:, questions]
    chosen = right[list(shown)]
    bootstrap = Bootstrap(*right.shape[1:])
    better = bootstrap.shares(chosen & ~right[0])
    worse = bootstrap.shares(~chosen & right[0])
    difference = bootstrap.differences(chosen.astype(float) - right[0])
    return tuple(
        FilterEffect(policy.metric, policy.window, policy.keep, *estimates)
        for policy, *estimates in zip(shown.values(), better, worse, difference, strict=True)
    )


def calibration(trials: Trials) -> tuple[CalibrationBin, ...]:
    """Majority's share of the vote against how often it is right, by tenths of the share.

    Majority is the first candidate; runs in which no trace voted are left out.
    """
    runs = trials.runs[0]
    place = np.minimum((runs["share"] * _BINS).astype(int), _BINS - 1)
    inside = [~runs["empty"] & (place == number) for number in range(_BINS)]
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
