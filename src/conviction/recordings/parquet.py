"""Reading Parquet files of recorded traces; `transfer.py` writes them.

A file is sorted into row groups of whole questions, so that reading one question touches its row
groups only. Columns, one row per trace, are those of `TYPES` and `LISTS`. Question and trace are
the key; model, top_k and sampling (as JSON) are the same in all rows of a pool.

Null is allowed in gold, sampling, text, answer with answer_key, correct where there is no gold,
logprobs of single traces, and confidences in pools without. What is unknown of a token is NaN. A
file that was written before there was a column `logprobs` lacks it, which means null. Further
columns are left alone. The file's metadata hold `conviction` → version of the schema and facts of
the pool as JSON. Pages of values have checksums, and the file's description has one of ours
(`footer.py`); files of earlier versions and of other programs may lack them.

Confidences are nearly all of it. They are decoded a few megabytes at a time, each straight to where
it belongs, so that reading takes little more memory than what was read.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.database import explained
from conviction.errors import MissingExtraError, RecordingError
from conviction.recordings.columns import Columns, Source, shared_answer
from conviction.recordings.footer import Checksums, sealed_checksums
from conviction.recordings.index import Index
from conviction.recordings.schema import (
    PoolMeta,
    RecordedQuestion,
    decode_meta,
    in_range,
    unreadable,
)

METADATA_KEY = b"conviction"
TYPES = {
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

LISTS = ("logprobs", "confidences")
"""Columns of lists of float32, one value per token."""

REPEATED = [name for name, kind in TYPES.items() if kind == "string" and name != "text"]
"""Texts that stand in many rows."""

_NULLABLE = ("gold", "sampling", "text", "answer", "answer_key", "correct")
_REQUIRED = ("question_id", "trace", "prompt_hash", "question", "top_k", "seed", "finish")
"""Columns without a null; that of the model is compared to the file's description anyway."""

_INDEX_COLUMNS = (*_REQUIRED, "gold", "model", "sampling", "answer", "answer_key", "correct")
"""Columns that tell what a pool holds, without what is large."""

_TRACE_COLUMNS = (
    *("trace", "seed", "finish", "tokens", "prompt_tokens", "lost_tokens", "started", "ended"),
    *("answer", "answer_key", "correct"),
)
"""Columns of one question's traces, without texts and what has a value per token."""

_BATCH_BYTES = 4 << 20
"""Values that are decoded at once, about."""

_NONE = np.empty(0, np.float32)
_FINISHES = frozenset(FinishReason)


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


@dataclass(frozen=True, eq=False)
class Part:
    """A Parquet file whose description was read; all reading raises RecordingError if damaged.

    Attributes:
        names: Its columns.
        description: What pyarrow needs to read it without reading its end again.
        group_ends: Rows up to the end of each row group, shape (row groups,).
        checksums: Of all its columns; None in a file without.
    """

    path: Path
    meta: PoolMeta
    names: list[str]
    description: Any = field(repr=False)
    group_ends: NDArray[np.int64] = field(repr=False)
    checksums: Checksums | None = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Part":
        """Read a file's description.

        Raises:
            RecordingError: it is no whole part of a pool that this version can read.
        """
        with _readable(path):
            sums = sealed_checksums(path)
            description = arrow("pyarrow.parquet").read_metadata(path)
        what, remedy = f"the recording {path}", "Name a pool that `conviction record` made."
        metadata: dict[bytes, bytes] = description.metadata or {}
        header = metadata.get(METADATA_KEY)
        if header is None:
            found = "it is a Parquet file, but not one of recorded traces"
            raise unreadable(what, found, remedy)
        meta = decode_meta(header, str(path))
        schema = description.schema.to_arrow_schema()
        if missing := sorted({*TYPES, "confidences"}.difference(schema.names)):
            raise unreadable(what, f"these columns are missing: {', '.join(missing)}", remedy)
        _check_types(what, schema)
        sizes = [description.row_group(i).num_rows for i in range(description.num_row_groups)]
        ends = np.cumsum(np.array(sizes, np.int64))
        checksums = None if sums is None else Checksums(path, description, ends, sums)
        return cls(path, meta, schema.names, description, ends, checksums)

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
        """Some columns of row groups, None for all, as an Arrow table, strings as dictionaries."""
        dictionaries = [name for name in REPEATED if name in columns]
        wanted = range(self.group_ends.size) if groups is None else groups
        with _readable(self.path), self._opened(read_dictionary=dictionaries) as file:
            if self.checksums:
                self.checksums.check(columns, wanted)
            table = file.read_row_groups(list(wanted), columns=list(columns))
            if not self.checksums:
                table.validate(full=True)
            table = table.unify_dictionaries().combine_chunks()
        rows = sum(self.description.row_group(group).num_rows for group in wanted)
        if table.num_rows != rows:
            found = f"row groups hold {table.num_rows:,} rows, not {rows:,}"
            raise unreadable(f"the recording {self.path}", found)
        return table

    def lists(self, name: str, groups: Sequence[int], rows: int) -> Iterator[Any]:
        """A column of lists as Arrow arrays of at most so many rows, to hold little at once."""
        # What is read ahead is bounded, too: a row group may be as large as a question.
        with _readable(self.path), self._opened(buffer_size=1 << 20, pre_buffer=False) as file:
            if self.checksums:
                self.checksums.check([name], groups)
            for batch in file.iter_batches(
                rows, row_groups=list(groups), columns=[name], use_threads=False
            ):
                yield batch.column(0)

    def _opened(self, **options: Any) -> Any:
        return arrow("pyarrow.parquet").ParquetFile(
            self.path, metadata=self.description, page_checksum_verification=True, **options
        )


