"""What every importer gives, how it reads JSON, and how it refuses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from conviction.core import Trace
from conviction.errors import RecordingError
from conviction.recordings.schema import PoolMeta, RecordedQuestion

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


def objects(path: Path) -> Iterator[tuple[int, Any]]:
    """Each JSON object of a file with the line where it begins.

    A file is JSON lines, or one object over all its lines.

    Raises:
        RecordingError: it is neither.
    """
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
        try:
            value = json.loads(first)
        except json.JSONDecodeError:
            text = first + file.read()
            if not text.strip():
                raise refused(path, "it is empty", "Name a file with traces.") from None
            yield 1, _parsed(text, path)
            return
        yield 1, _object(value, path)
        for line, text in enumerate(file, start=2):
            if text.strip():
                yield line, _parsed(text, f"line {line} of {path}")


def _parsed(text: str, place: str | Path) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"it is no JSON ({error.msg} at line {error.lineno}, column {error.colno})"
        raise refused(place, found) from None
    return _object(value, place)


def _object(value: Any, place: str | Path) -> Any:
    if not isinstance(value, dict):
        raise refused(place, "it is no JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]
