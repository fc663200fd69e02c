"""Small JSON notes that lie beside model files. A note that cannot be read counts as none."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


def beside(path: Path, ending: str) -> Path:
    """The path with something added to the file name."""
    return path.with_name(path.name + ending)


def read_note(path: Path) -> dict[str, Any]:
    """The note at `path`; empty if there is none, or if it is damaged."""
    try:
        note: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", note) if isinstance(note, dict) else {}


def write_note(path: Path, note: Mapping[str, str | int | None]) -> None:
    """Write a note whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    draft = beside(path, f".{os.getpid()}")
    draft.write_text(json.dumps(note), "utf-8")
    draft.replace(path)