def _check_types(what: str, schema: Any) -> None:
    """Check that columns with one value per trace hold what they should, of any width."""
    types = arrow("pyarrow.types")
    tests = {
        "string": ("text", _is_text),
        "int64": ("whole numbers", types.is_integer),
        "float64": ("numbers", types.is_floating),
        "bool": ("true and false", types.is_boolean),
    }
    for name, kind in TYPES.items():
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


def parquet_pieces(path: Path, index: Index) -> Source:
    """The traces of a Parquet file; `index` takes note of what there is.

    Raises:
        RecordingError: it is damaged, of a newer version, or does not fit what was there before.
    """
    part = Part.open(path)
    groups: dict[str, dict[int, None]] = {}
    index.use_meta(part.meta, str(path))
    for number, row in enumerate(part.rows(_INDEX_COLUMNS)):
        _check_row(row, part, number)
        question = RecordedQuestion(
            row["question_id"], row["question"], row["gold"], row["prompt_hash"], 0
        )
        answer = shared_answer(row["answer"], row["answer_key"])
        place = f"row {number + 1} of {path}"
        index.add(question, row["trace"], row["seed"], row["finish"], answer, place=place)
        group = int(np.searchsorted(part.group_ends, number, side="right"))
        groups.setdefault(question.id, {})[group] = None
    return {name: ParquetPiece(part, list(numbers), name) for name, numbers in groups.items()}


