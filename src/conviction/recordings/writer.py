"""Writing a pool: each trace is durable once it was appended."""

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from conviction.errors import RecordingError
from conviction.lock import exclusive
from conviction.recordings.folder import explained, journal_path, part_path, sync_folder
from conviction.recordings.index import Entry, Index
from conviction.recordings.journal import Journal
from conviction.recordings.parquet import arrow, write_part
from conviction.recordings.schema import PoolMeta, RecordedTrace, check_row

JOURNAL_BYTES = 32 << 20
"""A journal of this size becomes a part."""


class PoolWriter:
    """Appends traces to a pool; one writer at a time.

    Opening continues where any earlier writer ended, also one that was killed or that lost its
    power. Used by one thread at a time.

    Args:
        path: The pool's folder; made if need be.
        meta: What all its traces share.
        journal_bytes: Size from which a journal becomes a part.

    Attributes:
        path: The pool's folder.
        meta: What all its traces share.

    Raises:
        MissingExtraError: pyarrow is not installed.
        RecordingError: somebody else writes to it, it is damaged, it holds traces of another
            model, k, kind of answer or sampling, or the disk refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: PoolMeta,
        *,
        journal_bytes: int = JOURNAL_BYTES,
    ) -> None:
        arrow()
        self.path = Path(path).expanduser()
        self.meta = meta
        self._limit = journal_bytes
        with ExitStack() as stack:
            _lock(self.path, stack)
            self._index = Index(self.path)
            self._check_meta()
            self._waiting = [
                row for entry in self._index.entries.values() for row in _take_rows(entry)
            ]
            listing = self._index.listing
            self._number = listing.next_number
            with explained(self.path, "write"):
                for path_left in listing.outdated:
                    path_left.unlink(missing_ok=True)
            self._journal = self._open_journal(self._index.journal_size)
            stack.callback(self._close_journal)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def numbers(self, question_id: str) -> frozenset[int]:
        """Numbers of the recorded traces of a question."""
        entry = self._index.entries.get(question_id)
        return frozenset(entry.numbers) if entry else frozenset()

    def seeds(self, question_id: str) -> frozenset[int]:
        """Seeds of the recorded traces of a question."""
        entry = self._index.entries.get(question_id)
        return frozenset(entry.seeds) if entry else frozenset()

    def answers(self, question_id: str) -> Mapping[str, str]:
        """The key of each distinct recorded answer to a question, in order of recording."""
        entry = self._index.entries.get(question_id)
        return dict(entry.answers) if entry else {}

    def check_question(self, question_id: str, prompt_hash: str, gold: str | None) -> None:
        """Check that traces of a question may be appended to those that are there.

        Raises:
            RecordingError: the pool holds another question, prompt or gold answer of this id.
        """
        self._index.check_question(question_id, prompt_hash, gold, str(self.path))

    def append(self, *traces: RecordedTrace) -> None:
        """Record traces: all of them, durably, or after an error none.

        Raises:
            RecordingError: one is there already, does not fit the pool, or the disk refuses. If
                it refuses only to make the journal a part, the traces are recorded all the same.
        """
        seen: set[tuple[str, int]] = set()
        for row in traces:
            check_row(row, self.meta)
            self.check_question(row.question_id, row.prompt_hash, row.gold)
            key = (row.question_id, row.number)
            if key in seen or row.number in self.numbers(row.question_id):
                raise RecordingError(
                    tried=f"record {row.label} in {self.path}",
                    found="it is there already",
                    remedy="Give the trace a number of its own.",
                )
            seen.add(key)
        if not traces:
            return
        self._journal.append(traces)
        for row in traces:
            self._index.add_row(row, str(self.path))
        self._waiting += traces
        if self._journal.size >= self._limit:
            self.compact()

    def compact(self) -> None:
        """Turn the journal into a part; it then takes less room and is quicker to read.

        Raises:
            RecordingError: the disk refuses; nothing is lost.
        """
        if not self._waiting:
            return
        # Stable, so that traces of a question stay in the order in which they were recorded.
        order = {row.question_id: None for row in self._waiting}
        place = {question: position for position, question in enumerate(order)}
        rows = sorted(self._waiting, key=lambda row: place[row.question_id])
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row.question_id)]
        write_part(part_path(self.path, self._number), groups, self.meta)
        before = self._journal
        before.close()
        self._waiting = []
        self._number += 1
        self._journal = self._open_journal(0)
        # It does not count any more; what cannot be removed now is removed by the next writer.
        with suppress(OSError):
            before.path.unlink()

    def close(self) -> None:
        """Give the pool back; everything appended is safe already."""
        self._stack.close()

    def _close_journal(self) -> None:
        self._journal.close()  # whichever is the last

    def _open_journal(self, size: int) -> Journal:
        return Journal(journal_path(self.path, self._number), self.meta, size)

    def _check_meta(self) -> None:
        before = self._index.meta
        if before is not None and (different := self.meta.differences(before)):
            raise RecordingError(
                tried=f"add to the pool {self.path}",
                found=f"what is to be recorded does not fit what is there: {different}",
                remedy="Record into another folder, or with the settings of this one.",
            )


def _take_rows(entry: Entry) -> list[RecordedTrace]:
    rows, entry.rows = entry.rows, []
    return rows


def _lock(path: Path, stack: ExitStack) -> None:
    with explained(path, "write"):
        if path.exists() and not path.is_dir():
            raise RecordingError(
                tried=f"record into {path}",
                found="it is a file, and a pool that can be added to is a folder",
                remedy="Name a folder.",
            )
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        if new:
            sync_folder(path.parent)
        try:
            stack.enter_context(exclusive(path / "lock", 0, lambda: None))
        except TimeoutError:
            raise RecordingError(
                tried=f"record into {path}",
                found="another program is recording there",
                remedy="Wait for it, or name another folder.",
            ) from None
