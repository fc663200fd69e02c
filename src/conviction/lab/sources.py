"""Where recorded traces come from: a pool on disk, or memory; one question at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from conviction.core import FinishReason
from conviction.errors import RecordingError
from conviction.lab.replay import PlayedTrace
from conviction.recordings import Pool

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


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

    def count(self, question_id: str) -> int:
        """Traces of a question, known without reading them."""
        ...

    def traces(self, question_id: str) -> Sequence[PlayedTrace]:
        """All complete traces of one question, in an order that never changes."""
        ...


@dataclass(frozen=True)
class TracesInMemory:
    """Traces that are at hand already.

    Attributes:
        questions: The traces by question.
        top_k: Log-probabilities behind each confidence; 0 if there are no confidences.
        max_tokens: The most tokens that a trace was allowed.
    """

    questions: Mapping[str, Sequence[PlayedTrace]]
    top_k: int = 20
    max_tokens: int = 1 << 20

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


@dataclass(frozen=True)
class PoolTraces:
    """The questions of a pool whose right answers are known.

    Attributes:
        path: The pool's folder or file.
        pool: The pool.
        question_ids: Questions with a right answer.
        ungraded: Questions without one, which were left out.
    """

    path: Path
    pool: Pool = field(repr=False, compare=False)
    question_ids: tuple[str, ...]
    ungraded: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, only_graded: bool = False) -> Self:
        """Open a pool.

        Args:
            path: Its folder or file.
            only_graded: Leave out questions without a right answer, instead of refusing the pool.

        Raises:
            MissingExtraError: pyarrow is not installed.
            RecordingError: it cannot be read, or holds questions without a right answer.
        """
        pool = Pool.open(path)
        graded = tuple(question.id for question in pool.questions if question.gold is not None)
        ungraded = tuple(question.id for question in pool.questions if question.gold is None)
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the pool for itself."""
        return _reopened, (self.path, self.question_ids, self._counts())

    @property
    def top_k(self) -> int:
        """Log-probabilities behind each confidence; 0 in a pool of answers."""
        return self.pool.top_k

    @property
    def max_tokens(self) -> int:
        """The most tokens that a trace was allowed, where the pool tells."""
        return self.pool.sampling.max_tokens if self.pool.sampling_known else 1 << 20

    def count(self, question_id: str) -> int:
        """Recorded traces of a question, those that did not complete included."""
        return self.pool.question(question_id).traces

    def traces(self, question_id: str) -> list[PlayedTrace]:
        """All complete traces of one question, by number.

        Raises:
            RecordingError: they cannot be read.
        """
        columns = self.pool.traces(question_id)
        confidences = columns.require_confidences() if self.top_k else [None] * len(columns)
        return [
            PlayedTrace(tokens, finish, answer, correct, values)
            for tokens, finish, answer, correct, values in zip(
                columns.tokens.tolist(),
                columns.finish,
                columns.answers,
                columns.correct.tolist(),
                confidences,
                strict=True,
            )
            if finish in _COMPLETE
        ]

    def _counts(self) -> tuple[int, ...]:
        return tuple(self.count(question_id) for question_id in self.question_ids)


def _reopened(path: Path, question_ids: tuple[str, ...], counts: tuple[int, ...]) -> PoolTraces:
    source = PoolTraces(path, Pool.open(path), question_ids)
    if counts != tuple(source.count(question_id) for question_id in question_ids):
        raise RecordingError(
            tried=f"read the pool {path}",
            found="it changed while it was read",
            remedy="Wait until its recording has ended, or copy it first.",
        )
    return source


def typical_tokens(source: TraceSource, most: int = 5) -> float:
    """The median length of a trace, by a look at a few questions.

    Args:
        source: The traces.
        most: Questions to look at, evenly spread.
    """
    ids = source.question_ids
    step = max(len(ids) // most, 1)
    tokens = [trace.tokens for one in ids[::step][:most] for trace in source.traces(one)]
    return float(np.median(tokens)) if tokens else 0.0