@dataclass(eq=False)
class ParquetPiece:
    """The traces of one question in a Parquet file, which lie in some of its row groups."""

    part: Part
    groups: Sequence[int]
    question_id: str

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        """Which rows of these groups they are."""
        compute = arrow("pyarrow.compute")
        ids = self.part.read(("question_id",), self.groups).column("question_id")
        return compute.equal(ids, self.question_id).to_numpy()

    @property
    def columns(self) -> Columns:
        """The traces, without what has a value per token."""
        return self._checked_columns

    @cached_property
    def _checked_columns(self) -> Columns:
        """Checked that there is room for all tokens, or that there are no confidences."""
        columns = self._columns
        confidences = self.part.meta.top_k > 0
        if not confidences or columns.tokens.sum() > self._stored("confidences"):
            for place, values in self._lists("confidences"):
                if confidences:
                    self._checked(place, values)
                elif values is not None:
                    raise self._unreadable(place, "has confidences, and the pool's k is 0")
        return columns

    @cached_property
    def _columns(self) -> Columns:
        rows: list[tuple[Any, ...]] = []
        for place, row in enumerate(self.part.rows(_TRACE_COLUMNS, self.groups, self._mask)):
            if row["tokens"] is None or row["tokens"] < 0:
                found = "has no count of tokens, or a negative one"
                raise self._unreadable(place, found, row["trace"])
            for name in ("prompt_tokens", "lost_tokens", "started", "ended"):
                if row[name] is None:
                    raise self._unreadable(place, f"has no {name}", row["trace"])
            rows.append(
                (
                    *(row["trace"], row["seed"], row["tokens"], row["prompt_tokens"]),
                    *(row["lost_tokens"], row["started"], row["ended"], bool(row["correct"])),
                    *(FinishReason(row["finish"]), shared_answer(row["answer"], row["answer_key"])),
                )
            )
        return Columns.of(rows)

    def fill(self, begins: NDArray[np.int64], flat: NDArray[np.float32]) -> None:
        """Read the confidences; `begins` says where those of each trace begin in `flat`."""
        for place, values in self._lists("confidences"):
            checked = self._checked(place, values)
            flat[begins[place] : begins[place] + checked.size] = checked

    def logprobs(self) -> list[NDArray[np.float32] | None]:
        """The log-probabilities of each trace; None for one without."""
        found: list[NDArray[np.float32] | None] = [None] * len(self.columns)
        # A part from before there was this column lacks it.
        if "logprobs" in self.part.names:
            for place, values in self._lists("logprobs"):
                if values is not None:
                    found[place] = self._checked(place, values, "log-probabilities", -1).copy()
        return found

    def texts(self) -> list[str | None]:
        """What each trace wrote; None where that was not kept."""
        return [row["text"] for row in self.part.rows(("text",), self.groups, self._mask)]

    def _lists(self, name: str) -> Iterator[tuple[int, NDArray[np.float32] | None]]:
        """The place of each trace, and its values in a column of lists; None for null."""
        compute = arrow("pyarrow.compute")
        # By what is stored: other questions of these groups may have far longer traces.
        typical = np.float32().nbytes * max(self._stored(name) / self._mask.size, 1.0)
        seen = place = 0
        for lists in self.part.lists(name, self.groups, max(int(_BATCH_BYTES / typical), 1)):
            mask = self._mask[seen : seen + len(lists)]
            seen += len(lists)
            if not mask.any():
                continue
            mine = lists if mask.all() else lists.filter(arrow().array(mask))
            valid = mine.is_valid().to_numpy(zero_copy_only=False)
            if valid.any() and getattr(mine.type, "value_type", None) != arrow().float32():
                words = name.replace("logprobs", "log-probabilities")
                raise self._unreadable(place, f"has {words} of type {mine.type}")
            sizes = compute.list_value_length(mine).fill_null(0).to_numpy(zero_copy_only=False)
            values = mine.flatten().to_numpy(zero_copy_only=False) if valid.any() else _NONE
            ends = np.cumsum(sizes).tolist()
            for begin, end, there in zip([0, *ends], ends, valid.tolist(), strict=False):
                yield place, values[begin:end] if there else None
                place += 1

    def _checked(
        self, place: int, values: Any, words: str = "confidences", sign: int = 1
    ) -> NDArray[np.float32]:
        tokens = int(self._columns.tokens[place])
        size = 0 if values is None else values.size
        if values is None or size != tokens:
            raise self._unreadable(place, f"has {tokens} tokens and {size} {words}")
        if not in_range(values if sign > 0 else -values):
            wrong = "negative" if sign > 0 else "positive"
            raise self._unreadable(place, f"has infinite or {wrong} {words}")
        return values

    def _stored(self, name: str) -> int:
        """Values of a column in the row groups, those of other questions included."""
        description = self.part.description
        paths = [description.schema.column(i).path for i in range(description.num_columns)]
        column = next(i for i, path in enumerate(paths) if path.split(".")[0] == name)
        groups = [description.row_group(group) for group in self.groups]
        return sum(group.column(column).num_values for group in groups)

    def _unreadable(self, place: int, found: str, number: int | None = None) -> RecordingError:
        ends: list[int] = [0, *self.part.group_ends.tolist()]
        rows = [row for group in self.groups for row in range(ends[group], ends[group + 1])]
        row = rows[int(np.flatnonzero(self._mask)[place])]
        trace = self._columns.ids[place] if number is None else number
        found = f"trace {trace} of question {self.question_id!r} {found}"
        return unreadable(f"row {row + 1} of {self.part.path}", found)


def _check_row(row: dict[str, Any], part: Part, number: int) -> None:
    """Check that nothing is missing or contradicts the file's description."""
    meta = part.meta
    found = [f"it has no {name}" for name in _REQUIRED if row[name] is None]
    for name, column, wanted in (
        ("model", "model", meta.model),
        ("sampling", "sampling", meta.sampling_json),
        ("k", "top_k", meta.top_k),
    ):
        if row[column] != wanted:
            found.append(f"its {name} is {row[column]}, not that of the file")
    if (row["answer"] is None) != (row["answer_key"] is None):
        found.append("it has an answer without its answer_key, or the key alone")
    if row["gold"] is not None and row["correct"] is None:
        found.append(
            "it has no correct, which says whether it is right, and its question has a gold"
        )
    if row["finish"] not in _FINISHES:
        found.append(f"its 'finish' is {row['finish']!r}: was it written by a newer version?")
    if found:
        raise unreadable(f"row {number + 1} of {part.path}", found[0])
