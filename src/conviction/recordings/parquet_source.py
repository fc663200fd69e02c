"""A Parquet file of recorded traces as a source.

Confidences are nearly all of it. They are decoded a few megabytes at a time, each straight to where
it belongs, so that reading takes little more memory than what was read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.errors import RecordingError
from conviction.recordings.columns import Columns, Source
from conviction.recordings.index import Index
from conviction.recordings.parquet import Part, arrow, read_lists
from conviction.recordings.schema import RecordedQuestion, in_range, unreadable

_BATCH_BYTES = 4 << 20
"""Values that are decoded at once, about."""

_NONE = np.empty(0, np.float32)
_INDEX_COLUMNS = (
    *("question_id", "prompt_hash", "question", "gold", "model", "sampling", "trace", "top_k"),
    *("seed", "finish", "answer", "answer_key", "correct"),
)
"""Columns that tell what a pool holds, without what is large."""

_TRACE_COLUMNS = (
    *("trace", "seed", "finish", "tokens", "prompt_tokens", "lost_tokens", "started", "ended"),
    *("answer", "answer_key", "correct"),
)
"""Columns of one question's traces, without texts and what has a value per token."""

_REQUIRED = ("question_id", "trace", "prompt_hash", "question", "top_k", "seed", "finish")
"""Columns without a null; that of the model is compared to the file's description anyway."""


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
        answer = None if row["answer"] is None else Answer(row["answer"], row["answer_key"])
        place = f"row {number + 1} of {path}"
        index.add(question, row["trace"], row["seed"], row["finish"], answer, place=place)
        group = int(np.searchsorted(part.group_ends, number, side="right"))
        groups.setdefault(question.id, {})[group] = None
    return {name: ParquetPiece(part, list(numbers), name) for name, numbers in groups.items()}


@dataclass(eq=False)
class ParquetPiece:
    """The traces of one question in a Parquet file.

    Attributes:
        part: The file.
        groups: Numbers of the row groups that hold them.
        question_id: The question.
    """

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
        answers: dict[tuple[str, str], Answer] = {}
        rows: list[tuple[Any, ...]] = []
        for place, row in enumerate(self.part.rows(_TRACE_COLUMNS, self.groups, self._mask)):
            if row["tokens"] is None or row["tokens"] < 0:
                found = "has no count of tokens, or a negative one"
                raise self._unreadable(place, found, row["trace"])
            for name in ("prompt_tokens", "lost_tokens", "started", "ended"):
                if row[name] is None:
                    raise self._unreadable(place, f"has no {name}", row["trace"])
            pair = row["answer"], row["answer_key"]
            # Equal answers share one object: a pool holds few of them, thousands of times.
            answer = pair[0] and (answers.get(pair) or answers.setdefault(pair, Answer(*pair)))
            rows.append(
                (
                    *(row["trace"], row["seed"], row["tokens"], row["prompt_tokens"]),
                    *(row["lost_tokens"], row["started"], row["ended"], bool(row["correct"])),
                    *(FinishReason(row["finish"]), answer),
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
        for lists in read_lists(self.part, name, self.groups, max(int(_BATCH_BYTES / typical), 1)):
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
        if size != tokens or values is None:
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
        row = int(np.flatnonzero(self._mask)[place])
        for group in self.groups:
            size = self.part.description.row_group(group).num_rows
            if row < size:
                row += int(self.part.group_ends[group]) - size
                break
            row -= size
        trace = self._columns.ids[place] if number is None else number
        found = f"trace {trace} of question {self.question_id!r} {found}"
        return unreadable(f"row {row + 1} of {self.part.path}", found)


def _check_row(row: dict[str, Any], part: Part, number: int) -> None:
    """Check that nothing is missing or contradicts the file's description."""
    found = next((f"it has no {name}" for name in _REQUIRED if row[name] is None), "")
    meta = part.meta
    for name, field, wanted in (
        ("model", "model", meta.model),
        ("sampling", "sampling", meta.sampling_json),
        ("k", "top_k", meta.top_k),
    ):
        if not found and row[field] != wanted:
            found = f"its {name} is {row[field]}, not that of the file"
    if not found and (row["answer"] is None) != (row["answer_key"] is None):
        found = "it has an answer without its answer_key, or the key alone"
    if not found and row["gold"] is not None and row["correct"] is None:
        found = "it has no correct, which tells whether it is right, and its question has a gold"
    if not found and row["finish"] not in set(FinishReason):
        found = f"its 'finish' is {row['finish']!r}: was it written by a newer version?"
    if found:
        raise unreadable(f"row {number + 1} of {part.path}", found)
