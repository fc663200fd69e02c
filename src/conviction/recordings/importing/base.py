"""What every importer gives, how it reads JSON, and how it refuses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason, Sampling
from conviction.errors import RecordingError

_Shape = TypeVar("_Shape")


@dataclass(frozen=True, slots=True, eq=False)
class ImportedTrace:
    """One trace of a foreign file.

    Attributes:
        number: Its number within its question.
        finish: Why it ended.
        tokens: Tokens that it generated.
        text: What it wrote; None where the file does not keep it.
        answer: The answer that the file names; used where there is no text to look in.
        confidences: Token confidences, float32, shape (tokens,); None in files without.
        prompt_tokens: Tokens of the prompt; 0 where unknown.
        seconds: How long it took; 0 where unknown.
    """

    number: int
    finish: FinishReason
    tokens: int
    text: str | None = None
    answer: str | None = None
    confidences: NDArray[np.float32] | None = field(default=None, repr=False)
    prompt_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ImportedQuestion:
    """One question of a foreign file; text and hash are empty where the file does not say.

    `place` tells where it stands, for errors.
    """

    place: str
    id: str
    text: str
    gold: str | None
    prompt_hash: str
    traces: tuple[ImportedTrace, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a foreign file holds.

    Attributes:
        model: Name of the model, as far as the file tells.
        top_k: Log-probabilities behind each confidence; 0 without confidences.
        sampling: How tokens were drawn; None where the file does not say.
        source: Which file it was, and what to know about it.
        questions: Its questions.
    """

    model: str
    top_k: int
    sampling: Sampling | None
    source: str
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
