"""Traces of one question as columns of numbers, without what has a value per token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.recordings.schema import COMPLETE, RecordedTrace


@dataclass(frozen=True, eq=False)
class Columns:
    """Some traces of one question as columns.

    Attributes:
        ids: Number of each trace within its question, int64, shape (traces,).
        seeds: Seed of each, int64.
        tokens: Tokens that each generated, int64.
        prompt_tokens: Tokens of each prompt, int64.
        lost_tokens: Tokens of attempts that broke off before, int64.
        started: Seconds after the run of the question began, float64.
        ended: Seconds after the run of the question began, float64.
        correct: Whether each answer is right, bool; False where there is no gold answer.
        finish: Why each ended.
        answers: What each answered; equal keys mean the same vote within the question.
    """

    ids: NDArray[np.int64]
    seeds: NDArray[np.int64]
    tokens: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    lost_tokens: NDArray[np.int64]
    started: NDArray[np.float64]
    ended: NDArray[np.float64]
    correct: NDArray[np.bool_]
    finish: tuple[FinishReason, ...]
    answers: tuple[Answer | None, ...]

    def __len__(self) -> int:
        return self.ids.size

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each trace took, shape (traces,)."""
        return self.ended - self.started

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which traces ran to their own end or to their token limit, shape (traces,)."""
        return np.array([reason in COMPLETE for reason in self.finish], np.bool_)

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> "Columns":
        """Rows with a value for each attribute, in their order."""
        columns = list(zip(*rows, strict=True))
        whole = (np.array(column, np.int64) for column in columns[:5])
        real = (np.array(column, np.float64) for column in columns[5:7])
        return cls(*whole, *real, np.array(columns[7], np.bool_), *columns[8:])  # type: ignore[arg-type]

    @classmethod
    def joined(cls, pieces: Sequence["Columns"], order: NDArray[np.int64]) -> "Columns":
        """All of several in another order."""

        def values(name: str) -> Any:
            columns = [getattr(piece, name) for piece in pieces]
            if isinstance(columns[0], tuple):
                found = [value for column in columns for value in column]
                return tuple(found[i] for i in order.tolist())
            return np.concatenate(columns)[order]

        return cls(**{name: values(name) for name in cls.__dataclass_fields__})


@lru_cache(maxsize=1 << 12)
def shared_answer(text: str | None, key: str | None) -> Answer | None:
    """An answer; equal ones share one object: a pool holds few of them, thousands of times."""
    return None if text is None else Answer(text, text if key is None else key)


class Piece(Protocol):
    """The traces of one question in one source; what is damaged raises RecordingError."""

    @property
    def columns(self) -> Columns:
        """The traces, without what has a value per token; other methods keep to their order."""
        ...

    def fill(self, begins: NDArray[np.int64], flat: NDArray[np.float32]) -> None:
        """Read the confidences; `begins` says where those of each trace begin in `flat`."""
        ...

    def logprobs(self) -> Sequence[NDArray[np.float32] | None]:
        """The log-probabilities of each trace; None for one without."""
        ...

    def texts(self) -> Sequence[str | None]:
        """What each trace wrote; None where that was not kept."""
        ...


Source = Mapping[str, Piece]
"""Where traces come from, such as a file: those of each question, by its id."""


def row_pieces(rows: Iterable[RecordedTrace]) -> Source:
    """Traces in memory: those of a journal, and those of another program's file."""
    found: dict[str, list[RecordedTrace]] = {}
    for row in rows:
        found.setdefault(row.question_id, []).append(row)
    return {question: RowPiece(rows) for question, rows in found.items()}


@dataclass(frozen=True, eq=False)
class RowPiece:
    """Rows of one question, which were checked when they were made."""

    rows: Sequence[RecordedTrace]

    @property
    def columns(self) -> Columns:
        """The traces as columns."""
        return Columns.of(
            (
                *(row.number, row.seed, row.tokens, row.prompt_tokens, row.lost_tokens),
                *(row.started, row.ended, bool(row.correct), row.finish, row.answer),
            )
            for row in self.rows
        )

    def fill(self, begins: NDArray[np.int64], flat: NDArray[np.float32]) -> None:
        """Copy the confidences."""
        for row, begin in zip(self.rows, begins.tolist(), strict=True):
            flat[begin : begin + row.tokens] = row.confidences

    def logprobs(self) -> list[NDArray[np.float32] | None]:
        """The log-probabilities of each trace."""
        return [row.logprobs for row in self.rows]

    def texts(self) -> list[str | None]:
        """What each trace wrote."""
        return [row.text for row in self.rows]
