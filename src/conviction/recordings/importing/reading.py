"""Reading what other programs recorded; what a file is shows in what it holds.

    answers alone    JSON lines with "all_answers": [[answer, tokens], …] and "gold_answer"
    DeepConf         the reference implementation's results as JSON, with "all_traces"
    Inspect          logs (.json or .eval) of samples whose outputs carry "top_logprobs"

Pickles are not read, because reading one runs what is in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import msgspec
import numpy as np

from conviction.answers import AnswerKind, is_correct, kind
from conviction.core import Answer, FinishReason, Trace
from conviction.database import explained
from conviction.recordings.columns import Rows
from conviction.recordings.importing.base import (
    Imported,
    ImportedQuestion,
    ImportedTrace,
    objects,
    refused,
    shaped,
)
from conviction.recordings.importing.deepconf import read_deepconf
from conviction.recordings.importing.inspect import read_inspect_json, read_inspect_zip
from conviction.recordings.index import Index
from conviction.recordings.rows import RowMaker
from conviction.recordings.schema import PoolMeta, RecordedQuestion, RecordedTrace, check_row


def read_file(path: Path) -> Imported:
    """Read a file of any of the shapes above.

    Raises:
        RecordingError: it has none of them, holds no trace, or a part of it cannot be used; it
            names the place.
    """
    found = _read(path)
    if not any(question.traces for question in found.questions):
        raise refused(path, "it holds no trace", "Name a file with traces.")
    return found


def _read(path: Path) -> Imported:
    with explained(f"read {path}", path):
        if is_zipfile(path):
            return read_inspect_zip(path)
        try:
            lines = objects(path)
            first = next(lines)
            keys = set(first[1])
            if "all_answers" in keys:
                return _read_answers_only(path, chain([first], lines))
            if "all_traces" in keys:
                return read_deepconf(path, first[1])
            if {"eval", "samples"} <= keys:
                return read_inspect_json(path, first[1])
        except UnicodeDecodeError:
            raise refused(path, "it is no text; pickles are not read", "Save it as JSON.") from None
    raise refused(path, f"it has none of the known shapes; its fields: {', '.join(sorted(keys))}")


@dataclass(frozen=True, slots=True)
class _NothingRecorded:
    """What a `RowMaker` knows where nothing was recorded before."""

    meta: PoolMeta

    def answers(self, question_id: str) -> Mapping[str, str]:  # noqa: ARG002
        """No answer has its key yet."""
        return {}


def read_rows(path: Path, index: Index, answers: str) -> Rows:
    """Read a file into memory, as if it were a pool.

    Args:
        path: The file.
        index: Takes note of what there is.
        answers: Kind of answer that finds answers in texts, and compares them.

    Raises:
        RecordingError: it cannot be used.
    """
    found = read_file(path)
    compared = kind(answers)
    try:
        meta = meta_of(found, compared)
        index.use_meta(meta, str(path))
        maker = RowMaker(_NothingRecorded(meta), compared, grade=is_correct)
        rows: list[RecordedTrace] = []
        for question in each_once(found.questions, {}):
            for trace in question.traces:
                row = imported_row(maker, question, trace, compared)
                check_row(row, meta)
                index.add(row, question.place)
                rows.append(row)
    finally:
        compared.close()
    return Rows(rows)


def meta_of(found: Imported, answers: AnswerKind, model: str | None = None) -> PoolMeta:
    """The facts of a pool of what a file holds.

    Args:
        found: What it holds.
        answers: The kind of answers.
        model: Name of the model, if it is not to be the file's.
    """
    return PoolMeta(
        model=model or found.model,
        top_k=found.top_k,
        answers=answers.name,
        sampling=found.sampling,
        source=found.source,
    )


def each_once(
    questions: Iterable[ImportedQuestion], seen: dict[str, str]
) -> Iterator[ImportedQuestion]:
    """Questions, and where each stands, which `seen` is told.

    Raises:
        RecordingError: one stands there twice.
    """
    for question in questions:
        if question.id in seen:
            raise refused(
                question.place,
                f"question {question.id!r} stands twice, first in {seen[question.id]}",
                "Keep one of them, or give each an id of its own.",
            )
        seen[question.id] = question.place
        yield question


def imported_row(
    rows: RowMaker, question: ImportedQuestion, trace: ImportedTrace, answers: AnswerKind
) -> RecordedTrace:
    """The row of a trace, with the answer that its text holds."""
    found = trace.answer if trace.text is None else answers.extract(trace.text)
    complete = trace.finish in (FinishReason.STOP, FinishReason.LENGTH)
    unknown = np.empty(0, np.float32)
    return rows.row(
        RecordedQuestion(question.id, question.text, question.gold, question.prompt_hash, 0),
        Trace(
            id=trace.number,
            finish=trace.finish,
            tokens=trace.tokens,
            text=trace.text or "",
            confidences=unknown if trace.confidences is None else trace.confidences,
            answer=Answer(found, found) if found and complete else None,
            ended=trace.seconds,
            prompt_tokens=trace.prompt_tokens,
        ),
        trace.number,
    )


class _Line(msgspec.Struct):
    all_answers: list[tuple[str | None, int]]
    problem_num: int | str
    gold_answer: str | float | None = None
    question: str = ""


def _read_answers_only(path: Path, lines: Iterable[tuple[int, Any]]) -> Imported:
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
