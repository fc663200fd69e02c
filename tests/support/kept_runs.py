"""Looks at what an evaluation keeps on disk."""

import json
from pathlib import Path
from typing import Any

from conviction.database import is_blank
from conviction.evaluation.stored import RUN, Run, read_run
from conviction.store import Store


def lines(path: Path) -> list[dict[str, Any]]:
    """The results of a run, also one that is going on; none where there is no run yet."""
    return [json.loads(row["json"]) for row in _rows(path, "results")]


def spent(path: Path) -> int | None:
    """The tokens that a run with a total says it has spent; None where it says nothing."""
    return next((row["tokens"] for row in _rows(path, "spent")), None)


def described(path: Path) -> dict[str, Any]:
    """The description of a run."""
    (row,) = _rows(path, "description")
    return json.loads(row["json"])


def _rows(path: Path, table: str) -> list[dict[str, Any]]:
    if not path.exists() or is_blank(path):
        return []
    with Store(path, RUN) as store:
        return list(store.rows(table))


def as_folder(path: Path, folder: Path) -> Run:
    """Write a run as earlier versions did: a folder with two files."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(described(path)), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines(path))
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    return read_run(path)
