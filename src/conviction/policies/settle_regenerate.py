"""Settling, and where the vote stays contested, asking which answer comes again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import ClassVar

from conviction.core import FinishReason, Tally, Trace, require, require_whole
from conviction.errors import InvalidSettingError
from conviction.policies.base import Action, Continue, Done, Forget, Standing, Stop
from conviction.policies.settle import Settle
from conviction.voting import lead_probability


@dataclass
class SettleRegenerate(Settle):
    """Settling that regenerates the ends of traces where the vote stays contested.

    It settles like `settle`, with as many traces fewer as it may regenerate. If the leader's lead
    is not safe then, traces that voted for the two front-runners are continued in turns, from most
    of their text on, and a vote weighs how often its answer came again: (again + 1) / (tried + 2).
    Other answers weigh like the front-runner that came again less often: none wins untried.

    It needs an engine that continues a given beginning, and recordings cannot replay it.

    Source: after prefix consistency, arXiv 2605.07654.

    Attributes:
        regenerate: Continuations, at least 1, and fewer than the budget that holds them, too.
        keep: Share of a trace that is kept, in (0, 1).
        safe: Probability of a safe lead from which on nothing is regenerated, in [0.5, 1].
    """

    name: ClassVar[str] = "settle-regenerate"
    needs_continuation: ClassVar[bool] = True

    regenerate: int = 4
    keep: float = 0.75
    safe: float = 0.95

    _answers: dict[int, str] = field(default_factory=dict[int, str], init=False, repr=False)
    _awaited: int = field(default=0, init=False, repr=False)
    _tried: Counter[str] = field(default_factory=Counter[str], init=False, repr=False)
    _again: Counter[str] = field(default_factory=Counter[str], init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("regenerate", self.regenerate, low=1)
        require("keep", self.keep, low=1e-9, high=1.0 - 1e-9)
        require("safe", self.safe, low=0.5, high=1.0)
        if self.regenerate >= self.budget:
            raise InvalidSettingError(
                tried=f"regenerate {self.regenerate} traces with a budget of {self.budget}",
                found="nothing is left for traces to begin with",
                remedy="Raise the budget, or regenerate fewer.",
            )

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        """Settle; or, when that is over, count what came again."""
        if trace.continues is not None:
            return self._compare(trace, trace.continues)
        if self._answers:
            # It ended while ends are regenerated: its vote counts, and nothing else follows.
            self._count(trace)
            return []
        actions = super().on_finished(trace)
        over = any(isinstance(action, Done) for action in actions) or not self._running
        return (over and self._contest()) or actions

    def standing(self) -> Standing:
        """The votes so far, weighed by how often their answers came again."""
        tally = self._ballot.tally()
        if not self._tried:
            return Standing(tally)
        rates = {key: self._rate(key) for key in self._answers.values()}
        least = min(rates.values())
        weighed = (
            replace(entry, weight=entry.count * rates.get(entry.key, least))
            for entry in tally.entries
        )
        # Sorting keeps the order of equals: the answer that was seen first.
        ranked = sorted(weighed, key=lambda entry: (entry.weight, entry.count), reverse=True)
        return Standing(Tally(tuple(ranked)), notes=(self._note(tally),))

    @property
    def need(self) -> int:
        """Votes, or continuations, that would settle it."""
        return self._awaited or super().need

    @property
    def _most(self) -> int:
        return self.budget - self.regenerate

    def _contest(self) -> Sequence[Action]:
        """Regenerate ends of what the two front-runners' traces wrote; nothing if one is safe."""
        front = self._ballot.tally().entries[:2]
        if len(front) < 2 or lead_probability(front[0].count, front[1].count) >= self.safe:
            return []
        self._answers = {vote: entry.key for entry in front for vote in entry.votes}
        self._awaited = self.regenerate
        votes = [cycle(entry.votes) for entry in front]
        chosen = (next(votes[number % 2]) for number in range(self.regenerate))
        running = tuple(range(self._started))
        return [Forget(), Stop(running), *(Continue(vote, self.keep) for vote in chosen)]

    def _compare(self, trace: Trace, source: int) -> Sequence[Action]:
        self._awaited -= 1
        if trace.complete:
            key = self._answers[source]
            self._tried[key] += 1
            came = trace.answer if trace.finish is FinishReason.STOP else None
            self._again[key] += came is not None and came.key == key
        return [] if self._awaited else [Done("contested")]

    def _rate(self, key: str) -> float:
        """How often an answer came again, as if two more had been tried and one had."""
        return (self._again[key] + 1) / (self._tried[key] + 2)

    def _note(self, tally: Tally) -> str:
        texts = {entry.key: entry.text for entry in tally.entries}
        found = ", ".join(
            f"{texts[key]} came again in {self._again[key]} of {tried}"
            for key, tried in self._tried.items()
        )
        return f"The vote was contested, so ends of traces were regenerated: {found}."
