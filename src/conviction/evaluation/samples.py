"""Samples that another program generated: texts of one question or many, out of JSON.

A file holds JSON lines, or one JSON value. What a line holds is found by the names of its fields:

    one text                 "text", "response", …; lines of the same question follow each other
    all texts of a question  a list under "texts", "samples", "responses", …
    what servers give        "choices" of chats and completions, also within a batch's "response"
    lm-evaluation-harness    "resps" of its logged samples
    texts alone              strings; all of a file are of one question

Questions are read one at a time, but a file that is one JSON value is read as a whole.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidences
from conviction.core import FinishReason
from conviction.errors import InvalidSettingError
from conviction.evaluation.datasets import ANSWER_FIELDS, QUESTION_FIELDS, gold_answer

Fields = Mapping[str, Any]

ID_FIELDS = ("id", "question_id", "unique_id", "custom_id", "doc_id", "problem_id", "task_id",
             "problem_num", "request_id")  # fmt: skip
TEXT_FIELDS = ("text", "completion", "response", "output", "content", "generated_text",
               "generation", "prediction", "message")  # fmt: skip
TEXTS_FIELDS = ("texts", "samples", "responses", "completions", "outputs", "generations",
                "predictions", "choices", "resps")  # fmt: skip
_CUT = {"length", "max_tokens", "model_length", "max_output_tokens"}
_MOST_LINE_BYTES = 1 << 28
_DEEPEST = 4


@dataclass(frozen=True, eq=False)
class Sample:
    """One text, and what is known of it.

    Attributes:
        finish: `LENGTH` if it is told that the text was cut, else `STOP`.
        confidences: Token confidences, shape (tokens,); or one number that stands for all of them;
            or none, shape (0,).
    """

    text: str
    finish: FinishReason = FinishReason.STOP
    confidences: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class SampledQuestion:
    """All texts of one question.

    Attributes:
        place: Where it stands, for messages.
        gold: The right answer, where it is told.
    """

    id: str
    place: str
    text: str
    gold: str | None
    samples: tuple[Sample, ...]


def read_samples(path: Path, file: BinaryIO) -> Iterator[SampledQuestion]:
    """The questions of a file, or of another stream of bytes; `path` names it in messages.

    Raises:
        InvalidSettingError: it holds no samples, or a line cannot be used; it names the line.
    """
    seen: dict[str, str] = {}
    group = _Group()
    for one in _pieces(path, file):
        if group.samples and one.id != group.id:
            yield group.question()
            group = _Group()
        if not group.samples:
            if one.id in seen:
                _refuse(
                    one.place,
                    f"question {one.id!r} stands there again, first in {seen[one.id]}",
                    "Sort the file, so that lines of one question follow each other.",
                )
            seen[one.id] = one.place
        group.add(one)
    if not group.samples:
        _refuse(str(path), "it holds no texts", "Name a file with one JSON object a line.")
    yield group.question()


class _Group:
    """The lines of one question, as they come."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.id = self._place = self._text = ""
        self._gold: str | None = None

    def add(self, one: SampledQuestion) -> None:
        if not self.samples:
            self.id, self._place, self._text, self._gold = one.id, one.place, one.text, one.gold
        elif one.gold is not None and self._gold not in (None, one.gold):
            _refuse(
                one.place,
                f"its right answer {one.gold!r} is not that of {self._place}, {self._gold!r}",
                "Correct it, or give each question an id of its own.",
            )
        self._gold = self._gold if one.gold is None else one.gold
        self.samples += one.samples

    def question(self) -> SampledQuestion:
        return SampledQuestion(self.id, self._place, self._text, self._gold, tuple(self.samples))


def _pieces(path: Path, file: BinaryIO) -> Iterator[SampledQuestion]:
    """What each line holds, or each part of the one value in a file."""
    wanted_filter: object = None
    for number, (place, value) in enumerate(_values(path, file), start=1):
        if isinstance(value, str):
            yield SampledQuestion("1", place, "", None, (Sample(value),))
            continue
        if not isinstance(value, dict):
            _refuse(place, "it is neither a text nor a JSON object", "See docs/answers.md.")
        row = cast("dict[str, Any]", value)
        # The harness logs every sample once for each of its filters.
        if "resps" in row and "filter" in row:
            wanted_filter = wanted_filter or row["filter"]
            if row["filter"] != wanted_filter:
                continue
        yield _question(row, place, number)


def _question(row: Fields, place: str, number: int) -> SampledQuestion:
    row = _unwrapped(row)
    several = _named(row, TEXTS_FIELDS)
    one = None if several else _named(row, TEXT_FIELDS)
    source = several or one
    if source is None:
        _refuse(
            place,
            f"none of its fields holds texts: {', '.join(map(str, row)) or 'it is empty'}",
            f"Name the texts {TEXTS_FIELDS[0]!r}, or a single one {TEXT_FIELDS[0]!r}.",
        )
    found = tuple(_samples(row[source], place)) if several else (_sample(row, source, place),)
    if not found:
        _refuse(place, f"its {source!r} holds no text", "Leave the line out.")
    doc = row.get("doc")
    about = {**cast("Fields", doc), **row} if isinstance(doc, dict) else row
    asked = _named(about, QUESTION_FIELDS)
    text = about[asked] if asked and isinstance(about[asked], str) else ""
    named = _named(row, ID_FIELDS)
    # Single texts that say nothing of their question are all of one.
    identity = str(row[named]) if named else text or (str(number) if several else "1")
    gold = _named({name: value for name, value in about.items() if name != source}, ANSWER_FIELDS)
    right = gold_answer(about[gold]) if gold else None
    return SampledQuestion(identity, place, text, right, found)


