"""Data sets: questions and gold answers out of files and of the Hugging Face hub."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

from conviction.errors import InvalidSettingError
from conviction.evaluation.hub import HUB, HubAddress, hub_rows
from conviction.files import expanded
from conviction.recordings.parquet import arrow

QUESTION_FIELDS: Final = ("question", "problem", "input", "prompt", "query")
ANSWER_FIELDS: Final = ("answer", "target", "gold_answer", "gold", "expected_answer", "label")
ID_FIELDS: Final = ("id", "question_id", "unique_id")
"""Names that are tried in this order if none is given."""

_MOST_FIELD_CHARACTERS = 1 << 24
_BEFORE_GOLD = "####"
"""GSM8K writes the whole solution, and after this the answer as its last line."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a row holds what; None tries the usual names."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetQuestion:
    """One question of a data set.

    Attributes:
        id: Its id; the row's number, from 1, in a file without ids.
        text: Its words.
        gold: The right answer; None where the file has none or was asked for none.
        place: Where it stands, as in "line 3 of questions.jsonl".
    """

    id: str
    text: str
    gold: str | None
    place: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions, and where they come from.

    Attributes:
        questions: At least one.
        origin: For the hub, what to type to read the same again: the address with the commit, the
            subset and the split. None for a file.
    """

    questions: tuple[DatasetQuestion, ...]
    origin: str | None = None


def load(
    data: str | os.PathLike[str],
    fields: Fields | None = None,
    *,
    gold: bool = True,
    drop_duplicates: bool = False,
    limit: int | None = None,
    subset: str | None = None,
    split: str | None = None,
) -> Dataset:
    """Read a data set: a file, by the end of its name, or one of the Hugging Face hub.

    It waits for disk and network: call it in a thread of its own where an event loop runs.

    Args:
        data: A .jsonl, .csv or .parquet file, or an address: hf://OWNER/NAME, and @REVISION.
        fields: Which field holds what.
        gold: Whether there must be gold answers; without, none are read.
        drop_duplicates: Whether a repeated question is left out, in place of an error.
        limit: The most questions to take, from the beginning; of the hub, little more is fetched.
        subset: Subset of a data set on the hub; may be left out if there is one, or a default.
        split: Split of a data set on the hub; may be left out if there is one.

    Raises:
        InvalidSettingError: the data set or a row of it cannot be used; it names file and line.
        MissingExtraError: it is a Parquet file and pyarrow is not installed, or on the hub and
            datasets is not.
        DownloadError: the hub cannot be reached, or what it gives cannot be read.
    """
    loader = _Loader(fields or Fields(), gold, drop_duplicates, limit)
    if isinstance(data, str) and data.startswith(HUB):
        return _from_hub(HubAddress.parse(data), subset, split, loader)
    if subset or split:
        _refuse(
            data,
            "a file has no subsets and no splits",
            "Leave out --subset and --split, or name a data set on the hub: hf://OWNER/NAME.",
        )
    return _from_file(expanded(data), loader)


def _from_file(path: Path, loader: "_Loader") -> Dataset:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        found = "its name does not end in .jsonl, .csv or .parquet"
        _refuse(path, found, "Convert it, or rename it to what it is.")
    unit = "row" if reader is _parquet_rows else "line"
    try:
        return Dataset(loader.questions(reader(path), unit, path))
    except OSError as error:
        _refuse(path, error.strerror or str(error), "Name a file that can be read.")


def _from_hub(
    address: HubAddress, subset: str | None, split: str | None, loader: "_Loader"
) -> Dataset:
    with hub_rows(address, subset=subset, split=split, limit=loader.limit) as found:
        rows = enumerate(found.rows, start=1)
        return Dataset(loader.questions(rows, "row", found.label), found.origin)


@dataclass(frozen=True)
class _Loader:
    """Turns rows into questions, and remembers where each id and each text stood."""

    fields: Fields
    gold: bool
    drop_duplicates: bool
    limit: int | None
    ids: dict[str, str] = field(default_factory=dict[str, str])
    texts: dict[str, str] = field(default_factory=dict[str, str])

    def questions(
        self, rows: Iterable[tuple[int, Row]], unit: str, source: object
    ) -> tuple[DatasetQuestion, ...]:
        read = (
            self._question(number, f"{unit} {line} of {source}", row)
            for number, (line, row) in enumerate(rows, start=1)
        )
        found = tuple(islice(filter(self._is_new, read), self.limit))
        if not found:
            _refuse(source, "it holds no question", "Name a data set with one question a row.")
        return found

    def _question(self, number: int, place: str, row: Row) -> DatasetQuestion:
        names = self.fields
        name = _needed_field(place, row, "question", names.question, QUESTION_FIELDS)
        text = row[name]
        if not isinstance(text, str) or not text.strip():
            _refuse(place, f"its {name!r} holds no question", "Correct the row, or leave it out.")
        identity = _field(row, None, ID_FIELDS)
        if names.id:
            identity = _needed_field(place, row, "id", names.id, ID_FIELDS)
        own = str(number) if identity is None else _as_text(row[identity])
        if not own:
            _refuse(place, f"its {identity!r} is empty", "Correct it, or name another --id-field.")
        gold = self._gold_answer(row, place)
        if not _is_text(own + text + (gold or "")):
            found = "it holds half a character (a lone surrogate), which is no text"
            _refuse(place, found, "Correct the row, or leave it out.")
        return DatasetQuestion(own, text, gold, place)

    def _gold_answer(self, row: Row, place: str) -> str | None:
        if not self.gold:
            return None
        name = _needed_field(place, row, "answer", self.fields.answer, ANSWER_FIELDS)
        answer = gold_answer(row[name])
        if not answer:
            _refuse(
                place,
                f"its {name!r} holds no gold answer",
                "Correct the row, leave it out, or go without gold answers: --no-gold.",
            )
        return answer

    def _is_new(self, question: DatasetQuestion) -> bool:
        if earlier := self.texts.get(question.text):
            if self.drop_duplicates:
                return False
            _refuse(
                question.place,
                f"it asks what {earlier} asks",
                "Leave it out, or let later ones be left out: --drop-duplicates.",
            )
        if question.id in self.ids:
            _refuse(
                question.place,
                f"its id {question.id!r} is that of {self.ids[question.id]}",
                "Give each question an id of its own, or name another --id-field.",
            )
        self.texts[question.text] = self.ids[question.id] = question.place
        return True


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for line, text in _lines(path):
        if not text.strip():
            continue
        place = f"line {line} of {path}"
        try:
            row = json.loads(text, parse_int=_whole, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            found = f"it is no JSON ({error.msg} at column {error.colno})"
            _refuse(place, found, "Write one JSON object a line.")
        except RecursionError:
            _refuse(place, "its lists or objects are nested too deeply", "Leave the row out.")
        except ValueError as error:
            _refuse(place, f"it holds {error}", "Correct the row, or leave it out.")
        if not isinstance(row, dict):
            _refuse(place, "it is no JSON object", "Write one JSON object a line.")
        yield line, row


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number of {len(digits.lstrip('-')):,} digits") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no value of JSON")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, decoded alone, so that a bad byte is told with its line."""
    with path.open("rb") as file:
        pieces = (piece for data in file for piece in data.splitlines(keepends=True))
        for line, piece in enumerate(pieces, start=1):
            try:
                text = piece.decode()
            except UnicodeDecodeError as error:
                found = f"it is not UTF-8: byte {error.start + 1:,} of the line is no text"
                _refuse(f"line {line} of {path}", found, "Convert the file to UTF-8.")
            yield line, text.removeprefix("\ufeff") if line == 1 else text


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_MOST_FIELD_CHARACTERS)
    reader = csv.DictReader((text for _, text in _lines(path)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                _refuse(
                    f"line {reader.line_num} of {path}",
                    f"it has another number of columns than the {len(reader.fieldnames or ())} "
                    "of the first line",
                    "Put quotation marks around values with commas.",
                )
            yield reader.line_num, row
    except csv.Error as error:
        place = f"line {reader.line_num} of {path}"
        _refuse(place, f"it is no CSV ({error})", "Correct the line.")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    parquet = arrow("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except arrow().ArrowException as error:
        found = f"it is no whole Parquet file ({str(error).splitlines()[0]})"
        _refuse(path, found, "Fetch it again.")


_READERS: Final[Mapping[str, Callable[[Path], Iterator[tuple[int, Row]]]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""What gives each row with its line, or its number where there are no lines."""


def _field(row: Row, given: str | None, usual: Sequence[str]) -> str | None:
    """The first of the names that the row has a value for."""
    for name in (given,) if given else usual:
        if row.get(name) is not None:
            return name
    return None


def _is_text(value: str) -> bool:
    """Whether it can be written down: JSON can spell halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: object) -> str | None:
    match value:
        case str():
            return value.strip()
        case bool():
            return str(value).lower()
        case float() if not isfinite(value):  # how Parquet files often say that there is none
            return None
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case _:
            return None


def gold_answer(value: object) -> str | None:
    """The right answer out of a field: what follows "####" at its end, or else all of it."""
    answer = _as_text(value)
    if answer is None:
        return None
    before, _, line = answer.rpartition("\n")
    if before.rstrip().endswith(_BEFORE_GOLD):
        return line.strip()
    _, mark, behind = line.partition(_BEFORE_GOLD)
    return behind.strip() if mark and behind else answer


def _needed_field(place: str, row: Row, what: str, given: str | None, usual: Sequence[str]) -> str:
    """As `_field`, and an error without any."""
    name = _field(row, given, usual)
    if name is None:
        looked = f"{given!r} has no" if given else f"none of {', '.join(usual)} has a"
        has = ", ".join(map(str, row)) or "none"
        remedy = f"Name the field that holds the {what}: --{what}-field."
        if what == "answer":
            remedy += " Or go without gold answers: --no-gold."
        _refuse(place, f"it has no {what}: {looked} value there. Its fields: {has}", remedy)
    return name


def _refuse(place: object, found: str, remedy: str) -> NoReturn:
    raise InvalidSettingError(tried=f"read {place}", found=found, remedy=remedy)
