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
import sys
import tempfile
from pathlib import Path

NAME = re.compile(r"conviction-[0-9a-f]{32}")
"""What a channel is called: nothing that leads out of its folder."""

MAGIC, VERSION = b"CONVGATE", 2
HEADER = struct.Struct("<8sIIQ40x")
"""Magic, version, capacity in tokens; then tokens written."""
HEADER_BYTES = HEADER.size
VALUE = struct.Struct("<f")
_WRITTEN = struct.Struct("<Q")
_WRITTEN_AT = 16
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
        ValueError: that is no name of a channel, or no channel, or it has a writer already.
        OSError: it cannot be opened.
    """

    def __init__(self, name: str, within: Path | None = None) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a channel")
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open((within or folder()) / name, flags)
        try:
            _claim(self._file)
            # A trace that comes back after a preemption finds what it had written.
            self._capacity, self._written = _look(self._file)
        except BaseException:
            os.close(self._file)
            raise

    def put(self, place: int, confidence: float) -> None:
        """Write the confidence of a token, if there is room for it.

        A token that is computed again takes the place that it had.

        Args:
            place: Its number within its trace, from 0.
            confidence: Its confidence; one that is not finite is unknown.

        Raises:
            OSError: the file cannot be written any more.
        """
        if place < self._capacity:
            os.pwrite(self._file, VALUE.pack(confidence), _at(place))
            self._tell(place + 1)

    def take_back(self, place: int) -> None:
        """Forget a token, which was none.

        Args:
            place: Its number within its trace; nothing happens if it was not the last one.

        Raises:
            OSError: the file cannot be written any more.
        """
        if place + 1 == self._written:
            self._tell(place)

    def close(self) -> None:
        """Leave the file to its client."""
        os.close(self._file)

    def _tell(self, written: int) -> None:
        self._written = written
        os.pwrite(self._file, _WRITTEN.pack(written), _WRITTEN_AT)


def _at(place: int) -> int:
    return HEADER_BYTES + VALUE.size * place


def _claim(file: int) -> None:
    """Become a channel's only writer, until the file is closed.

    The client holds a lock on its file, of another kind (flock). This one belongs to the open file,
    not to the process: all traces of a worker are written by the same process.

    Raises:
        ValueError: it has a writer: a second request names the same channel.
    """
    if sys.platform != "linux":
        return
    import fcntl  # noqa: PLC0415  # not everywhere

    # A struct flock: type, whence, start, length and process, of the first byte.
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        raise ValueError("the channel has a writer already") from None


def _look(file: int) -> tuple[int, int]:
    """Tokens that a channel has room for, and that it has.

    Raises:
        ValueError: it is no channel.
    """
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size < HEADER_BYTES:
        raise ValueError("the file is no channel")
    magic, version, capacity, written = HEADER.unpack(os.pread(file, HEADER_BYTES, 0))
    if (magic, version) != (MAGIC, VERSION) or not 0 < capacity <= MOST_TOKENS:
        raise ValueError("the file is no channel of this version")
    if found.st_size != _at(capacity) or written > capacity:
        raise ValueError(f"the channel has not the size of its {capacity} tokens")
    return capacity, written
