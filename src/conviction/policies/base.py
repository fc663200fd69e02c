"""The contract of a policy: it decides which traces to start, stop and count.

A policy is pure: no I/O, no clock, no randomness. Given the same events in the same order it
takes the same actions, so one and the same object steers a live engine and a recording.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Self

from conviction.core import Answer, Tally, Trace, require, require_whole
from conviction.errors import InvalidSettingError
from conviction.gate import Gate
from conviction.voting import Ballot

DEFAULT_BUDGET = 16
"""Traces per question unless told otherwise; what a small model on two cores does in seconds."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start further traces; those that the engine cannot run at once wait.

    Attributes:
        count: How many, a whole number of at least 1.
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
    gate: ClassVar[Gate | None] = None

    def __post_init__(self) -> None:
        require("keep", self.keep, low=1e-9, high=1.0 - 1e-9)


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel those of these traces that run; they end as `FinishReason.CANCELLED`."""

    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget the traces that wait: they count against the budget, but never begin."""


@dataclass(frozen=True, slots=True)
class Done:
    """The verdict is settled: cancel all that runs or waits; `reason` is a word for people."""

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


class PendingStarts:
    """Traces that a policy asked for and that have not begun, in order.

    They wait as the actions that asked for them: a large budget costs no memory.
    """

    def __init__(self, policy: "Policy") -> None:
        self.asked = 0
        """Traces asked for so far, begun ones included."""
        self._policy = policy
        self._actions: deque[Start | Continue] = deque()
        self._waiting = 0
        self._taken = 0
        """Traces of the first action that have begun."""

    def __len__(self) -> int:
        return self._waiting

    def add(self, action: Start | Continue) -> None:
        """Let more traces wait.

        Raises:
            InvalidSettingError: the policy exceeds its own budget.
        """
        self.asked += action.count
        if self.asked > self._policy.budget:
            raise InvalidSettingError(
                tried=f"start {self.asked} traces for the policy {self._policy.name!r}",
                found=f"that exceeds its own budget of {self._policy.budget}",
                remedy="Correct the policy, or raise its budget.",
            )
        self._actions.append(action)
        self._waiting += action.count

    def take(self, most: float = 1) -> tuple[Start | Continue, int]:
        """Take out up to `most` traces of the first action, and say how many; one must wait."""
        action = self._actions[0]
        left = action.count - self._taken
        count = int(min(left, most))
        self._taken += count
        if count == left:
            self._actions.popleft()
            self._taken = 0
        self._waiting -= count
        return action, count

    def clear(self) -> None:
        """Forget those that wait."""
        self._actions.clear()
        self._waiting = self._taken = 0


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

        Where the questions of a batch share an engine, those that need the fewest go first.
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
        if answer := vote_of(trace):
            self._ballot.cast(trace.id, answer)


def vote_of(trace: Trace) -> Answer | None:
    """The answer that a trace votes for by default; None if it does not vote.

    Traces vote that ended themselves, gave an answer, and are independent of others.
    """
    return trace.answer if trace.finish == "stop" and trace.continues is None else None
