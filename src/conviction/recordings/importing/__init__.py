"""Pools out of what other programs recorded.

What a file is shows in what it holds:

    answers alone    JSON lines with "all_answers": [[answer, tokens], …] and "gold_answer"
    DeepConf         the reference implementation's results as JSON, with "all_traces"
    Inspect          logs (.json or .eval) of samples whose outputs carry "top_logprobs"

Pickles are not read, because reading one runs what is in it.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from zipfile import is_zipfile

import numpy as np

from conviction.answers import AnswerKind
from conviction.core import Answer, FinishReason, Trace
from conviction.recordings.folder import explained
from conviction.recordings.importing.answers_only import read_answers_only
from conviction.recordings.importing.base import Imported, ImportedQuestion, ImportedTrace, refused
from conviction.recordings.importing.deepconf import read_deepconf
from conviction.recordings.importing.inspect import read_inspect_json, read_inspect_zip
from conviction.recordings.importing.json_files import objects
from conviction.recordings.rows import Grade, RowMaker
from conviction.recordings.schema import PoolMeta, RecordedQuestion, RecordedTrace
from conviction.recordings.writer import PoolWriter

__all__ = ["Imported", "ImportedQuestion", "ImportedTrace", "import_files", "read_file"]


def read_file(path: Path) -> Imported:
    """Read a file of any of the shapes above.

    Raises:
        RecordingError: it has none of them, or a part of it cannot be used; it names the place.
    """
    with explained(path, "read"):
        if is_zipfile(path):
            return read_inspect_zip(path)
        try:
            lines = objects(path)
            first = next(lines)
            keys = set(first[1])
            if "all_answers" in keys:
                return read_answers_only(path, chain([first], lines))
            if "all_traces" in keys:
                return read_deepconf(path, first[1])
            if {"eval", "samples"} <= keys:
                return read_inspect_json(path, first[1])
        except UnicodeDecodeError:
            raise refused(path, "it is no text; pickles are not read", "Save it as JSON.") from None
    raise refused(path, f"it has none of the known shapes; its fields: {', '.join(sorted(keys))}")


def import_files(
    paths: Sequence[Path],
    pool: Path,
    *,
    answers: AnswerKind,
    grade: Grade,
    model: str | None = None,
    keep_text: bool = True,
) -> tuple[int, int]:
    """Bring files into a pool; questions and traces that were there before stay.

    Args:
        paths: The files; all of one model and k.
        pool: The pool's folder; made if need be.
        answers: Finds answers in texts, and compares them.
        grade: Tells right answers.
        model: Name of the model, if it is not to be the files'.
        keep_text: Whether texts are kept.

    Returns:
        How many traces were imported, and how many were there before.

    Raises:
        RecordingError: a file cannot be used or holds no trace, a question stands in them twice,
            or the pool cannot be written.
    """
    imported = before = 0
    seen: dict[str, str] = {}
    for path in paths:
        found = read_file(path)
        if not any(question.traces for question in found.questions):
            raise refused(path, "it holds no trace", "Name a file with traces.")
        meta = PoolMeta(
            model=model or found.model,
            top_k=found.top_k,
            answers=answers.name,
            sampling=found.sampling,
            source=found.source,
        )
        with PoolWriter(pool, meta) as writer:
            rows = RowMaker(writer, answers, grade=grade, keep_text=keep_text)
            for question in found.questions:
                if question.id in seen:
                    raise refused(
                        question.place,
                        f"question {question.id!r} stands twice, first in {seen[question.id]}",
                        "Keep one of them, or give each an id of its own.",
                    )
                seen[question.id] = question.place
                present = writer.numbers(question.id)
                new = [trace for trace in question.traces if trace.number not in present]
                before += len(question.traces) - len(new)
                imported += len(new)
                # In one go, so that no question is there with some of its traces only.
                writer.append(*(_row(rows, question, trace, answers) for trace in new))
            writer.compact()
    return imported, before


def _row(
    rows: RowMaker, question: ImportedQuestion, trace: ImportedTrace, answers: AnswerKind
) -> RecordedTrace:
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
