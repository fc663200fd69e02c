"""The nouns of conviction: small, frozen, and free of everything else.

A *question* is asked; an engine generates *traces* of tokens under a *sampling*; each trace
may hold an *answer*; the *tally* of the votes decides.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from math import isfinite
from numbers import Integral, Real
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from conviction.errors import InvalidSettingError


class FinishReason(StrEnum):
    """Why a trace ended. Only `STOP` may vote, unless a policy says otherwise."""

    STOP = "stop"
    """The model ended the trace itself."""
    LENGTH = "length"
    """The trace reached the most tokens it was allowed."""
    LOW_CONFIDENCE = "low_confidence"
    """Its group confidence fell below the threshold of its gate."""
    CONSENSUS = "consensus"
    """The verdict was settled while it was still running."""
    CANCELLED = "cancelled"
    """The run ended for another reason: interrupted, out of time, or stopped by its policy."""
    ERROR = "error"
    """The engine failed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a chat that ends with the user's words, and an id to name it by.

    A `templated` question is one message that has the model's template around it already.
    """

    messages: tuple[Message, ...]
    id: str = ""
    templated: bool = False

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidSettingError(
                tried="make a question", found="it has no messages", remedy="Give at least one."
            )

    @classmethod
    def ask(cls, text: str, *, id: str = "") -> Self:  # noqa: A002  # the field's name
        """A question of a single user message."""
        return cls((Message("user", text),), id or sha256(text.encode()).hexdigest()[:16])

    @property
    def text(self) -> str:
        """The last message: what the user wants to know."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws tokens. None leaves a filter off.

    Attributes:
        temperature: 0 (greedy) or more.
        top_p: Nucleus mass in (0, 1].
        top_k: Tokens kept before the nucleus, at least 1.
        min_p: Least probability relative to the likeliest token, in [0, 1].
        max_tokens: The most tokens that one trace may generate, at least 1.

    Raises:
        InvalidSettingError: a value lies outside its range.
    """

    temperature: float = 0.7
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        require("temperature", self.temperature, low=0.0)
        require_whole("max_tokens", self.max_tokens, low=1)
        if self.top_p is not None:
            require("top_p", self.top_p, low=1e-6, high=1.0)
        if self.top_k is not None:
            require_whole("top_k", self.top_k, low=1)
        if self.min_p is not None:
            require("min_p", self.min_p, low=0.0, high=1.0)


def require(name: str, value: float, *, low: float, high: float | None = None) -> None:
    """Raise an InvalidSettingError unless a setting is a finite number in [low, high]."""
    number = isinstance(value, Real)
    if number and isfinite(value) and value >= low and (high is None or value <= high):
        return
    span = f"at least {low:g}" if high is None else f"between {low:.12g} and {high:.12g}"
    raise _refused(name, value, span if number else f"a number, {span}")


GREATEST_WHOLE = 2**53
"""Up to it, floats hold every whole number, and it fits an index."""


def require_whole(name: str, value: float, *, low: int) -> None:
    """Raise an InvalidSettingError unless a setting is whole, from `low` to `GREATEST_WHOLE`."""
    require(name, value, low=low)
    if not isinstance(value, Integral):
        raise _refused(name, value, f"a whole number, at least {low}")
    if value > GREATEST_WHOLE:
        raise _refused(name, value, f"at most {GREATEST_WHOLE}")


def _refused(name: str, value: object, wanted: str) -> InvalidSettingError:
    return InvalidSettingError(
        tried=f"use {name} = {value!r}",
        found=f"{name} must be {wanted}",
        remedy="Change it and retry.",
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as its kind shows it, and the key of its class: equal keys are equal votes.

    `written` is what the trace wrote, where that is more: "B) Mars" for "B". Else it is empty.
    """

    text: str
    key: str
    written: str = field(default="", compare=False)


@dataclass(frozen=True, eq=False)
class Trace:
    """One finished line of reasoning.

    Attributes:
        id: Number in order of starting, from 0; unique within a run.
        text: Everything it wrote, as far as it got.
        tokens: Tokens that were generated, also if it was stopped, cancelled or failed.
        confidences: Token confidence C_i (eq. 2) of each token, float32, shape (tokens,), NaN
            where the engine gave none.
        answer: The answer found in the text; None without one.
        cached_tokens: Those of its `prompt_tokens` that the engine did not compute again.
        started: Seconds after the run began; so is `ended`.
        error: What the engine reported, for traces that failed.
        restarts: How often it broke off and was started again.
        lost_tokens: Tokens generated by the attempts that broke off; not among `tokens`.
        scores: Its confidence by metric and window, as far as it was measured.
        logprobs: Log-probability of each token, natural log, float32, shape (tokens,), NaN where
            unknown; None where they were not wanted or none came.
        continues: The trace whose beginning it was given, so that it is not independent and must
            not vote; its text holds that beginning, its tokens do not. None for others.
    """

    id: int
    finish: FinishReason
    tokens: int
    text: str = ""
    confidences: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, np.float32), repr=False
    )
    answer: Answer | None = None
    seed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    started: float = 0.0
    ended: float = 0.0
    error: str = ""
    restarts: int = 0
    lost_tokens: int = 0
    scores: dict[tuple[str, int], float] = field(
        default_factory=dict[tuple[str, int], float], repr=False
    )
    logprobs: NDArray[np.float32] | None = field(default=None, repr=False)
    continues: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the trace ran to its own end or to its token limit."""
        return self.finish in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class TallyEntry:
    """The votes for one class of equal answers, which share a key.

    Attributes:
        text: The answer as the first trace of the class wrote it.
        weight: Sum of the weights of its votes.
        votes: Ids of the traces that voted for it, in order of voting.
    """

    text: str
    key: str
    weight: float
    votes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of traces that voted for it."""
        return len(self.votes)


@dataclass(frozen=True, slots=True)
class Tally:
    """All votes, the leading answer first.

    Ties of weight are broken by the number of votes, then for the answer that was seen first;
    `tied` names the answers that shared the greatest weight.
    """

    entries: tuple[TallyEntry, ...] = ()

    @property
    def leader(self) -> TallyEntry | None:
        """The answer with the greatest weight."""
        return self.entries[0] if self.entries else None

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return sum(entry.weight for entry in self.entries)

    @property
    def share(self) -> float:
        """The leader's part of all weight (beta of Algorithm 2), in [0, 1]; 0 without votes."""
        return self.entries[0].weight / self.total if self.total > 0 else 0.0

    @property
    def voters(self) -> frozenset[int]:
        """Ids of all traces that voted."""
        return frozenset(trace for entry in self.entries for trace in entry.votes)

    @property
    def tied(self) -> tuple[str, ...]:
        """Texts of the answers that share the greatest weight; empty if there is only one."""
        best = [e.text for e in self.entries if e.weight == self.entries[0].weight]
        return tuple(best) if len(best) > 1 else ()
