"""Reading a pool of recorded traces, a question at a time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from conviction.core import Sampling
from conviction.database import explained, is_database
from conviction.errors import InvalidSettingError, RecordingError
from conviction.files import expanded
from conviction.recordings.columns import Columns, Piece, Source
from conviction.recordings.file import RECORDING, stored_pieces
from conviction.recordings.folder import read_folder
from conviction.recordings.importing.reading import read_rows
from conviction.recordings.index import Index
from conviction.recordings.parquet import parquet_pieces
from conviction.recordings.schema import RecordedQuestion, unreadable
from conviction.store import Store

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class QuestionTraces(Columns):
    """All recorded traces of one question as columns, in order of their numbers.

    Attributes:
        question: The question.
        flat: Token confidences of all traces, one trace after another, float32, NaN where
            unknown, shape (tokens of all traces,); None in a pool without confidences.
        place: Where they were read, for errors.
    """

    question: RecordedQuestion
    flat: NDArray[np.float32] | None = field(repr=False)
    place: Path

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each trace begins in `flat`, and the end; shape (traces + 1,)."""
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(self.tokens)))

    @cached_property
    def confidences(self) -> tuple[NDArray[np.float32], ...] | None:
        """Token confidences of each trace, views into `flat`; None in a pool without."""
        if self.flat is None:
            return None
        return tuple(self.flat[begin:end] for begin, end in pairwise(self.offsets.tolist()))

    def require_confidences(self) -> tuple[NDArray[np.float32], ...]:
        """Token confidences of each trace, where something cannot do without.

        Raises:
            RecordingError: the pool has none, or all tokens of a complete trace lack theirs.
        """
        what = f"token confidences of question {self.question.id!r} in {self.place}"
        if self.confidences is None:
            raise unreadable(
                what,
                "the pool holds answers only",
                "Use a policy that needs no confidence, such as majority, or record the "
                "questions with an engine that gives log-probabilities.",
            )
        for number, values, complete in zip(
            self.ids.tolist(), self.confidences, self.complete.tolist(), strict=True
        ):
            if complete and values.size and not np.isfinite(values).any():
                raise unreadable(
                    what,
                    f"all {values.size} tokens of trace {number} have unknown confidence",
                    "Record it with an engine that gives log-probabilities, or use a policy that "
                    "needs no confidence, such as majority.",
                )
        return self.confidences