def _unwrapped(row: Fields) -> Fields:
    """A response of a server, out of the line of a batch that holds it."""
    response = row.get("response")
    body = cast("Fields", response).get("body") if isinstance(response, dict) else None
    if isinstance(body, dict):
        body = cast("Fields", body)
        # The ids of responses are all different, those of a batch's lines name the question.
        return {name: value for name, value in {**row, **body}.items() if name != "id"}
    return row


def _samples(value: Any, place: str, depth: int = 0) -> Iterator[Sample]:
    """Every text of a list, or of lists within it."""
    if depth > _DEEPEST:
        _refuse(place, "its lists of texts are nested too deeply", "Write one list of texts.")
    parts = cast("Sequence[Any]", value) if isinstance(value, list) else (value,)
    for part in parts:
        if isinstance(part, list):
            yield from _samples(part, place, depth + 1)
        elif isinstance(part, dict):
            row = cast("Fields", part)
            name = _named(row, TEXT_FIELDS)
            if name is None:
                found = f"a sample has no text; its fields: {', '.join(map(str, row))}"
                _refuse(place, found, f"Name the text {TEXT_FIELDS[0]!r}.")
            yield _sample(row, name, place)
        else:
            yield Sample(_text(part, place))


def _sample(row: Fields, name: str, place: str) -> Sample:
    reason = row.get("finish_reason") or row.get("stop_reason")
    finish = FinishReason.LENGTH if reason in _CUT else FinishReason.STOP
    return Sample(_text(row[name], place), finish, _confidences(row, place))


def _text(value: Any, place: str, depth: int = 0) -> str:
    """A text, also out of a message or its parts; an answer that is null is empty."""
    if value is None or isinstance(value, str):
        return value or ""
    if depth <= _DEEPEST and isinstance(value, dict):
        row = cast("Fields", value)
        if name := next((name for name in ("text", "content", "message") if name in row), None):
            return _text(row[name], place, depth + 1)
    if depth <= _DEEPEST and isinstance(value, list):
        parts = cast("list[Any]", value)
        return "".join(_text(part, place, depth + 1) for part in parts)
    found = f"a text is not a string, but {type(cast('object', value)).__name__}"
    return _refuse(place, found, "Write it as a JSON string.")


def _confidences(row: Fields, place: str) -> NDArray[np.float32]:
    """Token confidences out of log-probabilities, or the one number that stands for them."""
    told = row.get("confidence")
    if isinstance(told, int | float) and isfinite(told):
        return np.array([told], np.float32)
    if isinstance(told, list):
        return np.array(_numbers(cast("list[Any]", told), place), np.float32)
    logprobs = row.get("logprobs")
    content = cast("Fields", logprobs).get("content") if isinstance(logprobs, dict) else None
    tokens = cast("list[Any]", content) if isinstance(content, list) else []
    rows: list[list[float]] = []
    for token in tokens:
        top = cast("Fields", token).get("top_logprobs") if isinstance(token, dict) else None
        entries = cast("list[Any]", top) if isinstance(top, list) else []
        named = [cast("Fields", one).get("logprob") for one in entries if isinstance(one, dict)]
        rows.append(sorted(_numbers(named, place), reverse=True))
    width = min((len(one) for one in rows), default=0)
    if not width:
        return np.empty(0, np.float32)
    return token_confidences(np.array([one[:width] for one in rows]), width)


def _numbers(values: Iterable[Any], place: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        _refuse(place, "a confidence or log-probability is not a number", "Correct the line.")


def _named(row: Fields, names: Sequence[str]) -> str | None:
    """The first of the names that the row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def _values(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Each value of JSON lines; or each member of the one list that a file is; with its place."""
    lines = _lines(path, file)
    for line, data in lines:
        place = f"line {line} of {path}"
        try:
            value = _parsed(data)
        except json.JSONDecodeError as error:
            if line > 1:
                _refuse(place, f"it is not JSON ({error.msg})", "Write one JSON value a line.")
            # The first line alone is not JSON, so the file should be one value over many lines.
            yield from _members(path, b"".join(chain([data], (more for _, more in lines))))
            return
        except (ValueError, RecursionError) as error:
            _refuse(place, _why(error), "Correct the line, or leave it out.")
        if line == 1 and isinstance(value, list):
            rest = next(lines, None)
            if rest is not None:
                _refuse(f"line {rest[0]} of {path}", "a list stands before it", "Write one list.")
            yield from _listed(path, cast("list[Any]", value))
            return
        yield place, value


def _members(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        value = _parsed(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno} of {path}"
        _refuse(place, f"it is not JSON ({error.msg})", "Write one JSON object a line.")
    except (ValueError, RecursionError) as error:
        _refuse(str(path), _why(error), "Write one JSON object a line.")
    yield from _listed(path, cast("list[Any]", value) if isinstance(value, list) else [value])


def _listed(path: Path, values: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(values, start=1):
        yield f"item {number} of {path}", value


def _parsed(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig"))


def _why(error: ValueError | RecursionError) -> str:
    match error:
        case UnicodeDecodeError():
            return f"it is not UTF-8 text (byte {error.start + 1:,})"
        case RecursionError():
            return "its lists or objects are nested too deeply"
        case _:
            return str(error)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number."""
    number = 0
    while data := file.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(data) > _MOST_LINE_BYTES:
            place = f"line {number} of {path}"
            _refuse(place, f"it is longer than {_MOST_LINE_BYTES:,} bytes", "Split it.")
        if data.strip():
            yield number, data


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """A file of samples, open for reading.

    Raises:
        InvalidSettingError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        _refuse(str(path), error.strerror or str(error), "Name a file that can be read.")


def _refuse(place: str, found: str, remedy: str) -> NoReturn:
    raise InvalidSettingError(tried=f"read {place}", found=found, remedy=remedy)
