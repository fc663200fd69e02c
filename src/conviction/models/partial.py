"""The part of a file that was fetched so far, and a note of where it came from."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conviction.models.notes import beside, read_note, write_note


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier attempt left.

    Attributes:
        size: Bytes from the beginning of the file that can be built on.
        parts: How many whole parts they are, for files that come in parts.
        tag: The server's tag (ETag) of the file that they belong to.
    """

    size: int = 0
    parts: int = 0
    tag: str | None = None


class Partial:
    """A file that is growing beside the place where it belongs."""

    def __init__(self, target: Path) -> None:
        self.path = beside(target, ".partial")
        self._note = beside(target, ".partial.json")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def kept(self, source: str) -> Kept:
        """What can be built on if `source` goes on delivering; bytes of other sources cannot."""
        note = read_note(self._note)
        size, parts, tag = note.get("size"), note.get("parts"), note.get("tag")
        if note.get("source") != source:
            return Kept()
        if not isinstance(size, int) or not isinstance(parts, int):
            return Kept(self.size, 0, tag if isinstance(tag, str) else None)
        # Bytes after the last whole part are from a part that was interrupted.
        return Kept(size, parts) if 0 <= size <= self.size else Kept()

    def restart(self, source: str, tag: str | None = None) -> None:
        """Begin from nothing, with bytes from `source`."""
        self.discard()
        self.path.touch()
        write_note(self._note, {"source": source, "tag": tag})

    def keep_parts(self, source: str, size: int, parts: int) -> None:
        """Note that the first `size` bytes are whole parts."""
        write_note(self._note, {"source": source, "size": size, "parts": parts})

    @contextmanager
    def writing(self, at: int) -> Generator[BinaryIO]:
        """Open for writing at a position; what lay behind it is cut off. Safe on disk after."""
        with self.path.open("r+b") as file:
            file.truncate(at)
            file.seek(at)
            yield file
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove what was fetched."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Put the file where it belongs, in one step."""
        self.path.replace(target)
        self._note.unlink(missing_ok=True)
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
