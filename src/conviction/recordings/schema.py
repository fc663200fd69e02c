"""What a pool holds: one row per trace, and the facts that all its traces share."""

from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason, Question, Sampling
from conviction.errors import RecordingError, UsageError

SCHEMA_VERSION = 1
"""Raised whenever a column changes its meaning; readers refuse versions above their own."""

COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)
"""How a trace ends that ran to its own end or to its token limit."""


@dataclass(frozen=True, slots=True)
class PoolMeta:
    """What all traces of a pool share; traces that differ in it belong into another pool.

    Attributes:
        model: Name of the model.
        top_k: Log-probabilities behind each token confidence (k of eq. 2); 0 for a pool of answers
            without confidences.
        answers: Name of the answer kind that found and compared the answers.
        sampling: How tokens were drawn; None where an imported file does not say.
        source: Where the traces come from, for people; may differ within a pool.
    """

    model: str
    top_k: int
    answers: str
    sampling: Sampling | None = None
    source: str = ""

    @property
    def sampling_json(self) -> str | None:
        """The sampling as JSON."""
        return msgspec.json.encode(self.sampling).decode() if self.sampling else None

    def differences(self, other: "PoolMeta") -> str:
        """In which facts this and another differ, for an error; empty if in none."""
        pairs = (
            ("model", self.model, other.model),
            ("k", self.top_k, other.top_k),
            ("kind of answer", self.answers, other.answers),
            ("sampling", self.sampling_json, other.sampling_json),
        )
        return "; ".join(f"{name} {a} against {b}" for name, a, b in pairs if a != b)


@dataclass(frozen=True, eq=False)
class RecordedTrace:
    """One trace to record.

    Attributes:
        question_id: The question's id; with `number` the key of the row.
        number: Number of the trace within its question, from 0.
        prompt_hash: Hash of what the model was asked, see `prompt_hash`.
        question: The question's words.
        gold: The right answer; None where unknown.
        seed: Seed the engine was given.
        text: What the model wrote; None if texts are not kept.
        answer: The answer found; equal keys mean the same vote within the question.
        correct: Whether the answer equals the gold answer; None where there is none.
        finish: Why it ended.
        tokens: Tokens generated.
        prompt_tokens: Tokens of the prompt.
        lost_tokens: Tokens of attempts that broke off before.
        confidences: Token confidences, float32, shape (tokens,), NaN where unknown; None in a pool
            without confidences.
        logprobs: Log-probabilities of the tokens, natural log, at most 0, float32, shape
            (tokens,), NaN where unknown; None where they were not recorded, which may differ
            within a pool. Raw or after temperature like the confidences.
        started: Seconds after the run of its question began.
        ended: Seconds after the run of its question began.
    """

    question_id: str
    number: int
    prompt_hash: str
    question: str
    finish: FinishReason
    tokens: int
    gold: str | None = None
    seed: int = 0
    text: str | None = None
    answer: Answer | None = None
    correct: bool | None = None
    prompt_tokens: int = 0
    lost_tokens: int = 0
    confidences: NDArray[np.float32] | None = field(default=None, repr=False)
    logprobs: NDArray[np.float32] | None = field(default=None, repr=False)
    started: float = 0.0
    ended: float = 0.0

    @property
    def label(self) -> str:
        """The row's key, for messages."""
        return f"trace {self.number} of question {self.question_id!r}"


@dataclass(frozen=True, slots=True)
class RecordedQuestion:
    """A question of a pool.

    Attributes:
        id: Its id, unique within the pool.
        text: Its words; empty where an imported file does not say.
        gold: The right answer; None where unknown.
        prompt_hash: Hash of what the model was asked.
        traces: How many traces of it are recorded.
        complete: How many of these ran to their own end or to their token limit.
    """

    id: str
    text: str
    gold: str | None
    prompt_hash: str
    traces: int
    complete: int = 0


def unreadable(
    what: str, found: str, remedy: str = "Restore the file from a copy, or record again."
) -> RecordingError:
    """The error for something recorded that cannot be read; `what` as in "row 3 of FILE"."""
    return RecordingError(tried=f"read {what}", found=found, remedy=remedy)


class _Header(msgspec.Struct):
    schema_version: int
    meta: PoolMeta


def encode_meta(meta: PoolMeta) -> bytes:
    """A pool's facts and the schema's version as JSON."""
    return msgspec.json.encode(_Header(SCHEMA_VERSION, meta))


def decode_meta(data: bytes, place: str) -> PoolMeta:
    """What `encode_meta` was given; `place` is where it was read, for errors.

    Raises:
        RecordingError: it comes from a newer version, or is not what it should be.
    """
    what = f"the recording {place}"
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("schema_version")
        number = msgspec.json.decode(version, type=int) if version else 0
        if number > SCHEMA_VERSION:
            found = f"its schema has version {number}, and this program knows {SCHEMA_VERSION}"
            raise unreadable(what, found, "Upgrade conviction.")
        return msgspec.json.decode(data, type=_Header).meta
    except (msgspec.DecodeError, UnicodeError, RecursionError, UsageError) as error:
        remedy = "Name a pool that `conviction record` made."
        raise unreadable(what, f"its description is unreadable ({error})", remedy) from None


def prompt_hash(question: Question) -> str:
    """A hash of all messages of a question, 16 hexadecimal digits."""
    messages = [[message.role, message.content] for message in question.messages]
    return sha256(msgspec.json.encode(messages)).hexdigest()[:16]


def check_row(row: RecordedTrace, meta: PoolMeta) -> None:
    """Check that a row may be recorded in a pool.

    Raises:
        RecordingError: naming the row and what is wrong with it.
    """
    if row.gold is not None and row.correct is None:
        raise RecordingError(
            tried=f"record {row.label}",
            found="it does not tell whether it is right, and its question has a right answer",
            remedy="Give `correct`, or leave out the right answer.",
        )
    found = ""
    if row.number < 0 or row.tokens < 0:
        found = "its number or its count of tokens is negative"
    elif (row.confidences is None) != (meta.top_k == 0):
        has = "none" if row.confidences is None else "some"
        found = f"it has {has}, and the pool's k is {meta.top_k}"
    elif row.confidences is not None:
        found = _wrong_values(row, row.confidences, "negative")
    if found:
        raise RecordingError(
            tried=f"record {row.label} with its confidences",
            found=found,
            remedy="Give one confidence per token, at least 0, and NaN where it is unknown.",
        )
    if row.logprobs is not None and (found := _wrong_values(row, row.logprobs, "positive")):
        raise RecordingError(
            tried=f"record {row.label} with its log-probabilities",
            found=found,
            remedy="Give one log-probability per token, at most 0, and NaN where it is unknown; "
            "or none at all.",
        )


def _wrong_values(row: RecordedTrace, values: NDArray[np.float32], refused: str) -> str:
    """What is wrong with values per token, of which those of a sign are refused; or nothing."""
    if values.dtype != np.float32 or values.shape != (row.tokens,):
        return (
            f"they have shape {values.shape} and type {values.dtype}, not ({row.tokens},) and "
            "float32"
        )
    if not in_range(values if refused == "negative" else -values):
        return f"they hold infinite or {refused} values"
    return ""


def in_range(values: NDArray[np.float32]) -> bool:
    """Whether these may be token confidences: unknown, or finite and at least 0."""
    if not values.size:
        return True
    # Reductions that pass over NaN, so that nothing as large as the values is allocated.
    least, most = np.fmin.reduce(values), np.fmax.reduce(values)
    return bool(np.isnan(least) or (least >= 0 and np.isfinite(most)))
