"""What an evaluation keeps on disk: a folder with its settings, and a line per question.

    run.json        settings, model, data and versions; written before the first question
    results.jsonl   one line per question that came to an end
    spent.json      tokens that count towards a total; only where there is one
    lock            held by the one program that adds to it

A line is safe on disk before it is counted. A program that is killed leaves at most a torn last
line, which does not count.
"""

import os
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from conviction.errors import InvalidSettingError, RecordingError
from conviction.evaluation.results import SCHEMA_VERSION, QuestionResult, RunDescription
from conviction.evaluation.spent import SpentTokens
from conviction.files import exclusive, finished_file, sync_folder

_DESCRIPTION, _RESULTS, _SPENT, _LOCK = "run.json", "results.jsonl", "spent.json", "lock"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        path: Its folder.
        description: What it is.
        results: One per question that came to an end, in order of ending.
    """

    path: Path
    description: RunDescription
    results: tuple[QuestionResult, ...]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run, also one that is still going on.

    Raises:
        InvalidSettingError: there is no run.
        RecordingError: it is damaged, or comes from a newer version.
    """
    folder = Path(path).expanduser()
    description = _read_description(folder)
    if description is None:
        raise InvalidSettingError(
            tried=f"read the run {folder}",
            found=f"it holds no {_DESCRIPTION}" if folder.is_dir() else "there is no such folder",
            remedy="Name a folder that `conviction eval DATA -o FOLDER` made.",
        )
    results, _ = _read_results(folder / _RESULTS)
    return Run(folder, description, results)


def check_run(path: str | os.PathLike[str], description: RunDescription) -> None:
    """Check whether a run can be begun in a folder, or go on there; changes nothing.

    A run without a single verdict may be begun again with any settings.

    Raises:
        InvalidSettingError: the folder holds a run of other settings or data, or something else.
        RecordingError: it is damaged, or comes from a newer version.
    """
    folder = Path(path).expanduser()
    before = _read_description(folder)
    if before is None:
        _check_empty(folder)
        return
    results, _ = _read_results(folder / _RESULTS)
    different = description.differences(before)
    if different and not all(result.failed for result in results):
        raise InvalidSettingError(
            tried=f"go on with the run {folder}",
            found=f"it was begun with other settings: {different}",
            remedy="Name another folder, or give the settings that it was begun with.",
        )


