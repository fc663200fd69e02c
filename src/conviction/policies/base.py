"""The contract of a policy: it decides which traces to start, stop and count.

A policy is pure: no I/O, no clock, no randomness. Given the same events in the same order it
takes the same actions, so one and the same object steers a live engine and a recording.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Self

from conviction.core import Tally, Trace, require, require_whole
from conviction.gate import Gate
from conviction.voting import Ballot

DEFAULT_BUDGET = 16
"""Traces per question unless told otherwise; what a small model on two cores does in seconds."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start further traces; those that the engine cannot run at once wait their turn.

    Attributes:
        count: How many, at least 1.
        gate: When to stop each of them early; None to let them run.
    """

    count: int
    gate: Gate | None = None

    def __post_init__(self) -> None:
        require_whole("count", self.count, low=1)


@dataclass(frozen=True, slots=True)
class Continue:
    """Start a trace with the beginning of one that is complete, to see where it goes from there.

    It has an id of its own and counts against the budget, but is not independent: `Trace.continues`
    names its source, and it may not vote. It runs without a gate.

    Attributes:
        trace: Id of the complete trace.
        keep: How much of its text to keep, by characters, in (0, 1); cut where a word ends.
    """

    trace: int
    keep: float = 0.75
    count: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require("keep", self.keep, low=1e-9, high=1.0 - 1e-9)


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel these traces; they end as `FinishReason.CANCELLED`.

    Traces that are not running, because they wait or have ended, are left alone.
    """

    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget the traces that wait: they count against the budget, but never begin."""


@dataclass(frozen=True, slots=True)
class Done:
    """The verdict is settled: cancel everything that runs or waits.

    Attributes:
        reason: One word for people, as in "consensus".
    """

    reason: str


Action = Start | Continue | Stop | Forget | Done


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a policy knows of the engine before it starts anything.

    Attributes:
        concurrency: Traces that run at once.
        max_tokens: The most tokens of one trace.
        top_k: Log-probabilities per token; 0 if there are none.
    """

    concurrency: int
    max_tokens: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the vote stands.

    Attributes:
        tally: The votes; if the run ended now, its leader would be the verdict.
        threshold: Group confidence below which traces are stopped or not counted.
        window: Tokens in a group.
        notes: What a reader should know before trusting the tally.
    """

    tally: Tally
    threshold: float | None = None
    window: int | None = None
    notes: tuple[str, ...] = ()


class Policy(ABC):
    """Steers the traces of one question.

    Subclasses are dataclasses: their arguments are the settings, their other fields the state
    of one run. A policy that a caller passes in is a prototype: every run gets a `fresh` copy.

    Trace ids count from 0 in order of starting, so the first `Start(n)` makes 0 … n - 1. Each
    started trace is reported finished exactly once, unless the policy forgot it, or was `Done`,
    before.
    """

    name: ClassVar[str]
    """Its name on the command line."""
    needs_confidence: ClassVar[bool] = False
    """Whether it needs log-probabilities."""
    needs_continuation: ClassVar[bool] = False
    """Whether it needs an engine that continues a given beginning."""

    budget: int
    """The most traces that it starts."""

    def fresh(self) -> Self:
        """A copy for one run."""
        return deepcopy(self)

    @abstractmethod
    def begin(self, conditions: Conditions) -> Sequence[Action]:
        """The first actions; at least one `Start`."""

    @abstractmethod
    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """The actions after a trace ended, whatever the reason."""

    @abstractmethod
    def standing(self) -> Standing:
        """Where the vote stands now."""

    @property
    def need(self) -> int | None:
        """The fewest further votes that would settle it, at least 1; None if it cannot tell.

        Where many questions share an engine, those that need the fewest go first.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """Name and settings, as plain JSON types; the name alone if it is no dataclass."""
        values: dict[str, Any] = {"name": self.name}
        for item in fields(self) if is_dataclass(self) else ():
            if item.init:
                values[item.name] = getattr(self, item.name)
        return values


@dataclass
class PlainVote(Policy):
    """What policies share that give the answer of each trace one vote.

    Attributes:
        budget: The most traces to start.
    """

    budget: int = DEFAULT_BUDGET
    _ballot: Ballot = field(default_factory=Ballot, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole("budget", self.budget, low=1)

    def standing(self) -> Standing:
        """The votes so far."""
        return Standing(self._ballot.tally())

    def _count(self, trace: Trace) -> None:
        """Cast the vote of a trace that ended, if it may vote."""
        if may_vote(trace) and trace.answer:
            self._ballot.cast(trace.id, trace.answer)


def may_vote(trace: Trace) -> bool:
    """Whether a trace votes by default: it ended itself, gave an answer, and is independent."""
    return trace.finish == "stop" and trace.answer is not None and trace.continues is None
