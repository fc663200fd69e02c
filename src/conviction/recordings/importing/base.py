"""What every importer gives, and how it refuses."""

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
