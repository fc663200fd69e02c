"""Token confidences of one question, read into one array.

They are nearly all of a pool. They are decoded a few megabytes at a time, each straight to where
it belongs, so that reading takes little more memory than what was read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.recordings.columns import NUMBER_COLUMNS, Columns, Place, to_columns
from conviction.recordings.parquet import Part, arrow, read_lists
from conviction.recordings.schema import RecordedTrace, in_range

_BATCH_BYTES = 4 << 20
"""Values that are decoded at once, about."""


@dataclass(frozen=True, eq=False)
class PartRows:
    """The traces of one question in one part.

    Attributes:
        part: The part.
        groups: Numbers of the row groups that hold them.
        mask: Which rows of these groups they are, bool, shape (rows of these groups,).
        place: Where they stand, for errors.
        columns: What is known of them besides what has a value per token.
    """

    part: Part
    groups: Sequence[int]
    mask: NDArray[np.bool_]
    place: Place
    columns: Columns

    @classmethod
    def find(cls, part: Part, groups: Sequence[int], question_id: str) -> "PartRows":
        """Read all of a question but what has a value per token.

        Raises:
            RecordingError: the file is damaged.
        """
        compute = arrow("pyarrow.compute")
        table = part.read(NUMBER_COLUMNS, groups)
        mask = compute.equal(table.column("question_id"), question_id).to_numpy()
        if not mask.all():
            table = table.take(np.flatnonzero(mask))
        bounds = [0, *part.group_ends.tolist()]
        rows = np.concatenate([np.arange(bounds[group], bounds[group + 1]) for group in groups])
        place = Place(part.path, question_id, rows[mask], table.column("trace").to_numpy())
        return cls(part, groups, mask, place, to_columns(table, place))

    def lists(self, name: str) -> Iterator[tuple[int, Any]]:
        """A column of lists, some at a time, and how many traces come before them.

        Raises:
            RecordingError: the file is damaged.
        """
        # By what is stored: other questions of these groups may have far longer traces.
        typical = np.float32().nbytes * max(self._stored(name) / self.mask.size, 1.0)
        size = max(int(_BATCH_BYTES / typical), 1)
        seen = first = 0
        for lists in read_lists(self.part, name, self.groups, size):
            mask = self.mask[seen : seen + len(lists)]
            seen += len(lists)
            count = int(np.count_nonzero(mask))
            if count:
                yield first, lists if count == len(lists) else lists.filter(arrow().array(mask))
            first += count

    def refuse_confidences(self) -> None:
        """Check that there are none, as in a pool of answers.

        Raises:
            RecordingError: there are some.
        """
        for first, lists in self.lists("confidences"):
            if lists.null_count < len(lists):
                row = first + int(np.argmax(lists.is_valid().to_numpy(zero_copy_only=False)))
                raise self.place.unreadable(row, "has confidences, and the pool's k is 0")

    def check_sizes(self) -> None:
        """Check that no trace claims more tokens than there is room for in the file.

        Raises:
            RecordingError: one does.
        """
        if self.columns.tokens.sum() > self._stored("confidences"):
            for first, lists in self.lists("confidences"):
                self._values(first, lists)

    def fill(self, flat: NDArray[np.float32], begins: NDArray[np.int64]) -> None:
        """Read the confidences.

        Args:
            flat: Where to.
            begins: Where each trace begins there, shape (traces,).

        Raises:
            RecordingError: they are not one per token, infinite or negative, or unreadable.
        """
        done = 0
        for first, lists in self.lists("confidences"):
            done = first + len(lists)
            values = self._values(first, lists)
            _place(values, self.columns.tokens[first:done], begins[first:done], flat)
        if done < len(self.columns):
            raise self.place.unreadable(done, "has no confidences")

    def _stored(self, name: str) -> int:
        """Values of a column in the row groups, those of other questions included."""
        description = self.part.description
        paths = [description.schema.column(i).path for i in range(description.num_columns)]
        column = next(i for i, path in enumerate(paths) if path.split(".")[0] == name)
        groups = [description.row_group(group) for group in self.groups]
        return sum(group.column(column).num_values for group in groups)

    def _values(self, first: int, lists: Any) -> NDArray[np.float32]:
        """The confidences of some traces, one trace after another."""
        pa, compute = arrow(), arrow("pyarrow.compute")
        kind = lists.type
        if kind not in (pa.list_(pa.float32()), pa.large_list(pa.float32())):
            raise self.place.unreadable(first, f"has confidences of type {kind}")
        tokens = self.columns.tokens[first : first + len(lists)]
        sizes = compute.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(sizes != tokens)
        if wrong.size:
            row = int(wrong[0])
            found = f"has {tokens[row]} tokens and {max(int(sizes[row]), 0)} confidences"
            raise self.place.unreadable(first + row, found)
        values = lists.flatten().to_numpy(zero_copy_only=False)
        if not in_range(values):
            ends = np.concatenate(([0], np.cumsum(sizes)))
            row = next(
                row
                for row, (begin, end) in enumerate(pairwise(ends.tolist()))
                if not in_range(values[begin:end])
            )
            raise self.place.unreadable(first + row, "has infinite or negative confidences")
        return values


def read_confidences(
    parts: Sequence[PartRows], rows: Sequence[RecordedTrace], begins: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The confidences of all traces of a question.

    Args:
        parts: Those in parts.
        rows: Those in the journal.
        begins: Where each is to begin, in this order, shape (traces,).

    Returns:
        Shape (tokens of all traces,), NaN where unknown.

    Raises:
        RecordingError: they are not one per token, infinite or negative, or unreadable.
    """
    for part in parts:
        part.check_sizes()
    total = sum(int(part.columns.tokens.sum()) for part in parts) + sum(row.tokens for row in rows)
    flat = np.empty(total, np.float32)
    first = 0
    for part in parts:
        part.fill(flat, begins[first : first + len(part.columns)])
        first += len(part.columns)
    for row, begin in zip(rows, begins[first:].tolist(), strict=True):
        # Rows of a journal were checked when it was read: there is one for each token.
        flat[begin : begin + row.tokens] = row.confidences
    return flat


def _place(
    values: NDArray[np.float32],
    sizes: NDArray[np.int64],
    begins: NDArray[np.int64],
    flat: NDArray[np.float32],
) -> None:
    ends = begins + sizes
    if (begins[1:] == ends[:-1]).all():
        flat[begins[0] : ends[-1]] = values
        return
    pieces: list[NDArray[np.float32]] = np.split(values, np.cumsum(sizes)[:-1])
    for begin, piece in zip(begins.tolist(), pieces, strict=True):
        flat[begin : begin + piece.size] = piece
