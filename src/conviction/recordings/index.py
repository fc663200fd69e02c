"""What a pool holds and where it lies, without what is large."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.errors import RecordingError
from conviction.recordings.columns import codes, first_null
from conviction.recordings.folder import Listing, busy, list_folder
from conviction.recordings.journal import JournalContents, read_journal
from conviction.recordings.parquet import INDEX_COLUMNS, Part
from conviction.recordings.schema import (
    COMPLETE,
    PoolMeta,
    RecordedQuestion,
    RecordedTrace,
    check_row,
)

_REQUIRED = ("question_id", "trace", "prompt_hash", "question", "top_k", "seed", "finish")
"""Columns without a null; that of the model is compared to the file's description anyway."""

_ATTEMPTS = 100
"""How often a folder is read anew because its journal became a part meanwhile."""


@dataclass
class Entry:
    """What is known of one question.

    Attributes:
        question: The question; its counts of traces are brought up to date at the end.
        numbers: Numbers of its recorded traces.
        complete: How many of them ran to their own end or to their token limit.
        seeds: Their seeds.
        answers: Key of each distinct answer, in the order in which they were recorded.
        groups: Row groups that hold traces of it, by part.
        rows: Those that stand in the journal.
    """

    question: RecordedQuestion
    numbers: set[int] = field(default_factory=set[int])
    complete: int = 0
    seeds: set[int] = field(default_factory=set[int])
    answers: dict[str, str] = field(default_factory=dict[str, str])
    groups: list[tuple[Part, list[int]]] = field(default_factory=list[tuple[Part, list[int]]])
    rows: list[RecordedTrace] = field(default_factory=list[RecordedTrace])


