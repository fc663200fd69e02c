"""Checksums at the end of a Parquet file, for all that Parquet itself does not protect.

A file ends with its description, the size of that in 4 bytes, and "PAR1". Pages of values may have
checksums; their headers and the description have none, and one flipped bit there changes values,
names and counts, or ends the program that reads it. So these follow the description:

    a CRC-32 of each column of each row group as it lies in the file
    their number, 4 bytes
    a CRC-32 of the description and of all that follows it, without itself
    a marker, 4 bytes

They count as a part of the description: readers take what they need from its beginning, as files
with a signed description demand of them.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from conviction.recordings.schema import unreadable

_MARKER = b"CVck"
_END = b"PAR1"
_TAIL = 20
"""Bytes from the number on: number, checksum, marker, size, end."""
_AT_ONCE = 1 << 20


def seal(path: Path, description: Any) -> None:
    """Add the checksums to a file that was just written, by pyarrow's description of it."""
    with path.open("rb+") as file:
        sums = [
            _chunk_checksum(file, description, group, column)
            for group in range(description.num_row_groups)
            for column in range(description.num_columns)
        ]
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        content = file.read(size)
        added = np.array([*sums, len(sums)], "<u4").tobytes()
        total = (size + len(added) + 8).to_bytes(4, "little")
        checksum = crc32(content + added + total).to_bytes(4, "little")
        file.seek(-8, os.SEEK_END)
        file.write(added + checksum + _MARKER + total + _END)


def sealed_checksums(path: Path) -> NDArray[np.uint32] | None:
    """The checksums of all columns of the first row group, then of the next; None without any.

    Files of earlier versions and of other programs have none.

    Raises:
        RecordingError: the description is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - _TAIL, 0))
        tail = file.read()
        if tail[8:12] != _MARKER:
            return None
        size = int.from_bytes(tail[12:16], "little")
        if tail[16:] == _END and 16 <= size <= length - 8:
            file.seek(-8 - size, os.SEEK_END)
            content = file.read(size - 8)
            number = int.from_bytes(tail[:4], "little")
            fits = crc32(tail[12:16], crc32(content)) == int.from_bytes(tail[4:8], "little")
            if fits and 4 * number <= len(content) - 4:
                return np.frombuffer(content[-4 - 4 * number : -4], "<u4")
    raise unreadable(f"the recording {path}", "the description at its end is damaged")


@dataclass(frozen=True, eq=False)
class Checksums:
    """The checksums of a file, which are verified as its columns are read.

    Attributes:
        description: The file's, as pyarrow read it.
        group_ends: Rows up to the end of each row group, shape (row groups,).
        sums: Of all columns of the first row group, then of the next.
    """

    path: Path
    description: Any
    group_ends: NDArray[np.int64]
    sums: NDArray[np.uint32]
    _whole: set[int] = field(default_factory=set[int])

    def check(self, columns: Iterable[str], groups: Iterable[int]) -> None:
        """Check columns of row groups, each once.

        Raises:
            RecordingError: one is damaged.
            OSError: the file cannot be read.
        """
        wanted, count = {*columns}, self.description.num_columns
        paths = [self.description.schema.column(i).path for i in range(count)]
        ends = [0, *self.group_ends.tolist()]
        with self.path.open("rb") as file:
            for group in groups:
                for column, name in enumerate(path.split(".")[0] for path in paths):
                    place = group * count + column
                    if name not in wanted or place in self._whole:
                        continue
                    if _chunk_checksum(file, self.description, group, column) != self.sums[place]:
                        rows = f"rows {ends[group] + 1:,} to {ends[group + 1]:,} of {self.path}"
                        raise unreadable(rows, f"their column {name!r} is damaged")
                    self._whole.add(place)


def _chunk_checksum(file: BinaryIO, description: Any, group: int, column: int) -> int:
    """CRC-32 of one column of a row group; as far as it is there if the file was cut short."""
    chunk = description.row_group(group).column(column)
    starts = (chunk.data_page_offset, chunk.dictionary_page_offset)
    file.seek(min(start for start in starts if start))
    left, found = chunk.total_compressed_size, 0
    while left and (data := file.read(min(left, _AT_ONCE))):
        found = crc32(data, found)
        left -= len(data)
    return found
