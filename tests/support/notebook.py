"""A small kind of store for tests."""

import random
from pathlib import Path
from typing import Any

from conviction.store import Kind, Store, StoreWriter

TABLE = """
CREATE TABLE notes (id INTEGER PRIMARY KEY, word TEXT, weight REAL, data BLOB, checksum INTEGER)
"""
LATER = """
ALTER TABLE notes ADD COLUMN author TEXT;
CREATE TABLE readers (id INTEGER PRIMARY KEY, name TEXT, checksum INTEGER);
"""
NOTES = Kind("notebook", 0x63760100, (TABLE,))
NEWER = Kind("notebook", 0x63760100, (TABLE, LATER))


def note(number: int, size: int = 100) -> dict[str, Any]:
    """A row whose every value follows from its number."""
    values = random.Random(number)  # noqa: S311
    return {
        "word": None if number % 7 == 3 else f"ü{number}",
        "weight": float(number) / (1 + number % 4),
        "data": values.randbytes(size),
    }


def write(path: Path, numbers: range, *, size: int = 100, kind: Kind = NOTES) -> None:
    with StoreWriter(path, kind) as writer, writer.transaction():
        for number in numbers:
            writer.insert("notes", **note(number, size))


def read(path: Path, kind: Kind = NOTES) -> list[dict[str, Any]]:
    with Store(path, kind) as reader:
        return list(reader.rows("notes"))


def written(numbers: range, size: int = 100) -> list[dict[str, Any]]:
    return [{"id": number + 1, **note(number, size)} for number in numbers]
