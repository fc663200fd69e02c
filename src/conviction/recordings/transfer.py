"""Pools in and out: other programs' files and earlier pools become one, and one becomes Parquet."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.answers import AnswerKind, is_correct
from conviction.database import explained, is_database
from conviction.files import expanded, finished_file
from conviction.recordings.file import PoolWriter
from conviction.recordings.folder import is_pool_folder
from conviction.recordings.footer import seal
from conviction.recordings.importing.base import refused
from conviction.recordings.importing.reading import each_once, imported_row, read_file
from conviction.recordings.parquet import LISTS, METADATA_KEY, REPEATED, TYPES, arrow
from conviction.recordings.pool import Pool
from conviction.recordings.rows import Grade, RowMaker
from conviction.recordings.schema import PoolMeta, RecordedQuestion, RecordedTrace, encode_meta

_GROUP_BYTES = 1 << 20
"""Row groups are at least this large, as small ones cost more to describe than they hold."""

_SUFFIXES = (".jsonl", ".json", ".eval", ".parquet", ".db")
"""Of a folder, these files are taken."""


def import_files(
    paths: Sequence[Path],
    pool: Path,
    *,
    answers: AnswerKind,
    grade: Grade = is_correct,
    model: str | None = None,
    keep_text: bool = True,
) -> tuple[int, int]:
    """Bring files into a pool; questions and traces that were there before stay.

    Args:
        paths: Files of other programs, pools, and folders of such; all of one model and k.
        pool: The pool's file; made if need be.
        answers: Finds answers in texts, and compares them; those of pools are taken as they are.
        grade: Tells right answers.
        model: Name of the model, if it is not to be the files'.
        keep_text: Whether texts are kept.

    Returns:
        How many traces were imported, and how many were there before.

    Raises:
        InvalidSettingError: there is no such file.
        RecordingError: a file cannot be used or holds no trace, a question stands in them twice,
            or the pool cannot be written.
    """
    counts: list[tuple[int, int]] = []
    seen: dict[str, str] = {}
    for path in _files(paths):
        if path.is_dir() or path.suffix == ".parquet" or is_database(path):
            counts.append(_copy(Pool.open(path), pool, model=model, keep_text=keep_text))
            continue
        found = read_file(path)
        meta = replace(found.meta, answers=answers.name, model=model or found.meta.model)
        with PoolWriter(pool, meta) as writer:
            rows = RowMaker(writer, answers, grade=grade, keep_text=keep_text)
            for question in each_once(found.questions, seen):
                present = writer.numbers(question.question.id)
                new = [trace for trace in question.traces if trace.id not in present]
                # In one go, so that no question is there with some of its traces only.
                writer.append(*(imported_row(rows, question, trace, answers) for trace in new))
                counts.append((len(new), len(question.traces) - len(new)))
    return sum(new for new, _ in counts), sum(before for _, before in counts)


def pack(pool: Pool, target: str | os.PathLike[str], *, keep_text: bool = True) -> None:
    """Write a pool as one Parquet file, question after question; one is held at a time.

    Args:
        pool: What to write.
        target: The file; replaced if it is there.
        keep_text: Whether the words of questions and traces come along. They are about a third of
            a pool, and may not be yours to pass on; answers and right answers stay.

    Raises:
        MissingExtraError: pyarrow is not installed.
        RecordingError: the pool is damaged, or the disk refuses.
    """
    groups = (list(_rows(pool, question, keep_text=keep_text)) for question in pool.questions)
    write_part(expanded(target), groups, pool.meta)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir() or is_pool_folder(path):
            yield path
            continue
        found = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES)
        if not found:
            raise refused(path, f"it holds no file that ends in {', '.join(_SUFFIXES)}")
        yield from found


def _copy(source: Pool, pool: Path, *, model: str | None, keep_text: bool) -> tuple[int, int]:
    imported = before = 0
    meta = replace(source.meta, model=model or source.model)
    with PoolWriter(pool, meta) as writer:
        for question in source.questions:
            present = writer.numbers(question.id)
            rows = list(_rows(source, question, keep_text=keep_text))
            new = [row for row in rows if row.number not in present]
            writer.append(*new)
            imported += len(new)
            before += len(rows) - len(new)
    return imported, before


def _rows(pool: Pool, question: RecordedQuestion, *, keep_text: bool) -> Iterator[RecordedTrace]:
    traces = pool.traces(question.id)
    texts = pool.texts(question.id) if keep_text else [None] * len(traces)
    logprobs = pool.logprobs(question.id)
    graded = question.gold is not None
    for position, text in enumerate(texts):
        yield RecordedTrace(
            question_id=question.id,
            number=int(traces.ids[position]),
            prompt_hash=question.prompt_hash,
            question=question.text if keep_text else "",
            gold=question.gold,
            seed=int(traces.seeds[position]),
            text=text,
            answer=traces.answers[position],
            correct=bool(traces.correct[position]) if graded else None,
            finish=traces.finish[position],
            tokens=int(traces.tokens[position]),
            prompt_tokens=int(traces.prompt_tokens[position]),
            lost_tokens=int(traces.lost_tokens[position]),
            confidences=traces.confidences[position] if traces.confidences else None,
            logprobs=logprobs[position],
            started=float(traces.started[position]),
            ended=float(traces.ended[position]),
        )


def _schema(meta: PoolMeta) -> Any:
    pa = arrow()
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in TYPES.items()]
    fields += [pa.field(name, _list_type()) for name in LISTS]
    return pa.schema(fields, metadata={METADATA_KEY: encode_meta(meta)})


def _list_type() -> Any:
    """The type of a column with a value per token."""
    pa = arrow()
    return pa.list_(pa.field("element", pa.float32()))


def _table(rows: Sequence[RecordedTrace], meta: PoolMeta) -> Any:
    pa = arrow()
    shared = {"model": meta.model, "top_k": meta.top_k, "sampling": meta.sampling_json}
    columns: dict[str, list[Any]] = {name: [value] * len(rows) for name, value in shared.items()}
    columns["trace"] = [row.number for row in rows]
    columns["answer"] = [row.answer.text if row.answer else None for row in rows]
    columns["answer_key"] = [row.answer.key if row.answer else None for row in rows]
    columns["finish"] = [str(row.finish) for row in rows]
    for name in TYPES:
        if name not in columns:
            columns[name] = [getattr(row, name) for row in rows]
    arrays = [pa.array(columns[name], pa.type_for_alias(kind)) for name, kind in TYPES.items()]
    arrays += [_lists([getattr(row, name) for row in rows]) for name in LISTS]
    return pa.Table.from_arrays(arrays, schema=_schema(meta))


def _lists(values: Sequence[NDArray[np.float32] | None]) -> Any:
    pa = arrow()
    kind = _list_type()
    known = [value for value in values if value is not None]
    if not known:
        return pa.nulls(len(values), kind)
    sizes = [0 if value is None else value.size for value in values]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    absent = np.array([value is None for value in values])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate(known)), type=kind, mask=pa.array(absent)
    )


def write_part(path: Path, groups: Iterable[Sequence[RecordedTrace]], meta: PoolMeta) -> None:
    """Write a Parquet file from the rows of each question; it is there whole, durably, or not.

    Raises:
        RecordingError: the disk refuses.
    """
    pq = arrow("pyarrow.parquet")
    schema = _schema(meta)
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": REPEATED,
        # Bytes of equal place beside each other: 3.0 bytes per confidence in place of 3.5.
        "use_byte_stream_split": [f"{name}.list.element" for name in LISTS],
        "write_statistics": ["question_id", "trace", "tokens"],
        "write_page_checksum": True,
    }
    with explained(f"write the recording {path}", path), finished_file(path) as unfinished:
        with pq.ParquetWriter(unfinished, schema, **options) as writer:
            for rows in _merged(groups):
                writer.write_table(_table(rows, meta), row_group_size=len(rows))
        seal(unfinished, pq.read_metadata(unfinished))


def _merged(groups: Iterable[Sequence[RecordedTrace]]) -> Iterator[list[RecordedTrace]]:
    """Groups put together until they are worth a row group."""
    waiting: list[RecordedTrace] = []
    size = 0
    for rows in groups:
        waiting += rows
        size += sum(_bytes(row) for row in rows)
        if size >= _GROUP_BYTES:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _bytes(row: RecordedTrace) -> int:
    lists = (row.logprobs, row.confidences)
    return 200 + len(row.text or "") + sum(one.nbytes for one in lists if one is not None)
