"""Rows as Parquet: the one place that knows pyarrow.

A part is sorted into row groups of whole questions, so that reading one question touches its row
groups only. Columns, one row per trace:

    question_id, trace        the key
    prompt_hash, question, gold
    model, top_k, sampling    the same in all rows of a pool; sampling as JSON
    seed, finish, tokens, prompt_tokens, lost_tokens, started, ended
    text, answer, answer_key, correct
    logprobs                  list<float32>, one per token; null in traces without
    confidences               list<float32>, one per token; null in pools without

Null is allowed in gold, sampling, text, answer with answer_key, correct where there is no gold, and
the lists. What is unknown of a token is NaN. A part that was written before there was a column
`logprobs` lacks it, which means null. Further columns are left alone. The file's metadata hold
`conviction` → version of the schema and facts of the pool as JSON.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.database import explained
from conviction.errors import MissingExtraError
from conviction.files import finished_file
from conviction.recordings.schema import (
    PoolMeta,
    RecordedTrace,
    decode_meta,
    encode_meta,
    unreadable,
)

_METADATA_KEY = b"conviction"
_GROUP_BYTES = 1 << 20
"""Row groups are at least this large, as small ones cost more to describe than they hold."""

_TYPES = {
    "question_id": "string",
    "trace": "int64",
    **dict.fromkeys(("prompt_hash", "question", "gold", "model"), "string"),
    "top_k": "int64",
    "sampling": "string",
    "seed": "int64",
    "finish": "string",
    **dict.fromkeys(("tokens", "prompt_tokens", "lost_tokens"), "int64"),
    **dict.fromkeys(("started", "ended"), "float64"),
    **dict.fromkeys(("text", "answer", "answer_key"), "string"),
    "correct": "bool",
}
"""Arrow's name for the type of each column with one value per trace."""

_LISTS = ("logprobs", "confidences")
_NULLABLE = ("gold", "sampling", "text", "answer", "answer_key", "correct")
_REPEATED = [name for name, kind in _TYPES.items() if kind == "string" and name != "text"]