class RunWriter:
    """Adds results to a run; one program at a time, any of its threads.

    Opening goes on where any earlier program ended, also one that was killed. Questions that failed
    are forgotten then, so that they are asked again.

    Args:
        path: The run's folder; made if need be.
        description: What the run is.

    Attributes:
        path: The run's folder.
        before: The description that the run was begun with.
        kept: The results that were there already.

    Raises:
        InvalidSettingError: the folder holds a run of other settings or data, or something else.
        RecordingError: somebody else adds to it, it is damaged, or the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], description: RunDescription) -> None:
        self.path = Path(path).expanduser()
        self._guard = threading.Lock()
        self._broken = False
        with ExitStack() as stack, _explained(self.path, "write"):
            _lock(self.path, stack)
            check_run(self.path, description)
            before = _read_description(self.path)
            if before is not None and description.differences(before):
                (self.path / _SPENT).unlink(missing_ok=True)
            results, _ = _read_results(self.path / _RESULTS)
            self.kept = tuple(result for result in results if not result.failed)
            if not self.kept:
                with finished_file(self.path / _DESCRIPTION) as unfinished:
                    unfinished.write_bytes(_indented(description))
            self.before = _read_description(self.path) or description
            if len(self.kept) < len(results):
                with finished_file(self.path / _RESULTS) as unfinished:
                    unfinished.write_bytes(b"".join(map(_line, self.kept)))
            self._spent = None
            if description.total_tokens is not None:
                self._spent = stack.enter_context(SpentTokens(self.path / _SPENT))
            self._file = self._opened()
            stack.callback(self._file.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def spent(self) -> int:
        """Tokens that the run has spent so far, also on questions without a result."""
        counted = sum(result.tokens for result in self.kept)
        return max(counted, self._spent.tokens if self._spent else 0)

    def spend(self, tokens: int) -> None:
        """Keep how many tokens the run has spent, where there is a total.

        Raises:
            RecordingError: the disk refuses.
        """
        if self._spent is not None:
            with _explained(self.path / _SPENT, "write"):
                self._spent.write(max(tokens, self._spent.tokens))

    def append(self, result: QuestionResult) -> None:
        """Add a result; it is safe on disk when this returns.

        Raises:
            RecordingError: the disk refuses; nothing was added.
        """
        with self._guard, _explained(self.path / _RESULTS, "write"):
            if self._broken:
                raise OSError(None, "the disk failed before")
            size = self._file.tell()
            try:
                left = memoryview(_line(result))
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._take_back(size)
                raise

    def _opened(self) -> BinaryIO:
        path = self.path / _RESULTS
        _, whole = _read_results(path)
        new = not path.exists()
        file: BinaryIO = path.open("x+b" if new else "r+b", buffering=0)
        try:
            file.truncate(whole)
            file.seek(whole)
            sync_folder(self.path)
        except BaseException:
            file.close()
            raise
        return file

    def _take_back(self, size: int) -> None:
        try:
            self._file.truncate(size)
            self._file.seek(size)
        except OSError:
            self._broken = True


def _indented(description: RunDescription) -> bytes:
    return msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n"


def _line(result: QuestionResult) -> bytes:
    return msgspec.json.encode(result) + b"\n"


def _read_description(folder: Path) -> RunDescription | None:
    path = folder / _DESCRIPTION
    try:
        with _explained(path, "read"):
            data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordingError(
                tried=f"read {path}",
                found=f"its format has version {version}, and this program knows {SCHEMA_VERSION}",
                remedy="Upgrade conviction.",
            )
        return msgspec.json.decode(data, type=RunDescription)
    except msgspec.DecodeError as error:
        raise RecordingError(
            tried=f"read {path}",
            found=f"it does not describe a run ({error})",
            remedy="Restore it from a copy, or name another folder.",
        ) from None


def _read_results(path: Path) -> tuple[tuple[QuestionResult, ...], int]:
    """All whole lines, and how many bytes they take; a torn last line was never counted."""
    try:
        with _explained(path, "read"):
            data = path.read_bytes()
    except FileNotFoundError:
        return (), 0
    results: dict[str, QuestionResult] = {}
    *lines, torn = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            result = msgspec.json.decode(line, type=QuestionResult)
        except msgspec.DecodeError as error:
            raise _damaged(path, number, f"is no result ({error})") from None
        if result.id in results:
            raise _damaged(path, number, f"repeats the question {result.id!r}")
        results[result.id] = result
    return tuple(results.values()), len(data) - len(torn)


def _damaged(path: Path, line: int, found: str) -> RecordingError:
    return RecordingError(
        tried=f"read {path}",
        found=f"line {line} {found}",
        remedy="Remove that line, and the same command asks its question again.",
    )


def _check_empty(folder: Path) -> None:
    with _explained(folder, "read"):
        others: Sequence[str] = ()
        if folder.is_dir():
            names = {path.name for path in folder.iterdir()}
            others = sorted(names - {_LOCK, f"{_DESCRIPTION}.unfinished"})
        elif folder.exists():
            raise NotADirectoryError
    if others:
        raise InvalidSettingError(
            tried=f"begin a run in {folder}",
            found=f"it holds something else: {', '.join(others[:3])}",
            remedy="Name a new folder.",
        )


def _lock(folder: Path, stack: ExitStack) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            sync_folder(folder.parent)
    try:
        stack.enter_context(exclusive(folder / _LOCK, 0, lambda: None))
    except TimeoutError:
        raise RecordingError(
            tried=f"go on with the run {folder}",
            found="another program is at it",
            remedy="Wait for it, or name another folder.",
        ) from None


@contextmanager
def _explained(path: Path, verb: str) -> Generator[None]:
    """Turn what the disk reports into an error that says what to do; missing files stay."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        file = next((one for one in (path, *path.parents) if one.exists()), path)
        raise InvalidSettingError(
            tried=f"use {file} as the folder of a run",
            found="it is a file",
            remedy="Name a folder, or a name that is not taken yet: it is made.",
        ) from None
    except OSError as error:
        raise RecordingError(
            tried=f"{verb} {path}",
            found=error.strerror or str(error),
            remedy="See that the disk has room and the folder may be used, then run the same "
            "command again: every question that was counted is kept.",
        ) from None
