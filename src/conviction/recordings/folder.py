"""The files of a pool's folder, and what the disk can refuse.

    part-000000.parquet   finished traces, never changed again
    part-000001.parquet
    journal-000002        traces since the last part; becomes part-000002.parquet
    lock                  held by the one writer

A journal counts only as long as there is no part of its number: the moment in which a finished
part gets its name is the moment in which the journal ceases to count, so no trace is ever read
twice or not at all.

Who reads while somebody writes keeps to what it found: parts stay as they are, and of the journal
it keeps the rows, because that file grows and goes.
"""

import errno
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conviction.errors import RecordingError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NAME = re.compile(r"(part-(?P<part>\d{6,})\.parquet|journal-(?P<journal>\d{6,}))")
_UNFINISHED = ".unfinished"
_LOOKS = 100
"""How often a folder is looked at anew because a writer changed it meanwhile."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds.

    Attributes:
        parts: Part files by number, ascending.
        journal: The journal that counts, and its number; None without one.
        outdated: Journals that became parts, and parts that were never finished.
    """

    parts: tuple[tuple[int, Path], ...]
    journal: tuple[int, Path] | None
    outdated: tuple[Path, ...]

    @property
    def next_number(self) -> int:
        """The number of the journal that counts, or of the next one."""
        if self.journal:
            return self.journal[0]
        return self.parts[-1][0] + 1 if self.parts else 0


def list_folder(folder: Path) -> Listing:
    """Look at a pool's folder, also while a writer is at work; other files are left alone.

    Raises:
        RecordingError: it cannot be read, two journals count, which no writer leaves behind, or it
            changed each time.
    """
    before: list[tuple[int, Path]] | None = None
    for _ in range(_LOOKS):
        with explained(folder, "read"):
            listing, journals = _sorted_out(sorted(folder.iterdir()))
        counting = [*listing.parts, *journals]
        # A look is not one moment: while a journal becomes a part, it may see neither, or the
        # next journal beside this one. All parts and one journal after them are a state that was
        # there; anything else, such as a gap, is believed if a second look finds it, too.
        unbroken = [number for number, _ in counting] == list(range(len(counting)))
        if (unbroken and len(journals) == 1) or counting == before:
            _check_journals(folder, listing, journals)
            return listing
        before = counting
    raise busy(folder)


def busy(folder: Path) -> RecordingError:
    """What is said where a folder changed each time somebody looked."""
    return RecordingError(
        tried=f"read the pool {folder}",
        found="its files changed each time they were read",
        remedy="Wait until nobody writes to it any more.",
    )


def _sorted_out(paths: Iterable[Path]) -> tuple[Listing, list[tuple[int, Path]]]:
    """What the files of a folder are, and all journals that count."""
    parts: dict[int, Path] = {}
    journals: dict[int, Path] = {}
    outdated: list[Path] = []
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if path.name.endswith(_UNFINISHED):
            outdated.append(path)
        elif match and match["part"]:
            parts[int(match["part"])] = path
        elif match:
            journals[int(match["journal"])] = path
    outdated += [path for number, path in journals.items() if number in parts]
    counting = sorted(item for item in journals.items() if item[0] not in parts)
    journal = counting[0] if counting else None
    return Listing(tuple(sorted(parts.items())), journal, tuple(outdated)), counting


def _check_journals(folder: Path, listing: Listing, journals: list[tuple[int, Path]]) -> None:
    last = listing.parts[-1][0] if listing.parts else -1
    if len(journals) > 1 or (journals and journals[0][0] < last):
        names = ", ".join(path.name for _, path in journals)
        raise RecordingError(
            tried=f"read the pool {folder}",
            found=f"{names} should have become a part before anything was recorded after it",
            remedy="Was a file deleted or copied here? Put the folder back as it was.",
        )


def part_path(folder: Path, number: int) -> Path:
    """Where the part of a number lies."""
    return folder / f"part-{number:06d}.parquet"


def journal_path(folder: Path, number: int) -> Path:
    """Where the journal of a number lies."""
    return folder / f"journal-{number:06d}"


@contextmanager
def finished_file(path: Path) -> Generator[Path]:
    """A path to write to; what was written there gets its own name at the end, durably.

    If the block fails, nothing is left.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path, verb: str) -> Generator[None]:
    """Turn what the disk reports into an error that says what to do.

    Args:
        path: The pool or one of its files.
        verb: What is done with it: "read" or "write".

    Raises:
        RecordingError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RecordingError(
                tried=f"{verb} the recording {path}",
                found=f"there is no room left on the disk ({error.strerror})",
                remedy="Make room and run the same command again; every trace that was reported "
                "as recorded is kept.",
            ) from None
        raise RecordingError(
            tried=f"{verb} the recording {path}",
            found=error.strerror or str(error),
            remedy="Name a folder that this program may use.",
        ) from None
