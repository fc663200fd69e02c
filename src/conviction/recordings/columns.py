"""Traces of one question as columns of numbers, without what has a value per token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.recordings.schema import RecordedTrace


@dataclass(frozen=True, eq=False)
class Columns:
    """Some traces of one question as columns.

    Attributes:
        numbers: Number of each trace, shape (traces,).
        seeds: Their seeds.
        tokens: Their tokens.
        prompt_tokens: Tokens of their prompts.
        lost_tokens: Tokens of attempts that broke off.
        started: Seconds.
        ended: Seconds.
        correct: Whether right; False where unknown.
        finish: Why each ended.
        answers: What each answered.
    """

    numbers: NDArray[np.int64]
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
        return self.numbers.size

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


class Piece(Protocol):
    """The traces of one question in one source; what is damaged raises RecordingError."""

    @property
    def columns(self) -> Columns:
        """The traces, without what has a value per token; other methods keep to their order."""
        ...

    def fill(self, begins: NDArray[np.int64], flat: NDArray[np.float32]) -> None:
        """Read the confidences; `begins` says where those of each trace begin in `flat`."""
        ...

    def check(self, *, confidences: bool) -> None:
        """Check that no trace claims more tokens than are stored, or that none has confidences."""
        ...

    def logprobs(self) -> Sequence[NDArray[np.float32] | None]:
        """The log-probabilities of each trace; None for one without."""
        ...

    def texts(self) -> Sequence[str | None]:
        """What each trace wrote; None where that was not kept."""
        ...


class Source(Protocol):
    """Where traces come from, such as a file."""

    def find(self, question_id: str) -> Piece | None:
        """The traces of a question; None if it holds none."""
        ...


class Rows:
    """Traces in memory as a source: those of a journal, and those of another program's file."""

    def __init__(self, rows: Iterable[RecordedTrace]) -> None:
        self._rows: dict[str, list[RecordedTrace]] = {}
        for row in rows:
            self._rows.setdefault(row.question_id, []).append(row)

    def find(self, question_id: str) -> "RowPiece | None":
        """The traces of a question; None if there are none."""
        rows = self._rows.get(question_id)
        return RowPiece(rows) if rows else None


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

    def check(self, *, confidences: bool) -> None:
        """Rows are checked when they are made."""

    def logprobs(self) -> list[NDArray[np.float32] | None]:
        """The log-probabilities of each trace."""
        return [row.logprobs for row in self.rows]

    def texts(self) -> list[str | None]:
        """What each trace wrote."""
        return [row.text for row in self.rows]