def arrow(module: str = "pyarrow") -> Any:
    """The library pyarrow, or a module of it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(
            tried="read or write a Parquet file",
            found="the package pyarrow is not installed",
            remedy='Install it: pip install "conviction[lab]".',
        ) from None


def _schema(meta: PoolMeta) -> Any:
    pa = arrow()
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in _TYPES.items()]
    fields += [pa.field(name, _list_type()) for name in _LISTS]
    return pa.schema(fields, metadata={_METADATA_KEY: encode_meta(meta)})


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
    for name in _TYPES:
        if name not in columns:
            columns[name] = [getattr(row, name) for row in rows]
    arrays = [pa.array(columns[name], pa.type_for_alias(kind)) for name, kind in _TYPES.items()]
    arrays += [_lists([getattr(row, name) for row in rows]) for name in _LISTS]
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
    """Write a part; it is there as a whole, durably, or not at all.

    Args:
        path: Where to.
        groups: The rows of each question, a question at a time.
        meta: The pool's facts.

    Raises:
        RecordingError: the disk refuses.
    """
    pq = arrow("pyarrow.parquet")
    schema = _schema(meta)
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": _REPEATED,
        # Bytes of equal place beside each other: 3.0 bytes per confidence in place of 3.5.
        "use_byte_stream_split": [f"{name}.list.element" for name in _LISTS],
        "write_statistics": ["question_id", "trace", "tokens"],
    }
    with (
        explained(f"write the recording {path}", path),
        finished_file(path) as unfinished,
        pq.ParquetWriter(unfinished, schema, **options) as writer,
    ):
        for rows in _merged(groups):
            writer.write_table(_table(rows, meta), row_group_size=len(rows))


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


@dataclass(frozen=True, eq=False)
class Part:
    """A Parquet file whose description was read.

    Attributes:
        path: The file.
        meta: The pool's facts.
        names: Its columns.
        description: What pyarrow needs to read it without reading its end again.
        group_ends: Rows up to the end of each row group, shape (row groups,).
    """

    path: Path
    meta: PoolMeta
    names: list[str]
    description: Any = field(repr=False)
    group_ends: NDArray[np.int64] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Part":
        """Read a file's description.

        Raises:
            RecordingError: it is no whole part of a pool that this version can read.
        """
        with _readable(path):
            description = arrow("pyarrow.parquet").read_metadata(path)
        what, remedy = f"the recording {path}", "Name a pool that `conviction record` made."
        metadata: dict[bytes, bytes] = description.metadata or {}
        header = metadata.get(_METADATA_KEY)
        if header is None:
            found = "it is a Parquet file, but not one of recorded traces"
            raise unreadable(what, found, remedy)
        meta = decode_meta(header, str(path))
        schema = description.schema.to_arrow_schema()
        if missing := sorted({*_TYPES, "confidences"}.difference(schema.names)):
            raise unreadable(what, f"these columns are missing: {', '.join(missing)}", remedy)
        _check_types(what, schema)
        sizes = [description.row_group(i).num_rows for i in range(description.num_row_groups)]
        return cls(path, meta, schema.names, description, np.cumsum(np.array(sizes, np.int64)))

    def rows(
        self,
        columns: Sequence[str],
        groups: Sequence[int] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Rows of plain values by column, those of a mask alone if there is one; as `read`."""
        table = self.read(columns, groups)
        if mask is not None and not mask.all():
            table = table.filter(arrow().array(mask))
        lists = [table.column(name).to_pylist() for name in columns]
        return (dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True))

    def read(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Any:
        """Some columns as an Arrow table, strings as dictionaries.

        Args:
            columns: Their names; it has them all.
            groups: Numbers of the row groups; None for all.

        Raises:
            RecordingError: the file is damaged.
        """
        pq = arrow("pyarrow.parquet")
        dictionaries = [name for name in _REPEATED if name in columns]
        with (
            _readable(self.path),
            pq.ParquetFile(
                self.path, metadata=self.description, read_dictionary=dictionaries
            ) as file,
        ):
            wanted = range(self.group_ends.size) if groups is None else groups
            table = file.read_row_groups(list(wanted), columns=list(columns))
        return table.unify_dictionaries().combine_chunks()


def _check_types(what: str, schema: Any) -> None:
    """Check that columns with one value per trace hold what they should, of any width.

    Raises:
        RecordingError: one holds something else.
    """
    types = arrow("pyarrow.types")
    tests = {
        "string": ("text", _is_text),
        "int64": ("whole numbers", types.is_integer),
        "float64": ("numbers", types.is_floating),
        "bool": ("true and false", types.is_boolean),
    }
    for name, kind in _TYPES.items():
        wanted, fits = tests[kind]
        found = schema.field(name).type
        if not fits(found) and not (name in _NULLABLE and types.is_null(found)):
            raise unreadable(
                what,
                f"its column {name!r} holds values of type {found}, not {wanted}",
                "Write it with the types that docs/recordings.md names, or restore the file from "
                "a copy.",
            )


def _is_text(kind: Any) -> bool:
    types = arrow("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Turn what pyarrow reports into an error that says what to do."""
    failure: type[Exception] = arrow().ArrowException
    with explained(f"read the recording {path}", path):
        try:
            yield
        except (failure, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            found = f"it is no whole Parquet file ({reason})"
            raise unreadable(f"the recording {path}", found) from None


def read_lists(part: Part, name: str, groups: Sequence[int], rows: int) -> Iterator[Any]:
    """A column of lists as Arrow arrays of at most so many rows, to keep little in memory at once.

    Raises:
        RecordingError: the file is damaged.
    """
    pq = arrow("pyarrow.parquet")
    with (
        _readable(part.path),
        # What is read ahead is bounded, too: a row group may be as large as a question.
        pq.ParquetFile(
            part.path, metadata=part.description, buffer_size=_GROUP_BYTES, pre_buffer=False
        ) as file,
    ):
        batches = file.iter_batches(
            rows, row_groups=list(groups), columns=[name], use_threads=False
        )
        for batch in batches:
            yield batch.column(0)
