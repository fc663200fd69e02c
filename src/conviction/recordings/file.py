"""A pool as a store: one file, to which traces are added and from which a question is read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.database import is_unwritten
from conviction.errors import RecordingError
from conviction.files import expanded
from conviction.recordings.blobs import pack_floats, pack_text, unpack_floats, unpack_text
from conviction.recordings.columns import Columns, shared_answer
from conviction.recordings.index import Index
from conviction.recordings.schema import (
    PoolMeta,
    RecordedQuestion,
    RecordedTrace,
    check_row,
    decode_meta,
    encode_meta,
    unreadable,
)
from conviction.store import Kind, Store, StoreWriter

RECORDING = Kind(
    "recording",
    0x63767243,
    (
        """
        CREATE TABLE questions (
            id INTEGER PRIMARY KEY, name TEXT, question TEXT, gold TEXT, prompt_hash TEXT,
            checksum INTEGER
        );
        CREATE TABLE traces (
            id INTEGER PRIMARY KEY, question INTEGER REFERENCES questions, number INTEGER,
            seed INTEGER, tokens INTEGER, prompt_tokens INTEGER, lost_tokens INTEGER,
            started REAL, ended REAL, finish TEXT, has_text INTEGER, has_logprobs INTEGER,
            checksum INTEGER, correct INTEGER, answer TEXT, answer_key TEXT
        );
        CREATE TABLE confidences (id INTEGER PRIMARY KEY, data BLOB, checksum INTEGER);
        CREATE TABLE logprobs (id INTEGER PRIMARY KEY, data BLOB, checksum INTEGER);
        CREATE TABLE texts (
            id INTEGER PRIMARY KEY, data BLOB, checksum INTEGER, dictionary INTEGER
        );
        """,
    ),
)
"""Confidences, log-probabilities and texts have the id of their trace. `answer_key` is null where
it equals the answer; `dictionary` is the trace whose text packs this one, besides its question."""

_PLAIN = ("number", "seed", "tokens", "prompt_tokens", "lost_tokens", "correct")
"""Columns of `traces` that are as in a row."""

_MOST_PACKING = 256
"""Questions of which a text is kept in memory, to pack the next ones with."""


def stored_pieces(store: Store, index: Index) -> dict[str, "StoredPiece"]:
    """The traces of a store at this moment; no connection is kept, `index` takes note of them."""
    path, identity = store.path, store.identity
    if (meta := _meta(store)) is not None:
        index.use_meta(meta, str(path))
    questions = {
        row["id"]: RecordedQuestion(
            row["name"], row["question"], row["gold"], row["prompt_hash"], 0
        )
        for row in store.rows("questions")
    }
    columns: dict[int, list[tuple[Any, ...]]] = {}
    places: dict[int, list[tuple[int, bool, bool]]] = {}
    finishes = {str(one): one for one in FinishReason}
    for row in store.rows("traces"):
        if row["finish"] not in finishes:
            what = f"trace {row['id']} of {path}"
            raise unreadable(what, f"it ended by {row['finish']!r}", "Upgrade conviction.")
        number, seed, finish = row["number"], row["seed"], finishes[row["finish"]]
        answer = shared_answer(row["answer"], row["answer_key"])
        question, place = questions[row["question"]], f"trace {row['id']} of {path}"
        index.add(question, number, seed, finish, answer, place=place)
        columns.setdefault(row["question"], []).append(
            (
                *(number, seed, row["tokens"], row["prompt_tokens"], row["lost_tokens"]),
                *(row["started"], row["ended"], bool(row["correct"]), finish, answer),
            )
        )
        kept = row["id"], row["has_text"], row["has_logprobs"]
        places.setdefault(row["question"], []).append(kept)
    return {
        questions[key].id: StoredPiece(
            path, identity, questions[key].text, Columns.of(rows), places[key]
        )
        for key, rows in columns.items()
    }


@dataclass(frozen=True, eq=False)
class StoredPiece:
    """The traces of one question in a store, with what is not in memory read at each call.

    Attributes:
        places: The id of each row, whether its text is kept, and whether its log-probabilities are.
    """

    path: Path
    identity: str
    question: str
    columns: Columns
    places: list[tuple[int, bool, bool]]

    def fill(self, begins: NDArray[np.int64], flat: NDArray[np.float32]) -> None:
        """Read the confidences; `begins` says where those of each trace begin in `flat`."""
        ends = begins + self.columns.tokens
        with self._opened() as store:
            rows = zip(self.places, begins.tolist(), ends.tolist(), strict=True)
            for (row, *_), begin, end in rows:
                self._unpack(store, "confidences", row, flat[begin:end])

    def logprobs(self) -> list[NDArray[np.float32] | None]:
        """The log-probabilities of each trace; None for one without."""
        values: list[NDArray[np.float32] | None] = []
        with self._opened() as store:
            sizes = self.columns.tokens.tolist()
            for (row, _, there), size in zip(self.places, sizes, strict=True):
                into = np.empty(size, np.float32) if there else None
                if into is not None:
                    self._unpack(store, "logprobs", row, into)
                values.append(into)
        return values

    def texts(self) -> list[str | None]:
        """What each trace wrote; None where that was not kept."""
        with self._opened() as store:
            dictionaries: dict[int | None, str] = {None: self.question}

            def read(trace: int) -> str:
                row = store.one("texts", "id = ?", trace)
                if (name := row["dictionary"]) not in dictionaries:
                    dictionaries[name] = self.question + read(name)
                return unpack_text(row["data"], dictionaries[name])

            try:
                return [read(row) if there else None for row, there, _ in self.places]
            except ValueError as error:
                raise self._damaged(f"a text cannot be unpacked ({error})") from None

    def _unpack(self, store: Store, table: str, row: int, into: NDArray[np.float32]) -> None:
        try:
            unpack_floats(store.one(table, "id = ?", row)["data"], into)
        except ValueError as error:
            raise self._damaged(f"row {row} of table {table} holds {error}") from None

    def _opened(self) -> Store:
        store = Store(self.path, RECORDING)
        if store.identity != self.identity:
            store.close()
            raise self._damaged("it was replaced by another pool since it was opened")
        return store

    def _damaged(self, found: str) -> RecordingError:
        return unreadable(f"the recording {self.path}", found)


class PoolWriter:
    """Appends traces to a pool; one writer at a time.

    Opening continues where any earlier writer ended, also one that was killed or that lost its
    power. Used by one thread at a time.

    Attributes:
        path: The pool's file; made if need be.
        meta: What all its traces share.

    Raises:
        RecordingError: another program writes to it, it is damaged, it holds traces of another
            model, k, kind of answer or sampling, it is no such file, or the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], meta: PoolMeta) -> None:
        self.path = expanded(path)
        self.meta = meta
        _refuse_older(self.path)
        self._store = StoreWriter(self.path, RECORDING)
        try:
            self._index = Index()
            stored_pieces(self._store, self._index)
            if self._index.meta is None:
                with self._store.transaction():
                    self._store.insert("about", name="meta", value=encode_meta(meta).decode())
            self._index.use_meta(meta, str(self.path))
            self._questions = {row["name"]: row["id"] for row in self._store.rows("questions")}
        except BaseException:
            self._store.close()
            raise
        self._packing: dict[str, tuple[int, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def numbers(self, question_id: str) -> frozenset[int]:
        """Numbers of the recorded traces of a question."""
        entry = self._index.entries.get(question_id)
        return frozenset(entry.numbers) if entry else frozenset()

    def seeds(self, question_id: str) -> frozenset[int]:
        """Seeds of the recorded traces of a question."""
        entry = self._index.entries.get(question_id)
        return frozenset(entry.seeds) if entry else frozenset()

    def answers(self, question_id: str) -> Mapping[str, str]:
        """The key of each distinct recorded answer to a question, in order of recording."""
        return self._index.answers(question_id)

    def check_question(self, question_id: str, prompt_hash: str, gold: str | None) -> None:
        """Check that traces of a question may be appended to those that are there.

        Raises:
            RecordingError: the pool holds another question, prompt or gold answer of this id.
        """
        self._index.check_question(question_id, prompt_hash, gold, str(self.path))

    def append(self, *traces: RecordedTrace) -> None:
        """Record traces: all of them, durably, or after an error none.

        Raises:
            RecordingError: one is there already, does not fit the pool, or the disk refuses.
        """
        seen: set[tuple[str, int]] = set()
        for row in traces:
            check_row(row, self.meta)
            self.check_question(row.question_id, row.prompt_hash, row.gold)
            key = (row.question_id, row.number)
            if key in seen or row.number in self.numbers(row.question_id):
                raise RecordingError(
                    tried=f"record {row.label} in {self.path}",
                    found="it is there already",
                    remedy="Give the trace a number of its own.",
                )
            seen.add(key)
        if not traces:
            return
        questions = dict(self._questions)
        try:
            with self._store.transaction():
                for row in traces:
                    self._insert(row, questions)
        except BaseException:
            self._packing.clear()
            raise
        self._questions = questions
        for row in traces:
            self._index.add_row(row, str(self.path))

    def close(self) -> None:
        """Give the pool back; everything appended is safe already."""
        self._store.close()

    def _insert(self, row: RecordedTrace, questions: dict[str, int]) -> None:
        insert = self._store.insert
        if row.question_id not in questions:
            questions[row.question_id] = insert(
                "questions",
                name=row.question_id,
                question=row.question,
                gold=row.gold,
                prompt_hash=row.prompt_hash,
            )
        answer, key = (row.answer.text, row.answer.key) if row.answer else (None, None)
        number = insert(
            "traces",
            **{name: getattr(row, name) for name in _PLAIN},
            question=questions[row.question_id],
            started=float(row.started),
            ended=float(row.ended),
            finish=str(row.finish),
            has_text=row.text is not None,
            has_logprobs=row.logprobs is not None,
            answer=answer,
            answer_key=None if key == answer else key,
        )
        if row.confidences is not None:
            insert("confidences", id=number, data=pack_floats(row.confidences))
        if row.logprobs is not None:
            insert("logprobs", id=number, data=pack_floats(row.logprobs))
        if row.text is not None:
            self._insert_text(row, row.text, number)

    def _insert_text(self, row: RecordedTrace, text: str, number: int) -> None:
        dictionary, words = self._packing.get(row.question_id, (None, row.question))
        data = pack_text(text, words)
        self._store.insert("texts", id=number, data=data, dictionary=dictionary)
        if dictionary is None:
            if len(self._packing) > _MOST_PACKING:
                self._packing.clear()
            self._packing[row.question_id] = number, row.question + text


def read_meta(path: Path) -> PoolMeta | None:
    """The facts of a pool that may be recorded into; None if there is none yet.

    Raises:
        RecordingError: what is there cannot be recorded into.
    """
    _refuse_older(path)
    if is_unwritten(path, f"read the recording {path}"):
        return None
    with Store(path, RECORDING) as store:
        return _meta(store)


def _meta(store: Store) -> PoolMeta | None:
    # All of them, so that a lost row is noticed.
    about = {row["name"]: row["value"] for row in store.rows("about")}
    return decode_meta(about["meta"].encode(), str(store.path)) if "meta" in about else None


def _refuse_older(path: Path) -> None:
    """Refuse what earlier versions made, and how pools are passed on."""
    if path.is_dir():
        found = "it is a folder, and pools that can be added to are files now"
    elif path.is_file() and path.suffix == ".parquet":
        found = "it is a Parquet file, which cannot be added to"
    else:
        return
    raise RecordingError(
        tried=f"record into {path}",
        found=found,
        remedy=f"Bring its traces into a new file: conviction record --import {path} -o "
        f"{path.with_suffix('.db')}; or name another file.",
    )
