"""Traces of one question as columns of numbers, without what has a value per token."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.errors import RecordingError
from conviction.recordings.parquet import TRACE_COLUMNS
from conviction.recordings.schema import RecordedTrace

NUMBER_COLUMNS = tuple(name for name in TRACE_COLUMNS if name != "confidences")
"""The columns that `to_columns` looks at."""


def codes(table: Any, name: str) -> tuple[NDArray[np.int64], list[Any]]:
    """A column of strings as numbers into a list of distinct values; -1 stands for null.

    Args:
        table: What `Part.read` or `to_table` gave.
        name: The column.

    Returns:
        Shape (rows,), and the values.
    """
    column = table.column(name).combine_chunks()
    if hasattr(column, "chunks"):  # a table without rows keeps no chunk
        return np.empty(0, np.int64), []
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    indices = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return indices.astype(np.int64), column.dictionary.to_pylist()


@dataclass(frozen=True, eq=False)
class Place:
    """Where traces of one question stand in a file, for errors.

    Attributes:
        path: The file.
        question_id: The question.
        rows: The row of each, counted from 0, shape (traces,).
        numbers: The number of each trace, shape (traces,).
    """

    path: Path
    question_id: str
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def unreadable(self, position: int, found: str) -> RecordingError:
        """The error for one of them, such as "has no finish"."""
        return RecordingError(
            tried=f"read row {self.rows[position] + 1} of {self.path}",
            found=f"trace {self.numbers[position]} of question {self.question_id!r} {found}",
            remedy="Restore the file from a copy, or record again.",
        )


def first_null(table: Any, names: Sequence[str]) -> tuple[int, str] | None:
    """The row and the name of the first of these columns that lacks a value; None if none does."""
    for name in names:
        column = table.column(name)
        if column.null_count:
            return int(np.argmax(column.is_null().to_numpy())), name
    return None


@dataclass(frozen=True, eq=False)
class Columns:
    """Some traces of one question as columns, in the order of the file.

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


def to_columns(table: Any, place: Place) -> Columns:
    """An Arrow table of traces as columns.

    Args:
        table: What `Part.read` gave, its index columns checked for nulls.
        place: Where it was read.

    Raises:
        RecordingError: a value is missing or cannot be, such as a negative count of tokens.
    """

    def numbers(name: str, kind: type[np.generic] = np.int64) -> NDArray[Any]:
        return table.column(name).to_numpy().astype(kind, copy=False)

    tokens = _tokens(table, place)
    missing = first_null(table, ("prompt_tokens", "lost_tokens", "started", "ended"))
    if missing:
        row, name = missing
        raise place.unreadable(row, f"has no {name}")
    finish, finishes = codes(table, "finish")
    positions: list[int] = finish.tolist()
    reasons: list[FinishReason] = []
    with _whole(place.path, "finish"):
        reasons += [FinishReason(name) for name in finishes]
    return Columns(
        numbers=numbers("trace"),
        seeds=numbers("seed"),
        tokens=tokens,
        prompt_tokens=numbers("prompt_tokens"),
        lost_tokens=numbers("lost_tokens"),
        started=numbers("started", np.float64),
        ended=numbers("ended", np.float64),
        correct=_correct(table),
        finish=tuple(reasons[position] for position in positions),
        answers=_answers(table),
    )


def from_rows(rows: Sequence[RecordedTrace]) -> Columns:
    """Rows of one question as columns."""

    def values(name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.array([getattr(row, name) for row in rows], kind)

    return Columns(
        numbers=values("number", np.int64),
        seeds=values("seed", np.int64),
        tokens=values("tokens", np.int64),
        prompt_tokens=values("prompt_tokens", np.int64),
        lost_tokens=values("lost_tokens", np.int64),
        started=values("started", np.float64),
        ended=values("ended", np.float64),
        correct=values("correct", np.bool_),
        finish=tuple(row.finish for row in rows),
        answers=tuple(row.answer for row in rows),
    )


def _tokens(table: Any, place: Place) -> NDArray[np.int64]:
    """Counts of tokens, which tell how much room confidences need."""
    counts = table.column("tokens").fill_null(-1).to_numpy().astype(np.int64, copy=False)
    wrong = np.flatnonzero(counts < 0)
    if wrong.size:
        raise place.unreadable(int(wrong[0]), "has no count of tokens, or a negative one")
    return counts


def _correct(table: Any) -> NDArray[np.bool_]:
    # A column without a single value may have no type of its own.
    known = table.column("correct").cast("bool")
    return known.fill_null(False).to_numpy().astype(np.bool_)  # noqa: FBT003


def _answers(table: Any) -> tuple[Answer | None, ...]:
    texts, spellings = codes(table, "answer")
    keys, classes = codes(table, "answer_key")
    # Equal answers share one object: a pool holds few of them, thousands of times.
    made: dict[tuple[int, int], Answer | None] = {}
    for pair in set(zip(texts.tolist(), keys.tolist(), strict=True)):
        text, key = pair
        made[pair] = Answer(spellings[text], classes[key]) if text >= 0 and key >= 0 else None
    return tuple(made[pair] for pair in zip(texts.tolist(), keys.tolist(), strict=True))


@contextmanager
def _whole(place: Path, column: str) -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise RecordingError(
            tried=f"read the recording {place}",
            found=f"its column {column!r} holds what cannot be: {error}",
            remedy="Was it written by a newer version? Then upgrade conviction.",
        ) from None
