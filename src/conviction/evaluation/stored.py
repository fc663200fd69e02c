"""A run on disk: one file with its description, a result per question, and the tokens spent.

A result is safe on disk before it is counted. Runs of earlier versions, which are folders with
`run.json` and `results.jsonl`, can be read but not added to.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from conviction.database import is_database, is_unwritten
from conviction.errors import InvalidSettingError, RecordingError
from conviction.evaluation.results import (
    SCHEMA_VERSION,
    QuestionResult,
    RunDescription,
    without_empty_verdict,
)
from conviction.files import expanded
from conviction.store import Kind, Store, StoreWriter

RUN = Kind(
    "run",
    0x63760003,
    (
        """
        CREATE TABLE description (id INTEGER PRIMARY KEY, json BLOB, checksum INTEGER);
        CREATE TABLE results (id INTEGER PRIMARY KEY, question TEXT, json BLOB, checksum INTEGER);
        CREATE TABLE spent (id INTEGER PRIMARY KEY, tokens INTEGER, checksum INTEGER)
        """,
    ),
)
_OLD_DESCRIPTION, _OLD_RESULTS = "run.json", "results.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        path: Its file.
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
    place = expanded(path)
    run = _read(place)
    if run is None:
        raise InvalidSettingError(
            tried=f"read the run {place}",
            found="it holds no run" if place.exists() else "there is nothing of that name",
            remedy="Name what `conviction eval DATA -o RUN` made.",
        )
    return run


def check_run(path: str | os.PathLike[str], description: RunDescription) -> None:
    """Check whether a run can be begun at a path, or go on there; changes nothing.

    A run without a single verdict may be begun again with any settings.

    Raises:
        InvalidSettingError: there is a run of other settings or data, or something else.
        RecordingError: it is damaged, or comes from a newer version.
    """
    place = expanded(path)
    _check_place(place)
    before = _read(place)
    different = description.differences(before.description) if before else ""
    if before and different and not all(result.failed for result in before.results):
        raise InvalidSettingError(
            tried=f"go on with the run {place}",
            found=f"it was begun with other settings: {different}",
            remedy="Name another file, or give the settings that it was begun with.",
        )


def _check_place(place: Path) -> None:
    """Refuse what cannot become the file of a run."""
    above = next((one for one in place.parents if one.exists()), place.parent)
    found = ""
    if not above.is_dir():
        found = f"{above} is a file, not a folder"
    elif (place / _OLD_DESCRIPTION).exists():
        found = "it is a run of an earlier version, which can only be read"
    elif place.is_dir():
        found = "it is a folder"
    if found:
        raise InvalidSettingError(
            tried=f"keep a run in {place}", found=found, remedy="Name a new file: it is made."
        )


class RunWriter:
    """Adds results to a run; one program at a time, any of its threads.

    Opening goes on where any earlier program ended, also one that was killed. Questions that failed
    are forgotten then, so that they are asked again.

    Args:
        path: The run's file; made if need be.
        description: What the run is.

    Attributes:
        path: The run's file.
        before: The description that the run was begun with.
        kept: The results that were there already.

    Raises:
        InvalidSettingError: there is a run of other settings or data, or something else.
        RecordingError: another program adds to it, it is damaged, or the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], description: RunDescription) -> None:
        self.path = expanded(path)
        check_run(self.path, description)
        with ExitStack() as stack:
            self._store = stack.enter_context(StoreWriter(self.path, RUN))
            before = _described(self._store)
            if before is not None:
                # Another program may have begun it since the look above.
                check_run(self.path, description)
            results = tuple(_results(self._store))
            self.kept = tuple(result for result in results if not result.failed)
            with self._store.transaction():
                if before is None or not self.kept:
                    self._begin(description, before)
                for result in results:
                    if result.failed:
                        self._store.delete("results", "question = ?", result.id)
            self.before = before if before is not None and self.kept else description
            self._total = description.total_tokens is not None
            self._spent = max((row["tokens"] for row in self._store.rows("spent")), default=0)
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
        return max(sum(result.tokens for result in self.kept), self._spent)

    def spend(self, tokens: int) -> None:
        """Keep how many tokens the run has spent, where there is a total.

        Raises:
            RecordingError: the disk refuses.
        """
        if not self._total:
            return
        self._spent = max(tokens, self._spent)
        with self._store.transaction():
            self._store.delete("spent", "1")
            self._store.insert("spent", tokens=self._spent)

    def check_there(self) -> None:
        """Check that what was written can still be found.

        Raises:
            RecordingError: the file was removed or replaced meanwhile.
        """
        with self._store.transaction():
            pass

    def append(self, result: QuestionResult) -> None:
        """Add a result; it is safe on disk when this returns.

        Raises:
            RecordingError: the disk refuses; nothing was added.
        """
        with self._store.transaction():
            self._store.insert("results", question=result.id, json=msgspec.json.encode(result))

    def _begin(self, description: RunDescription, before: RunDescription | None) -> None:
        self._store.delete("description", "1")
        self._store.insert("description", json=msgspec.json.encode(description))
        if before is not None and description.differences(before):
            self._store.delete("spent", "1")


def _read(place: Path) -> Run | None:
    """The run at a path; None if there is none."""
    if place.is_dir():
        return _read_folder(place)
    if is_unwritten(place, f"read the run {place}"):
        return None
    if not is_database(place):
        raise InvalidSettingError(
            tried=f"read the run {place}",
            found="it is not a run, or its beginning is damaged",
            remedy="Name what `conviction eval DATA -o RUN` made, or for a new run a new file.",
        )
    with Store(place, RUN) as store:
        description = _described(store)
        return Run(place, description, tuple(_results(store))) if description else None


def _described(store: Store) -> RunDescription | None:
    rows = [*store.rows("description")]  # all of them, so that a lost one is noticed
    return _description(rows[0]["json"], store.path) if rows else None


def _results(store: Store) -> Iterable[QuestionResult]:
    for row in store.rows("results"):
        yield _decoded(row["json"], f"result {row['id']}", store.path)


def _description(data: bytes, path: Path) -> RunDescription:
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordingError(
                tried=f"read {path}",
                found=f"its format has version {version}, and this program knows {SCHEMA_VERSION}",
                remedy="Upgrade conviction.",
            )
        return msgspec.json.decode(data, type=RunDescription)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _damaged(path, f"its description is damaged ({error})") from None


def _decoded(data: bytes, what: str, path: Path) -> QuestionResult:
    try:
        return without_empty_verdict(msgspec.json.decode(data, type=QuestionResult))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _damaged(path, f"{what} is damaged ({error})") from None


def _damaged(path: Path, found: str) -> RecordingError:
    return RecordingError(tried=f"read {path}", found=found, remedy="Restore it from a copy.")


def _read_folder(folder: Path) -> Run | None:
    """A run of an earlier version; a torn last line was never counted."""
    try:
        data = (folder / _OLD_DESCRIPTION).read_bytes()
        path = folder / _OLD_RESULTS
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordingError(
            tried=f"read the run {folder}",
            found=error.strerror or str(error),
            remedy="Name a run that this program may read.",
        ) from None
    results: dict[str, QuestionResult] = {}
    for number, line in enumerate(lines, start=1):
        result = _decoded(line, f"line {number}", path)
        if result.id in results:
            raise _damaged(path, f"line {number} repeats the question {result.id!r}")
        results[result.id] = result
    return Run(folder, _description(data, folder / _OLD_DESCRIPTION), tuple(results.values()))
