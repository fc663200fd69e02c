"""Decides whether a file is the one that was wanted, and remembers it until the file changes."""

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from conviction.errors import NotAChatModelError
from conviction.gguf import check_chat_model
from conviction.models.base import Wanted, Watcher, WrongBytesError
from conviction.models.notes import beside, read_note, write_note

MARKER = ".verified.json"
_BLOCK = 1 << 20


def sha256_of(path: Path, name: str, watcher: Watcher) -> str:
    """The hash of a file, 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    digest, done, buffer = sha256(), 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            watcher.progress(done, size, f"Checking {name}")
    return digest.hexdigest()


def trusted(wanted: Wanted) -> str | None:
    """The hash of a file that was verified before and has not changed since; else None."""
    try:
        state = wanted.path.stat()
    except OSError:
        return None
    note = read_note(beside(wanted.path, MARKER))
    known = note.get("sha256")
    same = note.get("size") == state.st_size and note.get("mtime_ns") == state.st_mtime_ns
    return known if same and isinstance(known, str) and known == (wanted.sha256 or known) else None


def remember(wanted: Wanted, digest: str) -> None:
    """Note that a file was verified, so that it need not be read again until it changes."""
    state = wanted.path.stat()
    note = {
        "name": wanted.name,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "sha256": digest,
    }
    # In a shared cache that is read-only the file is hashed at each use instead.
    with suppress(OSError):
        write_note(beside(wanted.path, MARKER), note)


def verify(path: Path, wanted: Wanted, watcher: Watcher) -> str:
    """Check that the file at `path` is the one that is wanted, and give its hash.

    A file without a known hash has to be a chat model, and the one that it was when it was
    verified first. A file that is not the wanted one is set aside under the ending
    ".rejected".

    Raises:
        WrongBytesError: it is not the wanted file.
        NotAChatModelError: no hash is known, and the file is no chat model.
        OSError: it cannot be read or moved.
    """
    expected = wanted.sha256 or _first_seen(path, wanted)
    size = path.stat().st_size
    if wanted.size not in (None, size):
        raise _rejected(path, wanted, f"it has {size:,} bytes instead of {wanted.size:,}")
    digest = sha256_of(path, wanted.name, watcher)
    if digest != (expected or digest):
        raise _rejected(path, wanted, f"its sha256 is {digest} instead of {expected}")
    if wanted.sha256 is None:
        try:
            check_chat_model(path)
        except NotAChatModelError as error:
            aside = _set_aside(path, wanted)
            raise NotAChatModelError(
                tried=f"use {wanted.name} as a chat model",
                found=error.found,
                remedy=f"{error.remedy} The file was kept as {aside}.",
            ) from None
    return digest


def _first_seen(path: Path, wanted: Wanted) -> str | None:
    if path != wanted.path:  # freshly fetched: there was no file before
        return None
    known = read_note(beside(path, MARKER)).get("sha256")
    return known if isinstance(known, str) else None


def _rejected(path: Path, wanted: Wanted, why: str) -> WrongBytesError:
    return WrongBytesError(f"{why}; the file was kept as {_set_aside(path, wanted)} and not used")


def _set_aside(path: Path, wanted: Wanted) -> Path:
    aside = beside(wanted.path, ".rejected")
    path.replace(aside)
    beside(wanted.path, MARKER).unlink(missing_ok=True)
    return aside