class Pool:
    """A pool of recorded traces.

    Opening reads what there is, not the confidences; these are read a question at a time. A pool
    that is being recorded can be read: it shows what was recorded when it was opened.

    Attributes:
        path: Its folder or file.
        meta: What all its traces share.
        questions: Its questions, in the order in which they were first recorded.
    """

    def __init__(self, path: Path, index: Index, sources: Sequence[Source]) -> None:
        if index.meta is None or not index.entries:
            remedy = "Record one: conviction record DATA -n 16 -o POOL."
            raise unreadable(f"the pool {path}", "it holds no recorded trace", remedy)
        self.path = path
        self.meta = index.meta
        self.questions = index.questions()
        self._sources = sources
        self._questions = {question.id: question for question in self.questions}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, answers: str = "math") -> Self:
        """Open a pool.

        Args:
            path: A file that was recorded into, a Parquet file, or a folder of an earlier version.
                Recorded answers, a log of Inspect or results of DeepConf are read into memory.
            answers: Kind of answer that finds and compares the answers of other programs' files.

        Raises:
            InvalidSettingError: there is nothing of that name.
            MissingExtraError: it is Parquet, and pyarrow is not installed.
            RecordingError: it holds no trace, or a file of it is damaged, of a newer version, or
                does not fit the others.
        """
        place = expanded(path)
        if not place.exists():
            raise InvalidSettingError(
                tried=f"read the pool {place}",
                found="there is nothing of that name",
                remedy="Name a pool, or record one: conviction record DATA -n 16 -o POOL.",
            )
        index = Index()
        return cls(place, index, _sources(place, index, answers))

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.meta.model

    @property
    def top_k(self) -> int:
        """Log-probabilities behind each confidence; 0 without confidences."""
        return self.meta.top_k

    @property
    def sampling(self) -> Sampling:
        """How tokens were drawn; the default one where `sampling_known` is False."""
        return self.meta.sampling or Sampling()

    @property
    def sampling_known(self) -> bool:
        """Whether the pool tells how tokens were drawn; imported ones may not."""
        return self.meta.sampling is not None

    @property
    def answers(self) -> str:
        """Name of the answer kind that found and compared the answers."""
        return self.meta.answers

    @property
    def has_confidences(self) -> bool:
        """Whether it holds token confidences."""
        return self.meta.top_k > 0

    def question(self, question_id: str) -> RecordedQuestion:
        """A question by its id.

        Raises:
            RecordingError: there is none.
        """
        if question_id not in self._questions:
            raise unreadable(
                f"question {question_id!r} of {self.path}",
                f"the pool holds {len(self.questions)} questions and none of that id",
                f"Its first is {self.questions[0].id!r}.",
            )
        return self._questions[question_id]

    def traces(self, question_id: str) -> QuestionTraces:
        """All traces of one question; nothing else is read.

        Raises:
            RecordingError: there is no such question, or its traces are damaged.
        """
        pieces, order = self._find(question_id)
        columns = Columns.joined([piece.columns for piece in pieces], order)
        flat = None
        if self.has_confidences:
            begins = np.empty_like(columns.tokens)
            begins[order] = np.cumsum(columns.tokens) - columns.tokens
            flat = np.empty(int(columns.tokens.sum()), np.float32)
            first = 0
            for piece in pieces:
                count = len(piece.columns)
                piece.fill(begins[first : first + count], flat)
                first += count
        question = self.question(question_id)
        return QuestionTraces(**vars(columns), question=question, flat=flat, place=self.path)

    def texts(self, question_id: str) -> tuple[str | None, ...]:
        """What each trace of one question wrote, in the order of `traces`; None if not kept.

        Raises:
            RecordingError: there is no such question, or its traces are damaged.
        """
        return self._ordered(question_id, lambda piece: piece.texts())

    def outline(self, question_id: str) -> Columns:
        """What `traces` tells of one question but the confidences, which are not read.

        Raises:
            RecordingError: there is no such question, or its traces are damaged.
        """
        pieces, order = self._find(question_id)
        return Columns.joined([piece.columns for piece in pieces], order)

    def logprobs(self, question_id: str) -> tuple[NDArray[np.float32] | None, ...]:
        """Log-probabilities of the tokens of each trace of one question, in the order of `traces`.

        Each has shape (tokens,), float32, natural log, NaN where unknown; None for a trace that
        was recorded without. Raw or after temperature like the confidences.

        Raises:
            RecordingError: there is no such question, or its traces are damaged.
        """
        return self._ordered(question_id, lambda piece: piece.logprobs())

    def check(self) -> tuple[str, ...]:
        """Read everything; what is damaged, one entry for each question or row of a table.

        Damage is found where there are checksums: in files that were recorded into, in exported
        ones, and in journals. Other programs' files, and those that earlier versions exported, have
        none: there, only what cannot be read is found.
        """
        problems: list[str] = []
        if is_database(self.path):
            with Store(self.path, RECORDING) as store:
                problems.extend(store.check())
        for question in self.questions:
            for read in (self.traces, self.texts, self.logprobs):
                try:
                    read(question.id)
                except RecordingError as error:
                    problems.append(error.problem)
        return tuple(dict.fromkeys(problems))

    def _ordered(
        self, question_id: str, read: Callable[[Piece], Sequence[_Value]]
    ) -> tuple[_Value, ...]:
        pieces, order = self._find(question_id)
        values = [value for piece in pieces for value in read(piece)]
        positions: list[int] = order.tolist()
        return tuple(values[i] for i in positions)

    def _find(self, question_id: str) -> tuple[list[Piece], NDArray[np.int64]]:
        """Where the traces lie, and what brings them into the order of their numbers."""
        self.question(question_id)
        pieces = [source[question_id] for source in self._sources if question_id in source]
        numbers = np.concatenate([piece.columns.ids for piece in pieces])
        return pieces, np.argsort(numbers, kind="stable")


def _sources(place: Path, index: Index, answers: str) -> Sequence[Source]:
    if place.is_dir():
        return read_folder(place, index)
    if is_database(place):
        with Store(place, RECORDING) as store:
            return [stored_pieces(store, index)]
    with explained(f"read the pool {place}", place), place.open("rb") as file:
        parquet = file.read(4) == b"PAR1"
    if parquet or place.suffix == ".parquet":
        return [parquet_pieces(place, index)]
    return [read_rows(place, index, answers)]
