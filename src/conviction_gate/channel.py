"""A channel: the small file in shared memory that a trace's confidences are written to.

The client makes it, names it in its request, and removes it. A worker opens it by its name, and
writes; it makes no files. Files are read and written by plain calls: whoever cuts one short costs
a trace its confidences, but does not end the process, as it would if the file were mapped.

Layout, little endian: `HEADER`, then a float32 per token.
"""

import os
import re
import stat
import struct
import tempfile
from math import isfinite
from pathlib import Path

NAME = re.compile(r"conviction-[0-9a-f]{32}")
"""What a channel is called: nothing that leads out of its folder."""

MAGIC, VERSION = b"CONVGATE", 1
HEADER = struct.Struct("<8sIIQQQQ16x")
"""Magic, version, capacity in tokens; then tokens written, unknown ones among them, one more than
the number of the token at which the gate stopped the trace (0 for none), and tokens without room.
"""
HEADER_BYTES = HEADER.size
VALUE = struct.Struct("<f")
_COUNTS = struct.Struct("<QQQQ")
_COUNTS_AT = 16
MOST_TOKENS = 1 << 24


def folder() -> Path:
    """Where channels lie: shared memory, or the folder for temporary files."""
    shared = Path("/dev/shm")  # noqa: S108  # files there are made exclusively, by their client
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


class Writer:
    """The worker's side of one channel.

    Args:
        name: Name of the channel, as the request gives it.
        within: The folder that it lies in.

    Raises:
        ValueError: that is no name of a channel, or no channel.
        OSError: it cannot be opened.
    """

    def __init__(self, name: str, within: Path | None = None) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a channel")
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open((within or folder()) / name, flags)
        try:
            self._capacity, counts = _look(self._file)
        except BaseException:
            os.close(self._file)
            raise
        # A trace that comes back after a preemption finds what it had written.
        self._written, self._unknown, self._stopped, self._overflowed = counts
        self._last_unknown = any(not isfinite(value) for value in self.past(self._written, 1))

    def put(self, place: int, confidence: float, *, stopped: bool = False) -> None:
        """Write the confidence of a token.

        A token that is computed again takes the place that it had.

        Args:
            place: Its number within its trace, from 0.
            confidence: Its confidence; one that is not finite counts as unknown.
            stopped: Whether the gate stopped the trace here.

        Raises:
            OSError: there is no room any more.
        """
        if place >= self._capacity:
            self._overflowed += 1
        else:
            unknown = not isfinite(confidence)
            if place + 1 == self._written:
                self._unknown -= self._last_unknown
            self._unknown += unknown
            self._last_unknown = unknown
            self._written = place + 1
            os.pwrite(self._file, VALUE.pack(confidence), _at(place))
        if stopped:
            self._stopped = place + 1
        counts = (self._written, self._unknown, self._stopped, self._overflowed)
        os.pwrite(self._file, _COUNTS.pack(*counts), _COUNTS_AT)

    def past(self, before: int, most: int) -> list[float]:
        """Confidences that were written of the tokens just before a place, at most so many."""
        first, last = max(0, before - most), min(before, self._written)
        data = os.pread(self._file, VALUE.size * max(0, last - first), _at(first))
        return [value for (value,) in VALUE.iter_unpack(data)]

    def close(self) -> None:
        """Leave the file to its client."""
        os.close(self._file)


def _at(place: int) -> int:
    return HEADER_BYTES + VALUE.size * place


def _look(file: int) -> tuple[int, tuple[int, int, int, int]]:
    """Tokens that a channel has room for, and its counts.

    Raises:
        ValueError: it is no channel.
    """
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size < HEADER_BYTES:
        raise ValueError("the file is no channel")
    magic, version, capacity, *counts = HEADER.unpack(os.pread(file, HEADER_BYTES, 0))
    if (magic, version) != (MAGIC, VERSION) or not 0 < capacity <= MOST_TOKENS:
        raise ValueError("the file is no channel of this version")
    written, unknown, stopped, overflowed = counts
    if found.st_size != _at(capacity) or not unknown <= written <= capacity:
        raise ValueError(f"the channel has not the size of its {capacity} tokens")
    return capacity, (written, unknown, stopped, overflowed)
