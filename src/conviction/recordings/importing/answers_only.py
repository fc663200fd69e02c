"""Recorded answers without confidences: JSON lines, one question each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from conviction.core import FinishReason
from conviction.recordings.importing.base import (
    Imported,
    ImportedQuestion,
    ImportedTrace,
    refused,
    shaped,
)


class _Line(msgspec.Struct):
    all_answers: list[tuple[str | None, int]]
    problem_num: int | str
    gold_answer: str | float | None = None
    question: str = ""


def read_answers_only(path: Path, lines: Iterable[tuple[int, Any]]) -> Imported:
    """Questions with answers and token counts alone.

    Args:
        path: The file.
        lines: Its JSON objects, with their line numbers.

    Raises:
        RecordingError: a line has another shape.
    """
    questions: list[ImportedQuestion] = []
    for number, value in lines:
        place = f"line {number} of {path}"
        line = shaped(value, _Line, place)
        if any(tokens < 0 for _, tokens in line.all_answers):
            raise refused(place, "a count of tokens is negative")
        if not line.all_answers:
            raise refused(place, "it has no answer: all_answers is empty", "Leave out the line.")
        questions.append(
            ImportedQuestion(
                place=place,
                id=str(line.problem_num),
                text=line.question,
                gold=None if line.gold_answer is None else str(line.gold_answer),
                prompt_hash="",
                traces=tuple(
                    # How a trace ended is not told; one without an answer does not vote anyway.
                    ImportedTrace(position, FinishReason.STOP, tokens, answer=answer or None)
                    for position, (answer, tokens) in enumerate(line.all_answers)
                ),
            )
        )
    return Imported(path.stem, 0, None, f"answers of {path.name}", tuple(questions))
