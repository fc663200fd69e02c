"""Every candidate on the same random draws of recorded traces, so that differences are paired.

One trial is one question and one repeat: one draw of recorded traces, replayed by all candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import require_whole
from conviction.errors import InvalidSettingError, RecordingError
from conviction.lab.candidates import Candidate
from conviction.lab.columns import Measure, measures, run_type
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import TraceSource
from conviction.lab.statistics import any_seed
from conviction.lab.workers import each_question

REPEATS = 64
"""Draws per question, as in the paper."""

OnProgress = Callable[[int, int], None]
"""Called with the number of questions done, and of all questions."""


@dataclass(frozen=True, eq=False)
class Trials:
    """All runs of a comparison.

    Attributes:
        runs: Records of `columns.run_type`, shape (candidates, questions, repeats).
        most_traces: Recorded traces of the question that has most of them.
        least_traces: The same of the one that has fewest.
    """

    candidates: tuple[Candidate, ...]
    question_ids: tuple[str, ...]
    runs: NDArray[Any]
    most_traces: int
    least_traces: int

    def __getitem__(self, field: str) -> NDArray[Any]:
        """One field of all runs, shape (candidates, questions, repeats)."""
        return self.runs[field]


def run_trials(
    source: TraceSource,
    candidates: Sequence[Candidate],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    with_replacement: bool = False,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Trials:
    """Replay every candidate on the same draws, in `processes` processes at most, where that pays.

    The draws, `repeats` per question, depend only on the seed, the question's id and the number of
    the repeat. With replacement, one trace may be drawn several times.

    Raises:
        InvalidSettingError: a candidate starts more traces than a question has.
        RecordingError: the traces cannot be read, or lack confidences that a candidate needs.
    """
    require_whole("repeats", repeats, low=1)
    require_whole("processes", processes, low=1)
    if not candidates or not source.question_ids:
        raise InvalidSettingError(
            tried="compare policies on recorded traces",
            found="there is no policy" if not candidates else "there is no question",
            remedy="Give at least one of each.",
        )
    work = _Draws(tuple(candidates), measures(), repeats, seed, with_replacement)
    _check_counts(source, 1 if with_replacement else work.size)
    questions = len(source.question_ids)
    runs = np.zeros((len(candidates), questions, repeats), run_type())
    counts: list[int] = []
    for number, (result, count) in each_question(work, source, processes=processes):
        runs[:, number] = result
        counts.append(count)
        if on_progress:
            on_progress(len(counts), questions)
    return Trials(tuple(candidates), source.question_ids, runs, max(counts), min(counts))


def draw(
    count: int,
    size: int,
    *,
    seed: int,
    question_id: str,
    repeat: int,
    with_replacement: bool = False,
) -> NDArray[np.int64]:
    """Which of `count` recorded traces a trial takes, in order: positions, shape (size,).

    A smaller draw is the beginning of a larger one.
    """
    digest = sha256(question_id.encode()).digest()
    random = np.random.default_rng(
        [any_seed(seed), repeat, *np.frombuffer(digest, np.uint32).tolist()]
    )
    if with_replacement:
        return random.integers(0, count, size)
    return random.permutation(count)[:size]


@dataclass(frozen=True)
class _Draws:
    """All repeats of one question."""

    candidates: tuple[Candidate, ...]
    measures: tuple[Measure, ...]
    repeats: int
    seed: int
    with_replacement: bool

    @property
    def size(self) -> int:
        return max(candidate.policy.budget for candidate in self.candidates)

    def __call__(self, source: TraceSource, question_id: str) -> tuple[NDArray[Any], int]:
        traces = source.traces(question_id)
        if source.top_k:
            check_confidences(self.candidates, question_id, traces)
        lengths = np.array([trace.tokens for trace in traces], np.int64)
        # Reference budgets may exceed every policy's own: that of a single trace does.
        size = max(self.size, *(candidate.budget for candidate in self.candidates))
        runs = np.zeros((len(self.candidates), self.repeats), run_type(self.measures))
        measuring = [measure.of for measure in self.measures]
        for repeat in range(self.repeats):
            order = draw(
                len(traces),
                size,
                seed=self.seed,
                question_id=question_id,
                repeat=repeat,
                with_replacement=self.with_replacement,
            )
            drawn: list[PlayedTrace] = [traces[position] for position in order.tolist()]
            full = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths[order])))
            for number, candidate in enumerate(self.candidates):
                outcome = candidate.replayed(drawn, source)
                measured = [of(outcome) for of in measuring]
                runs[number, repeat] = (*measured, full[min(candidate.budget, len(drawn))])
        return runs, len(traces)


def check_confidences(
    candidates: Sequence[Candidate], question_id: str, traces: Sequence[PlayedTrace]
) -> None:
    """Refuse a question without a single known confidence, where a candidate needs confidence.

    Raises:
        RecordingError: as a live run refuses an engine that gives no log-probabilities.
    """
    needing = [one for one in candidates if one.policy.needs_confidence]
    known = any(trace.confidences is not None for trace in traces)
    if not needing or known or not any(trace.tokens for trace in traces):
        return
    raise RecordingError(
        tried=f"replay {needing[0].label} on question {question_id!r}",
        found=f"not one token of its {len(traces)} complete traces has a known confidence",
        remedy="Record it with an engine that gives log-probabilities, or compare policies "
        "that need no confidence, such as majority.",
    )


def _check_counts(source: TraceSource, size: int) -> None:
    """Refuse questions that have too few traces."""
    question_id = min(source.question_ids, key=source.count)
    count = source.count(question_id)
    if count >= size:
        return
    raise InvalidSettingError(
        tried=f"draw {size} traces of question {question_id!r}",
        found=f"{count} complete traces were recorded, and no question has fewer",
        remedy=f"Use a budget of {count} at most (--budget {count}), record more traces, or draw "
        "with replacement (--with-replacement)."
        if count
        else "Record it with `conviction record`, which lets every trace end.",
    )
