"""What every importer gives, how it reads JSON, and how it refuses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import msgspec

from conviction.core import Question, Trace
from conviction.errors import RecordingError
from conviction.recordings.schema import PoolMeta, RecordedQuestion, prompt_hash

_MOST_CHARACTERS = 1 << 30
"""Of a line, or of a file that is one object."""
_MOST_DIGITS = 18
"""Of a whole number; what has more fits into no column."""

_Shape = TypeVar("_Shape")


@dataclass(frozen=True, slots=True)
class ImportedQuestion:
    """One question of a foreign file.

    Attributes:
        place: Where it stands, for errors.
        question: The question; text and hash are empty where the file does not say.
        traces: Its traces, numbered by their `id`. An answer is given only where there is no text
            to look in.
    """

    place: str
    question: RecordedQuestion
    traces: tuple[Trace, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a foreign file holds: what its traces share, no kind of answer yet, and questions."""

    meta: PoolMeta
    questions: tuple[ImportedQuestion, ...]


def shaped(value: Any, shape: type[_Shape], place: str) -> _Shape:
    """A value out of JSON as what it should be.

    Raises:
        RecordingError: it has another shape.
    """
    try:
        return msgspec.convert(value, shape, strict=False)
    except msgspec.ValidationError as error:
        raise refused(place, str(error)) from None


def refused(place: str | Path, found: str, remedy: str = "") -> RecordingError:
    """The error for a file that cannot be imported."""
    return RecordingError(
        tried=f"import {place}",
        found=found,
        remedy=remedy or "Compare it with what docs/recordings.md says about imports.",
    )


def asked_question(
    place: str | Path, name: str, text: str, gold: str | None, asked: Question | None
) -> RecordedQuestion:
    """A question of a foreign file, and what the model was asked, where that is known.

    Raises:
        RecordingError: it holds half a character, which cannot be stored.
    """
    try:
        f"{name}{text}{gold}".encode()
        asked_hash = prompt_hash(asked) if asked else ""
    except UnicodeEncodeError:
        found = "its id, question or right answer holds half a character (a lone surrogate)"
        raise refused(place, found, "Correct it, or leave it out.") from None
    return RecordedQuestion(name, text, gold, asked_hash, 0)


def objects(path: Path) -> Iterator[tuple[int, Any]]:
    """Each JSON object of a file with the line where it begins.

    A file is JSON lines, or one object over all its lines.

    Raises:
        RecordingError: it is neither, or longer than can be taken.
    """
    with path.open(encoding="utf-8-sig") as file:
        first = _next_line(file, 1, path)
        try:
            value = parsed(first, f"line 1 of {path}")
        except RecordingError:
            rest = file.read(_MOST_CHARACTERS)
            if rest.strip():
                if file.read(1):
                    raise _too_long(path) from None
                yield 1, parsed(first + rest, path)
                return
            if not first.strip():
                raise refused(path, "it is empty", "Name a file with traces.") from None
            raise
        yield 1, value
        line = 1
        while text := _next_line(file, line := line + 1, path):
            if text.strip():
                yield line, parsed(text, f"line {line} of {path}")


def _next_line(file: TextIO, line: int, path: Path) -> str:
    text = file.readline(_MOST_CHARACTERS + 1)
    if len(text) > _MOST_CHARACTERS:
        raise _too_long(f"line {line} of {path}")
    return text


def _too_long(place: str | Path) -> RecordingError:
    return refused(place, f"it is longer than {_MOST_CHARACTERS:,} characters", "Split the file.")


def parsed(text: str | bytes, place: str | Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RecordingError: it is none, or holds what cannot be taken.
    """
    try:
        value: object = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        found = f"it is no JSON ({error.msg} at line {error.lineno}, column {error.colno})"
        raise refused(place, found) from None
    except RecursionError:
        raise refused(place, "its lists or objects are nested too deeply") from None
    except UnicodeDecodeError:
        raise refused(place, "it is not UTF-8 text") from None
    except ValueError as error:
        raise refused(place, str(error)) from None
    if not isinstance(value, dict):
        raise refused(place, "it is no JSON object")
    return cast("dict[str, Any]", value)


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)
