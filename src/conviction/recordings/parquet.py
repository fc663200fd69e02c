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
from conviction.errors import MissingExtraError, RecordingError
from conviction.files import finished_file
from conviction.recordings.schema import PoolMeta, RecordedTrace, decode_meta, encode_meta

_METADATA_KEY = b"conviction"
_GROUP_BYTES = 1 << 20
"""Row groups are at least this large, as small ones cost more to describe than they hold."""

_KEYS = ("question_id", "prompt_hash", "question", "gold", "model", "sampling")
_STRINGS = (*_KEYS, "finish", "answer", "answer_key")
_WHOLE = ("trace", "top_k", "seed", "tokens", "prompt_tokens", "lost_tokens")
_REAL = ("started", "ended")
_LISTS = ("logprobs", "confidences")
_NULLABLE = ("gold", "sampling", "text", "answer", "answer_key", "correct")
INDEX_COLUMNS = (*_KEYS, "trace", "top_k", "seed", "finish", "answer", "answer_key", "correct")
"""Columns that tell what a pool holds, without what is large."""

TRACE_COLUMNS = (
    *("question_id", "trace", "seed", "finish", "tokens", "prompt_tokens", "lost_tokens"),
    *("started", "ended", "answer", "answer_key", "correct", "confidences"),
)
"""Columns of one question's traces, without their texts."""


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
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    types = {
        "question_id": text,
        "trace": whole,
        **dict.fromkeys(("prompt_hash", "question", "gold", "model"), text),
        "top_k": whole,
        "sampling": text,
        "seed": whole,
        "finish": text,
        **dict.fromkeys(("tokens", "prompt_tokens", "lost_tokens"), whole),
        **dict.fromkeys(("started", "ended"), real),
        **dict.fromkeys(("text", "answer", "answer_key"), text),
        "correct": pa.bool_(),
        **dict.fromkeys(_LISTS, list_type()),
    }
    fields = [pa.field(name, kind) for name, kind in types.items()]
    return pa.schema(fields, metadata={_METADATA_KEY: encode_meta(meta)})


def list_type() -> Any:
    """The type of a column with a value per token."""
    pa = arrow()
    return pa.list_(pa.field("element", pa.float32()))


def to_table(rows: Sequence[RecordedTrace], meta: PoolMeta) -> Any:
    """Rows as an Arrow table with the columns of a part."""
    pa = arrow()
    schema = _schema(meta)
    shared = {"model": meta.model, "top_k": meta.top_k, "sampling": meta.sampling_json}
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in shared.items()}
    columns["trace"] = [row.number for row in rows]
    columns["answer"] = [row.answer.text if row.answer else None for row in rows]
    columns["answer_key"] = [row.answer.key if row.answer else None for row in rows]
    columns["finish"] = [str(row.finish) for row in rows]
    columns["logprobs"] = _lists([row.logprobs for row in rows])
    columns["confidences"] = _lists([row.confidences for row in rows])
    for name in schema.names:
        if name not in columns:
            columns[name] = [getattr(row, name) for row in rows]
    arrays = [
        column if name in _LISTS else pa.array(column, schema.field(name).type)
        for name, column in ((name, columns[name]) for name in schema.names)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(values: Sequence[NDArray[np.float32] | None]) -> Any:
    pa = arrow()
    kind = list_type()
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
        "use_dictionary": [*_STRINGS],
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
            writer.write_table(to_table(rows, meta), row_group_size=len(rows))


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
        description: What pyarrow needs to read it without reading its end again.
        group_ends: Rows up to the end of each row group, shape (row groups,).
    """

    path: Path
    meta: PoolMeta
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
        metadata: dict[bytes, bytes] = description.metadata or {}
        meta = metadata.get(_METADATA_KEY)
        if meta is None:
            raise RecordingError(
                tried=f"read the recording {path}",
                found="it is a Parquet file, but not one of recorded traces",
                remedy="Name a pool that `conviction record` made.",
            )
        part = cls(path, decode_meta(meta, str(path)), description, _group_ends(description))
        part.require_columns({*INDEX_COLUMNS, *TRACE_COLUMNS, "text"})
        part.check_types()
        return part

    def require_columns(self, wanted: set[str]) -> None:
        """Check that there are columns of these names.

        Raises:
            RecordingError: there are not.
        """
        missing = sorted(wanted.difference(self.names))
        if missing:
            raise RecordingError(
                tried=f"read the recording {self.path}",
                found=f"these columns are missing: {', '.join(missing)}",
                remedy="Name a pool that `conviction record` made.",
            )

    @property
    def names(self) -> list[str]:
        """Its columns."""
        return self.description.schema.to_arrow_schema().names

    def check_types(self) -> None:
        """Check that columns with one value per trace hold what they should, of any width.

        Raises:
            RecordingError: one holds something else.
        """
        types = arrow("pyarrow.types")
        kinds = {
            **dict.fromkeys((*_STRINGS, "text"), ("text", _is_text)),
            **dict.fromkeys(_WHOLE, ("whole numbers", types.is_integer)),
            **dict.fromkeys(_REAL, ("numbers", types.is_floating)),
            "correct": ("true and false", types.is_boolean),
        }
        schema = self.description.schema.to_arrow_schema()
        for name, (wanted, fits) in kinds.items():
            found = schema.field(name).type
            if fits(found) or (name in _NULLABLE and types.is_null(found)):
                continue
            raise RecordingError(
                tried=f"read the recording {self.path}",
                found=f"its column {name!r} holds values of type {found}, not {wanted}",
                remedy="Write it with the types that docs/recordings.md names, or restore the "
                "file from a copy.",
            )

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
        dictionaries = [name for name in _STRINGS if name in columns]
        with (
            _readable(self.path),
            pq.ParquetFile(
                self.path, metadata=self.description, read_dictionary=dictionaries
            ) as file,
        ):
            wanted = range(self.group_ends.size) if groups is None else groups
            table = file.read_row_groups(list(wanted), columns=list(columns))
        return table.unify_dictionaries().combine_chunks()


def _is_text(kind: Any) -> bool:
    types = arrow("pyarrow.types")
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _group_ends(description: Any) -> NDArray[np.int64]:
    sizes = [description.row_group(i).num_rows for i in range(description.num_row_groups)]
    return np.cumsum(np.array(sizes, np.int64))


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
            raise RecordingError(
                tried=f"read the recording {path}",
                found=f"it is no whole Parquet file ({str(error).splitlines()[0].rstrip('.')})",
                remedy="Restore it from a copy, or record again.",
            ) from None


def read_lists(part: Part, name: str, groups: Sequence[int], rows: int) -> Iterator[Any]:
    """A column of lists, some rows at a time, so that little of it is in memory at once.

    Args:
        part: The file.
        name: The column.
        groups: Numbers of the row groups.
        rows: How many rows at most come together.

    Yields:
        Arrow arrays, in order of the file.

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
