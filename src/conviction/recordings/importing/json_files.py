"""Reading JSON whose shape is not known yet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conviction.recordings.importing.base import refused


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
