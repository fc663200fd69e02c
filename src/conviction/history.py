"""Past verdicts, kept in one file: each with its traces and, for the page, all that happened."""

import json
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from conviction.database import is_unwritten
from conviction.errors import InvalidSettingError, RecordingError
from conviction.files import expanded
from conviction.store import Kind, Store, StoreWriter
from conviction.verdict import Verdict

MOST = 5_000
"""Verdicts that are kept; the oldest goes when another comes."""

HISTORY = Kind(
    "history",
    0x63760004,
    (
        """
        CREATE TABLE verdicts (id INTEGER PRIMARY KEY, asked REAL, origin TEXT, client TEXT,
            run TEXT, question TEXT, answer TEXT, share REAL, policy TEXT, engine TEXT, ended TEXT,
            traces INTEGER, tokens INTEGER, seconds REAL, checksum INTEGER);
        CREATE TABLE details (id INTEGER PRIMARY KEY, verdict BLOB, page BLOB, checksum INTEGER)
        """,
    ),
)
_PATIENCE = 15.0
"""Seconds to wait for another program that adds a verdict."""


@dataclass(frozen=True, slots=True)
class PastVerdict:
    """One entry of the history.

    Attributes:
        id: Its number, from 1; never given twice.
        asked: When it was asked, in seconds since 1970.
        origin: What asked, "think" or "serve".
        client: Name of the client's key at a server; "" without.
        run: Id of the run at a server; "" without.
        question: The user's words.
        answer: The answer; None without one.
        share: The leader's part of the vote, in [0, 1].
        policy: Name of the policy.
        engine: What generated the traces.
        ended: Why the run ended.
        traces: How many were started.
        tokens: Tokens that all of them generated.
        seconds: Wall time of the run.
    """

    id: int
    asked: float
    origin: str
    client: str
    run: str
    question: str
    answer: str | None
    share: float
    policy: str
    engine: str
    ended: str
    traces: int
    tokens: int
    seconds: float


def history_path() -> Path:
    """The file: $CONVICTION_HISTORY, or history.db in the user's folder for data."""
    named = os.environ.get("CONVICTION_HISTORY")
    return expanded(named) if named else user_data_path("conviction") / "history.db"


class History:
    """The verdicts in one file, which is opened for each call: programs may share it.

    Args:
        path: The file; made when the first verdict is added.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or history_path()

    def add(
        self,
        verdict: Verdict,
        *,
        question: str,
        origin: str = "think",
        client: str = "",
        run: str = "",
        page: bytes = b"",
    ) -> int:
        """Keep a verdict, in place of the oldest if there are too many.

        Args:
            verdict: What to keep; per-token confidences are left out.
            question: The user's own words.
            origin: What asked.
            client: Name of the client's key at a server.
            run: Id of the run at a server.
            page: What the page needs to play the run; see `conviction.server.page_file`.

        Returns:
            Its number.

        Raises:
            RecordingError: the file cannot be written, is damaged, or of a newer version.
        """
        whole = json.dumps({**verdict.to_dict(), "question": question}, default=str).encode()
        with self._writer() as store, store.transaction():
            number = store.insert(
                "verdicts",
                asked=time.time() - verdict.seconds,
                origin=origin,
                client=client,
                run=run,
                question=question,
                answer=verdict.answer,
                share=verdict.share,
                policy=str(verdict.policy["name"]),
                engine=verdict.engine,
                ended=verdict.ended,
                traces=len(verdict.traces),
                tokens=verdict.usage.generated,
                seconds=verdict.seconds,
            )
            store.insert(
                "details",
                id=number,
                verdict=zlib.compress(whole, 6),
                page=zlib.compress(page, 6) if page else None,
            )
            for table in ("verdicts", "details"):
                store.delete(table, "id <= ?", number - MOST)
        return number

    def entries(
        self, *, search: str = "", origin: str = "", most: int | None = None
    ) -> list[PastVerdict]:
        """Verdicts, the newest first.

        Args:
            search: Words that question or answer must hold, whatever their case.
            origin: What must have asked; "" for all.
            most: How many at most; None for all.

        Raises:
            RecordingError: the file cannot be read or is damaged.
        """
        if not self._kept:
            return []
        wanted = search.casefold()
        with Store(self.path, HISTORY) as store:
            found = [
                entry
                for entry in (PastVerdict(**row) for row in store.rows("verdicts"))
                if (not origin or entry.origin == origin)
                and wanted in f"{entry.question}\n{entry.answer or ''}".casefold()
            ]
        return found[::-1][:most]

    def verdict(self, number: int) -> dict[str, Any]:
        """A verdict as `Verdict.to_dict` gave it, with the question in the user's own words.

        Raises:
            InvalidSettingError: there is none of that number.
            RecordingError: the file cannot be read or is damaged.
        """
        return json.loads(self._unpacked(number, "verdict"))

    def page(self, number: int) -> bytes:
        """What the page needs to play the run; empty if it was not kept.

        Raises:
            InvalidSettingError: there is no verdict of that number.
            RecordingError: the file cannot be read or is damaged.
        """
        return self._unpacked(number, "page")

    def delete(self, numbers: Sequence[int]) -> int:
        """Delete verdicts; how many there were.

        Raises:
            RecordingError: the file cannot be written or is damaged.
        """
        if not self._kept or not numbers:
            return 0
        with self._writer() as store, store.transaction():
            found = 0
            for number in numbers:
                found += store.delete("verdicts", "id = ?", number)
                store.delete("details", "id = ?", number)
        return found

    def check(self) -> tuple[str, ...]:
        """Read everything; what is damaged.

        Raises:
            RecordingError: the file cannot be opened.
        """
        if not self._kept:
            return ()
        with Store(self.path, HISTORY) as store:
            return store.check()

    @property
    def _kept(self) -> bool:
        """Whether anything was ever kept."""
        return not is_unwritten(self.path, f"read the history {self.path}")

    def _writer(self) -> StoreWriter:
        # Questions are private; a failure is told when the file is opened.
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        return StoreWriter(self.path, HISTORY, patience=_PATIENCE)

    def _unpacked(self, number: int, column: str) -> bytes:
        if self._kept:
            with Store(self.path, HISTORY) as store:
                row = store.find("details", "id = ?", number)
                listed = row is None and any(one["id"] == number for one in store.rows("verdicts"))
            if row is not None:
                return zlib.decompress(row[column]) if row[column] else b""
            if listed:
                raise RecordingError(
                    tried=f"read verdict {number} of the history {self.path}",
                    found="it is listed, and a row of its table details is missing",
                    remedy="Restore the file from a copy.",
                )
        raise InvalidSettingError(
            tried=f"read verdict {number} of the history",
            found="there is none of that number",
            remedy="List them: conviction history.",
        )
