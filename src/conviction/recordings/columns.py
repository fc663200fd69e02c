"""Traces of one question as columns of numbers, out of an Arrow table."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.errors import RecordingError


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
        flat: All confidences, one trace after another; None without.
        place: Where they were read, for errors.
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
    flat: NDArray[np.float32] | None
    place: Path


def to_columns(table: Any, place: Path) -> Columns:
    """An Arrow table of traces as columns; confidences are not copied.

    Raises:
        RecordingError: a value cannot be, such as a list of confidences of the wrong length.
    """

    def numbers(name: str) -> Any:
        column = table.column(name).combine_chunks()
        return column.to_numpy(zero_copy_only=False)

    finish, finishes = codes(table, "finish")
    positions: list[int] = finish.tolist()
    reasons: list[FinishReason] = []
    with _whole(place, "finish"):
        reasons += [FinishReason(name) for name in finishes]
    tokens = numbers("tokens")
    return Columns(
        numbers=numbers("trace"),
        seeds=numbers("seed"),
        tokens=tokens,
        prompt_tokens=numbers("prompt_tokens"),
        lost_tokens=numbers("lost_tokens"),
        started=numbers("started"),
        ended=numbers("ended"),
        correct=table.column("correct").fill_null(False).to_numpy().astype(np.bool_),  # noqa: FBT003
        finish=tuple(reasons[position] for position in positions),
        answers=_answers(table),
        flat=_flat(table, tokens, place),
        place=place,
    )


def _answers(table: Any) -> tuple[Answer | None, ...]:
    texts, spellings = codes(table, "answer")
    keys, classes = codes(table, "answer_key")
    # Equal answers share one object: a pool holds few of them, thousands of times.
    made: dict[tuple[int, int], Answer | None] = {}
    for pair in set(zip(texts.tolist(), keys.tolist(), strict=True)):
        text, key = pair
        made[pair] = Answer(spellings[text], classes[key]) if text >= 0 and key >= 0 else None
    return tuple(made[pair] for pair in zip(texts.tolist(), keys.tolist(), strict=True))


def _flat(table: Any, tokens: NDArray[np.int64], place: Path) -> NDArray[np.float32] | None:
    column = table.column("confidences").combine_chunks()
    if column.null_count == len(column):
        return None
    sizes = np.diff(column.offsets.to_numpy())
    wrong = np.flatnonzero(sizes != tokens)
    if wrong.size or column.null_count:
        row = int(wrong[0]) if wrong.size else 0
        raise RecordingError(
            tried=f"read the recording {place}",
            found=f"trace {table.column('trace')[row]} of question "
            f"{str(table.column('question_id')[row])!r} has {tokens[row]} tokens and "
            f"{sizes[row]} confidences",
            remedy="Record it again.",
        )
    return column.flatten().to_numpy(zero_copy_only=True)


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
