"""What the disk can refuse, said in words that help."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from conviction.errors import DownloadError, ModelError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Left free for everything else.
_MARGIN = 16 << 20


def prepare_folder(folder: Path) -> None:
    """Make a folder of the cache, with all folders above it.

    Raises:
        ModelError: it cannot be made.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path, count: int) -> None:
    """Check that `count` more bytes fit on the disk.

    Raises:
        DownloadError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < count + _MARGIN:
        raise _full(folder, f"{count:,} more bytes are needed and {free:,} are free")


@contextmanager
def explained(folder: Path) -> Generator[None]:
    """Turn what the disk reports into an error that says what to do.

    Raises:
        DownloadError: the disk is full; what was fetched is kept.
        ModelError: the folder cannot be used.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder, "the disk is full") from None
        raise ModelError(
            tried=f"store a model in {folder}",
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
