"""Where recorded traces come from: a pool on disk, or memory; one question at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from conviction.errors import RecordingError
from conviction.lab.replay import PlayedTrace
from conviction.lab.statistics import mean_of
from conviction.recordings import Pool
from conviction.recordings.schema import COMPLETE


class TraceSource(Protocol):
    """Complete traces of many questions; it travels to other processes, so it must pickle."""

    @property
    def question_ids(self) -> tuple[str, ...]:
        """The questions, in order."""
        ...

    @property
    def top_k(self) -> int:
        """Log-probabilities behind each confidence; 0 if there are no confidences."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most tokens that a trace was allowed."""
        ...

    @property
    def dropped(self) -> int:
        """Traces that were recorded and are left out, because they did not complete."""
        ...

    def count(self, question_id: str) -> int:
        """How many `traces` a question has, known without reading them."""
        ...

    def traces(self, question_id: str) -> Sequence[PlayedTrace]:
        """All complete traces of one question, in an order that never changes."""
        ...

    def only(self, question_ids: tuple[str, ...]) -> Self:
        """The same with these of its questions alone."""
        ...

    def mean_logprobs(self, question_id: str) -> NDArray[np.float64] | None:
        """Mean log-probability of the tokens of each of `traces`; None unless all have some.

        NaN for a trace without tokens.
        """
        ...


@dataclass(frozen=True)
class TracesInMemory:
    """Traces that are at hand already.

    Attributes:
        questions: The traces by question.
        logprobs: Mean log-probability of each trace by question, where it is known.
    """

    questions: Mapping[str, Sequence[PlayedTrace]]
    top_k: int = 20
    max_tokens: int = 1 << 20
    logprobs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, Any])
    dropped: int = 0

    @property
    def question_ids(self) -> tuple[str, ...]:
        """The questions, in order."""
        return tuple(self.questions)

    def count(self, question_id: str) -> int:
        """Traces of a question."""
        return len(self.questions[question_id])

    def traces(self, question_id: str) -> Sequence[PlayedTrace]:
        """All traces of one question."""
        return self.questions[question_id]

    def only(self, question_ids: tuple[str, ...]) -> Self:
        """The same with these of its questions alone."""
        return replace(self, questions={one: self.questions[one] for one in question_ids})

    def mean_logprobs(self, question_id: str) -> NDArray[np.float64] | None:
        """Mean log-probability of each trace; None where it is not known."""
        return self.logprobs.get(question_id)


@dataclass(frozen=True)
class PoolTraces:
    """The questions of a pool whose right answers are known; `ungraded` are those left out.

    Another process is given what was found when the pool was opened, rather than opening it again:
    all then replay the same traces, also while more are being recorded.
    """

    path: Path
    pool: Pool = field(repr=False, compare=False)
    question_ids: tuple[str, ...]
    ungraded: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, only_graded: bool = False, answers: str = "math") -> Self:
        """Open a pool, or a file of another program that can be imported.

        Args:
            path: Its file or folder.
            answers: Kind of answer that finds and compares the answers of other programs' files.
            only_graded: Leave out questions without a right answer, instead of refusing the pool.

        Raises:
            InvalidSettingError: there is nothing of that name.
            MissingExtraError: it is Parquet, and pyarrow is not installed.
            RecordingError: it cannot be read, or holds questions without a right answer.
        """
        pool = Pool.open(path, answers=answers)
        graded = tuple(one.id for one in pool.questions if one.gold is not None)
        ungraded = tuple(one.id for one in pool.questions if one.gold is None)
        if ungraded and not (only_graded and graded):
            raise RecordingError(
                tried=f"tell right from wrong in the pool {path}",
                found=f"{len(ungraded)} of {len(pool.questions)} questions have no right answer; "
                f"the first is {ungraded[0]!r}",
                remedy="Leave them out with --only-graded."
                if graded
                else "Record it from data with answers.",
            )
        return cls(Path(path), pool, graded, ungraded)

    @property
    def top_k(self) -> int:
        """Log-probabilities behind each confidence; 0 in a pool of answers."""
        return self.pool.top_k

    @property
    def max_tokens(self) -> int:
        """The most tokens that a trace was allowed, where the pool tells."""
        return self.pool.sampling.max_tokens if self.pool.sampling_known else 1 << 20

    @property
    def dropped(self) -> int:
        """Recorded traces of these questions that were stopped or cancelled, or that failed."""
        questions = [self.pool.question(one) for one in self.question_ids]
        return sum(question.traces - question.complete for question in questions)

    def count(self, question_id: str) -> int:
        """Complete traces of a question."""
        return self.pool.question(question_id).complete

    def traces(self, question_id: str) -> list[PlayedTrace]:
        """All complete traces of one question, by number.

        Raises:
            RecordingError: they cannot be read.
        """
        columns = self.pool.traces(question_id)
        confidences = columns.confidences or [None] * len(columns)
        return [
            PlayedTrace(tokens, finish, answer, correct, _if_known(values))
            for tokens, finish, answer, correct, values in zip(
                columns.tokens.tolist(),
                columns.finish,
                columns.answers,
                columns.correct.tolist(),
                confidences,
                strict=True,
            )
            if finish in COMPLETE
        ]

    def only(self, question_ids: tuple[str, ...]) -> Self:
        """The same with these of its questions alone."""
        return replace(self, question_ids=question_ids)

    def mean_logprobs(self, question_id: str) -> NDArray[np.float64] | None:
        """Mean log-probability of the tokens of each complete trace; None unless all have some."""
        recorded = self.pool.logprobs(question_id)
        if all(values is None for values in recorded):
            return None
        outline = self.pool.outline(question_id)
        complete = np.array([finish in COMPLETE for finish in outline.finish], np.bool_)
        means = np.array([nan if values is None else mean_of(values) for values in recorded])
        unknown = complete & (outline.tokens > 0) & ~np.isfinite(means)
        return None if unknown.any() else means[complete]


def _if_known(confidences: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """None where no token's confidence is known, as in pools of answers alone."""
    if confidences is None or not np.isfinite(confidences).any():
        return None
    return confidences


def dropping(source: TraceSource) -> tuple[str, ...]:
    """What to know of traces that were left out before trusting any figure; empty without any."""
    if not source.dropped:
        return ()
    total = source.dropped + sum(source.count(one) for one in source.question_ids)
    note = (
        f"{source.dropped:,} of {total:,} recorded traces were stopped or cancelled, or failed, "
        "and are left out. Where a policy chose which, accuracy, AUROC and tokens are biased: "
        "record complete traces with `conviction record`."
    )
    return (note,)


def typical_tokens(source: TraceSource, most: int = 5) -> float:
    """The median length of a trace, by a look at `most` questions, evenly spread."""
    ids = source.question_ids
    step = max(len(ids) // most, 1)
    tokens = [count for one in ids[::step][:most] for count in _lengths(source, one)]
    return float(np.median(tokens)) if tokens else 0.0


def _lengths(source: TraceSource, question_id: str) -> list[int]:
    # By itself, so that no trace is left that would keep the whole question in memory.
    return [trace.tokens for trace in source.traces(question_id)]