class Index:
    """All questions of a pool, and the facts that its traces share.

    Memory grows with the number of traces, not with their tokens; the journal, which its writer
    keeps small, is held as a whole.

    Args:
        path: A pool's folder, or a single Parquet file.

    Attributes:
        meta: The pool's facts; None for a folder without any.
        entries: What is known of each question by its id, in order of first appearance.
        listing: What lies in the folder.
        journal_size: Bytes of the journal that count.

    Raises:
        RecordingError: a file is damaged, of a newer version, or does not fit the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: PoolMeta | None = None
        self.entries: dict[str, Entry] = {}
        self.journal_size = 0
        if path.is_dir():
            self.listing, journal = _settled(path)
        else:
            self.listing, journal = Listing(((0, path),), None, ()), None
        for _, part in self.listing.parts:
            self._add_part(Part.open(part))
        if journal and self.listing.journal:
            self._add_journal(journal, self.listing.journal[1])

    def questions(self) -> tuple[RecordedQuestion, ...]:
        """All questions with their counts of traces."""
        return tuple(
            replace(entry.question, traces=len(entry.numbers), complete=entry.complete)
            for entry in self.entries.values()
        )

    def add_row(self, row: RecordedTrace, place: str) -> Entry:
        """Take note of one more trace.

        Raises:
            RecordingError: it is there already, or its question is another one of the same id.
        """
        entry = self._entry(
            RecordedQuestion(row.question_id, row.question, row.gold, row.prompt_hash, 0), place
        )
        if row.number in entry.numbers:
            raise _twice(row.question_id, row.number, place)
        entry.numbers.add(row.number)
        entry.complete += row.finish in COMPLETE
        entry.seeds.add(row.seed)
        if row.answer:
            entry.answers.setdefault(row.answer.text, row.answer.key)
        return entry

    def check_question(
        self, question_id: str, prompt_hash: str, gold: str | None, place: str
    ) -> None:
        """Check that a question is the one that is known by its id, if there is one.

        Raises:
            RecordingError: its prompt or gold answer is another.
        """
        entry = self.entries.get(question_id)
        if entry is None:
            return
        for name, now in (("prompt_hash", prompt_hash), ("gold", gold)):
            before = getattr(entry.question, name)
            if before != now:
                raise RecordingError(
                    tried=f"use {place}",
                    found=f"question {question_id!r} has the {name.replace('_', ' ')} {now!r} "
                    f"there, and {before!r} before",
                    remedy="Another question, prompt or gold answer belongs into another pool.",
                )

    def _entry(self, question: RecordedQuestion, place: str) -> Entry:
        self.check_question(question.id, question.prompt_hash, question.gold, place)
        return self.entries.setdefault(question.id, Entry(question))

    def _use_meta(self, meta: PoolMeta, place: Path) -> None:
        if self.meta is None:
            self.meta = meta
        elif different := meta.differences(self.meta):
            raise RecordingError(
                tried=f"read the pool {self.path}",
                found=f"{place.name} does not fit the files before it: {different}",
                remedy="Confidences mean nothing across models or k: keep them in pools of their "
                "own.",
            )

    def _add_journal(self, journal: JournalContents, path: Path) -> None:
        self.journal_size = journal.size
        if journal.meta is None:
            return
        self._use_meta(journal.meta, path)
        for position, row in enumerate(journal.rows):
            place = f"row {position + 1} of {path}"
            check_row(row, journal.meta)
            self.add_row(row, place).rows.append(row)

    def _add_part(self, part: Part) -> None:
        self._use_meta(part.meta, part.path)
        table = part.read(INDEX_COLUMNS)
        _check_present(table, part.path)
        _check_shared(table, part)
        if not table.num_rows:
            return
        ids, questions = codes(table, "question_id")
        reader = _PartReader(table, part)
        order = np.argsort(ids, kind="stable")
        found, begins = np.unique(ids[order], return_index=True)
        pieces = zip(found.tolist(), np.split(order, begins[1:]), strict=True)
        for code, rows in sorted(pieces, key=lambda piece: int(piece[1][0])):
            self._add_rows(questions[code], rows, reader)

    def _add_rows(self, question: str, rows: NDArray[np.int64], reader: "_PartReader") -> None:
        path = reader.part.path
        entry = self._entry(reader.question(question, rows), f"row {rows[0] + 1} of {path}")
        for row, number in zip(rows.tolist(), reader.numbers[rows].tolist(), strict=True):
            if number in entry.numbers:
                raise _twice(question, number, f"row {row + 1} of {path}")
            entry.numbers.add(number)
        entry.complete += int(np.count_nonzero(reader.complete[rows]))
        entry.seeds.update(reader.seeds[rows].tolist())
        for text, key in reader.answers(rows):
            entry.answers.setdefault(text, key)
        groups = np.unique(np.searchsorted(reader.part.group_ends, rows, side="right"))
        entry.groups.append((reader.part, groups.tolist()))


class _PartReader:
    """The index columns of a part."""

    def __init__(self, table: Any, part: Part) -> None:
        self.part = part
        self.numbers = _whole_numbers(table, "trace")
        self.seeds = _whole_numbers(table, "seed")
        finish, reasons = codes(table, "finish")
        self.complete = np.array([reason in COMPLETE for reason in reasons], np.bool_)[finish]
        self._names = {
            name: codes(table, name)
            for name in ("prompt_hash", "question", "gold", "answer", "answer_key")
        }

    def question(self, id: str, rows: NDArray[np.int64]) -> RecordedQuestion:  # noqa: A002
        """The question of these rows.

        Raises:
            RecordingError: they disagree about it.
        """
        for name in ("prompt_hash", "gold"):
            column, _ = self._names[name]
            other = np.flatnonzero(column[rows] != column[rows[0]])
            if other.size:
                found = f"its {name.replace('_', ' ')} is not that of the same question before"
                raise _unreadable(self.part.path, int(rows[other[0]]), found)
        first = int(rows[0])
        return RecordedQuestion(
            id=id,
            text=self._value("question", first) or "",
            gold=self._value("gold", first),
            prompt_hash=self._value("prompt_hash", first) or "",
            traces=0,
        )

    def answers(self, rows: NDArray[np.int64]) -> Iterable[tuple[str, str]]:
        """Distinct answers of these rows with their keys, in order of the file."""
        texts, spellings = self._names["answer"]
        keys, classes = self._names["answer_key"]
        pairs = zip(texts[rows].tolist(), keys[rows].tolist(), strict=True)
        for text, key in dict.fromkeys(pairs):
            if text >= 0 and key >= 0:
                yield spellings[text], classes[key]

    def _value(self, name: str, row: int) -> str | None:
        column, values = self._names[name]
        return values[column[row]] if column[row] >= 0 else None


def _settled(folder: Path) -> tuple[Listing, JournalContents | None]:
    """The folder and its journal, read while a writer may be turning it into a part."""
    for _ in range(_ATTEMPTS):
        listing = list_folder(folder)
        if listing.journal is None:
            return listing, None
        try:
            return listing, read_journal(listing.journal[1])
        except FileNotFoundError:
            continue
    raise busy(folder)


def _check_present(table: Any, path: Path) -> None:
    """Check that nothing is missing that a trace cannot do without."""
    missing = first_null(table, _REQUIRED)
    if missing:
        row, name = missing
        raise _unreadable(path, row, f"it has no {name}")

    def there(name: str) -> NDArray[np.bool_]:
        return table.column(name).is_valid().to_numpy()

    halves = np.flatnonzero(there("answer") != there("answer_key"))
    if halves.size:
        found = "it has an answer without its answer_key, or the key alone"
        raise _unreadable(path, int(halves[0]), found)
    ungraded = np.flatnonzero(there("gold") & ~there("correct"))
    if ungraded.size:
        found = "it has no correct, which tells whether it is right, and its question has a gold"
        raise _unreadable(path, int(ungraded[0]), found)


def _check_shared(table: Any, part: Part) -> None:
    """Check that each row has the facts that the file's description claims."""
    meta = part.meta
    for name, wanted in (("model", meta.model), ("sampling", meta.sampling_json)):
        column, values = codes(table, name)
        fits = np.array([value == wanted for value in values] + [wanted is None], np.bool_)
        _check_all(fits[column], part, name, column, values)
    ks = _whole_numbers(table, "top_k")
    _check_all(ks == meta.top_k, part, "k", ks, None)


def _check_all(
    fits: NDArray[np.bool_],
    part: Part,
    name: str,
    column: NDArray[np.int64],
    values: Sequence[Any] | None,
) -> None:
    other = np.flatnonzero(~fits)
    if other.size:
        row = int(other[0])
        code = int(column[row])
        value = code if values is None else values[code] if code >= 0 else None
        raise _unreadable(part.path, row, f"its {name} is {value}, not that of the file")


def _whole_numbers(table: Any, name: str) -> NDArray[np.int64]:
    return table.column(name).to_numpy().astype(np.int64, copy=False)


def _twice(question: str, number: int, place: str) -> RecordingError:
    return RecordingError(
        tried=f"use {place}",
        found=f"trace {number} of question {question!r} is there already",
        remedy="Each trace may be recorded once; was a part copied within the pool?",
    )


def _unreadable(path: Path, row: int, found: str) -> RecordingError:
    return RecordingError(
        tried=f"read row {row + 1} of {path}",
        found=found,
        remedy="Restore the file from a copy, or record again.",
    )
