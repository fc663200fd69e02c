"""Results as files: a Parquet table for notebooks, a page for people."""

import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conviction.errors import InvalidSettingError, RecordingError
from conviction.files import finished_file
from conviction.recordings.parquet import arrow


def writable(path: Path, *, recording: Path | None = None) -> Path:
    """The file to write for a path: the target of a link, so that the link stays.

    Raises:
        InvalidSettingError: its folder does not exist, it is not a regular file, or it is the
            recording that is read, or lies in its folder.
    """
    try:
        found = path.resolve()
        kind = found.stat().st_mode if found.exists() else None
    # Links in a circle are either of the two, depending on the version of Python.
    except (OSError, RuntimeError) as error:
        raise _refused(path, str(getattr(error, "strerror", "") or error)) from None
    if kind is not None and not stat.S_ISREG(kind):
        raise _refused(path, "it is a folder" if stat.S_ISDIR(kind) else "it is no regular file")
    if not found.parent.is_dir():
        raise _refused(path, "its folder does not exist")
    if recording and recording.exists() and recording.resolve() in (found, *found.parents):
        raise _refused(path, "it is the recording, or a part of it")
    return found


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write or replace a Parquet file of one row per record, as a whole.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InvalidSettingError: the path is not that of a file.
        RecordingError: the disk refuses.
    """
    table = arrow().Table.from_pylist([dict(record) for record in records])
    with _whole_file(path) as unfinished:
        arrow("pyarrow.parquet").write_table(table, unfinished)


def write_page(path: Path, page: str) -> None:
    """Write or replace an HTML page, as a whole; raises as `write_table`."""
    with _whole_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


@contextmanager
def _whole_file(path: Path) -> Generator[Path]:
    target = writable(path)
    try:
        with finished_file(target) as unfinished:
            yield unfinished
    except OSError as error:
        raise RecordingError(
            tried=f"write {path}",
            found=error.strerror or str(error),
            remedy="Nothing was written there. Make room, or name a file elsewhere.",
        ) from None


def _refused(path: Path, found: str) -> InvalidSettingError:
    return InvalidSettingError(
        tried=f"write {path}", found=found, remedy="Name another file, in a folder that exists."
    )
