"""Reading what other programs recorded; what a file is shows in what it holds.

    answers alone    JSON lines with "all_answers": [[answer, tokens], …] and "gold_answer"
    DeepConf         the reference implementation's results as JSON, with "all_traces"
    Inspect          logs (.json or .eval) of samples whose outputs carry "top_logprobs"

Pickles are not read, because reading one runs what is in it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import msgspec

from conviction.answers import AnswerKind, is_correct, kind
from conviction.core import Answer, FinishReason, Trace
from conviction.database import explained
from conviction.recordings.columns import Source, row_pieces
from conviction.recordings.importing.base import (
    Imported,
    ImportedQuestion,
    asked_question,
    objects,
    refused,
    shaped,
)
from conviction.recordings.importing.deepconf import read_deepconf
from conviction.recordings.importing.inspect import read_inspect_json, read_inspect_zip
from conviction.recordings.index import Index
from conviction.recordings.rows import RowMaker
from conviction.recordings.schema import PoolMeta, RecordedTrace, check_row


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


def read_rows(path: Path, index: Index, answers: str) -> Source:
    """Read a file into memory, as if it were a pool; `index` takes note of what there is.

    Answers are found in texts, and compared, by the kind of answer that `answers` names.

    Raises:
        RecordingError: it cannot be used.
    """
    found = read_file(path)
    compared = kind(answers)
    try:
        meta = replace(found.meta, answers=compared.name)
        index.use_meta(meta, str(path))
        maker = RowMaker(index, compared, grade=is_correct)
        rows: list[RecordedTrace] = []
        for question in each_once(found.questions, {}):
            for trace in question.traces:
                row = imported_row(maker, question, trace, compared)
                check_row(row, meta)
                index.add_row(row, question.place)
                rows.append(row)
    finally:
        compared.close()
    return row_pieces(rows)


def each_once(
    questions: Iterable[ImportedQuestion], seen: dict[str, str]
) -> Iterator[ImportedQuestion]:
    """Questions; the place of each is added to `seen`.

    Raises:
        RecordingError: one stands there twice.
    """
    for one in questions:
        if (name := one.question.id) in seen:
            raise refused(
                one.place,
                f"question {name!r} stands twice, first in {seen[name]}",
                "Keep one of them, or give each an id of its own.",
            )
        seen[name] = one.place
        yield one


def imported_row(
    rows: RowMaker, question: ImportedQuestion, trace: Trace, answers: AnswerKind
) -> RecordedTrace:
    """The row of a trace, with the answer that its text holds."""
    found = trace.answer.text if trace.answer else answers.extract(trace.text)
    answer = Answer(found, found) if found and trace.complete else None
    return rows.row(question.question, replace(trace, answer=answer), trace.id)


class _Line(msgspec.Struct):
    all_answers: list[tuple[str | None, int]]
    problem_num: int | str
    gold_answer: str | float | None = None
    question: str = ""


def _read_answers_only(path: Path, lines: Iterable[tuple[int, Any]]) -> Imported:
    """Questions with answers and token counts alone, from JSON objects with their line numbers.

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
        gold = None if line.gold_answer is None else str(line.gold_answer)
        question = asked_question(place, str(line.problem_num), line.question, gold, None)
        traces = tuple(
            # How a trace ended is not told; one without an answer does not vote anyway.
            Trace(position, FinishReason.STOP, tokens, answer=Answer(text, text) if text else None)
            for position, (text, tokens) in enumerate(line.all_answers)
        )
        questions.append(ImportedQuestion(place, question, traces))
    meta = PoolMeta(path.stem, 0, "", source=f"answers of {path.name}")
    return Imported(meta, tuple(questions))
