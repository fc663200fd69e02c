"""Replays a policy on recorded traces, on a virtual clock.

The policy object is the one that runs live; only what generates tokens is another. A machine with
`concurrency` slots is played: every trace takes one slot and, unless told otherwise, one unit of
time per token, so the time at the end is the critical path in tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf, isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Metric, group_confidences
from conviction.core import Answer, FinishReason, Tally, Trace
from conviction.errors import InvalidSettingError
from conviction.gate import Gate
from conviction.policies.base import (
    Action,
    Conditions,
    Continue,
    Done,
    Forget,
    PendingStarts,
    Policy,
    Standing,
    Start,
    Stop,
)

_NO_CONFIDENCES = np.empty(0, np.float32)

CONTINUES = "it continues traces, and a recording has no continuations"
"""Why some policies cannot be replayed."""
RUN_LIVE = "Run it live: `conviction think` or `conviction eval`."

_BLOCK = 128
_FEWEST_BLOCKS = 64
"""From how many blocks on it pays to look at blocks first."""


@dataclass(eq=False)
class PlayedTrace:
    """A complete trace as it was recorded, and what was measured of it so far.

    Attributes:
        tokens: Tokens that it generated.
        finish: `STOP` or `LENGTH`.
        answer: Its answer; equal keys are equal votes.
        correct: Whether that is right; False where there is no gold answer.
        confidences: Token confidences, shape (tokens,), NaN where unknown; None where all are, as
            in pools of answers alone.
        pace: Units of time that it takes per token.
        scores: Its confidence by metric and window, as far as it was measured.
    """

    tokens: int
    finish: FinishReason
    answer: Answer | None
    correct: bool = False
    confidences: NDArray[np.float32] | None = None
    pace: float = 1.0
    scores: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    _lows: dict[int, tuple[list[int], list[float]]] = field(
        default_factory=dict[int, tuple[list[int], list[float]]], init=False, repr=False
    )

    def stop_position(self, gate: Gate) -> int | None:
        """`Gate.stop_position`, in the time of a binary search.

        A gate fires at the first group below its threshold. That group is lower than all before
        it, and of such there are few; they are the same for every threshold.
        """
        if self.confidences is None:
            return None
        lows = self._lows.get(gate.window)
        if lows is None:
            lows = self._lows[gate.window] = _record_lows(self.confidences, gate.window)
            if lows[1]:
                # The lowest group of a trace is the last of them.
                self.scores[Metric.LOWEST_GROUP.value, gate.window] = lows[1][-1]
        positions, values = lows
        # The values fall, so their opposites rise.
        below = True
        first = bisect_left(values, below, key=lambda value: value < gate.threshold)
        return positions[first] if first < len(values) else None


def _record_lows(confidences: NDArray[np.float32], window: int) -> tuple[list[int], list[float]]:
    """Groups lower than all before them: the tokens at which they end, counted, and their means."""
    finite = np.isfinite(confidences)
    known = np.flatnonzero(finite) if not finite.all() else None
    size = confidences.size if known is None else known.size
    if size < window:
        return [], []
    groups = group_confidences(confidences, window)
    lows = _lows(groups)
    ends = lows + window - 1
    positions = (ends if known is None else known[ends]) + 1
    return positions.tolist(), groups[lows].tolist()


def _lows(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of values lower than all before them; the first is one."""
    blocks = values.size // _BLOCK
    if blocks >= _FEWEST_BLOCKS:
        # A running minimum is slow, so it is taken where there can be lows: in blocks whose least
        # value is lower than those of all blocks before.
        least = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).min(axis=1)
        lower = _falls(least)
        if 4 * lower.size < blocks:
            inside = (lower[:, np.newaxis] * _BLOCK + np.arange(_BLOCK)).ravel()
            among = np.concatenate((inside, np.arange(blocks * _BLOCK, values.size)))
            return among[_falls(values[among])]
    return _falls(values)


def _falls(values: NDArray[np.float64]) -> NDArray[np.int64]:
    lowest = np.minimum.accumulate(values)
    return np.concatenate(([0], np.flatnonzero(lowest[1:] < lowest[:-1]) + 1))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one replayed run.

    Attributes:
        tally: The votes; its leader is the verdict.
        correct: Whether the verdict is right.
        ended: Why the run ended: "budget", or the policy's word.
        tokens: All tokens generated, those of stopped and cancelled traces too.
        path: Units of time from the beginning to the verdict.
        started: Traces started.
        stopped: Of these, stopped by their gate.
        cancelled: Of these, cancelled when the run ended or by the policy.
    """

    tally: Tally
    correct: bool
    ended: str
    tokens: int
    path: float
    started: int
    stopped: int
    cancelled: int

    @property
    def empty(self) -> bool:
        """Whether no trace voted."""
        return self.tally.leader is None


class ReplayListener(Protocol):
    """Sees a replay happen, where its outcome is not enough."""

    def began(self, trace: int, at: float, gate: Gate | None) -> None:
        """A trace was started."""

    def ended(self, trace: Trace, standing: Standing) -> None:
        """A trace ended; `standing` is the vote after it."""


def replay(
    policy: Policy,
    traces: Sequence[PlayedTrace],
    *,
    concurrency: float = inf,
    top_k: int = 20,
    max_tokens: int = 1 << 20,
    watcher: ReplayListener | None = None,
) -> Outcome:
    """Replay a policy on the traces of one question, in the order given.

    The policy is a prototype and not changed; trace n of the run is traces[n]. At least one trace
    runs at once, or all (infinity). `top_k` and `max_tokens` are what the policy is told. A watcher
    is told of every trace, in order of time.

    Raises:
        InvalidSettingError: the policy starts more traces than there are, or none, or more than
            its budget; or it continues traces, which were not recorded.
    """
    if policy.needs_continuation:
        raise _refused(policy, CONTINUES, RUN_LIVE)
    playing = _Replay(policy.fresh(), traces, concurrency, top_k, max_tokens, watcher=watcher)
    return playing.run()


@dataclass(slots=True)
class _PlayedTraceRun:
    began: float
    length: int
    finish: FinishReason
    end: float


class _Replay:
    def __init__(
        self,
        policy: Policy,
        traces: Sequence[PlayedTrace],
        concurrency: float,
        top_k: int,
        max_tokens: int,
        *,
        watcher: ReplayListener | None,
    ) -> None:
        self._watcher = watcher
        self._policy = policy
        self._traces = traces
        self._concurrency = concurrency
        self._conditions = Conditions(
            int(concurrency) if isfinite(concurrency) else max(len(traces), 1), max_tokens, top_k
        )
        self._pending = PendingStarts(policy)
        self._running: dict[int, _PlayedTraceRun] = {}
        self._ends: list[tuple[float, int]] = []
        self._now = 0.0
        self._started = self._tokens = self._stopped = self._cancelled = 0
        self._ended: str | None = None

    def run(self) -> Outcome:
        """Run to the verdict."""
        self._act(self._policy.begin(self._conditions))
        self._fill()
        if not self._started:
            raise _refused(self._policy, "it started no trace", "Its begin() must return a Start.")
        while self._running and self._ended is None:
            end, trace = heappop(self._ends)
            running = self._running.get(trace)
            if running is None or end != running.end:
                continue  # It was cancelled meanwhile.
            self._now = end
            concluded = self._conclude(trace, running)
            self._act(self._policy.on_finished(concluded))
            if self._watcher is not None:
                self._watcher.ended(concluded, self._policy.standing())
            self._fill()
        self._leave()
        tally = self._policy.standing().tally
        return Outcome(
            tally=tally,
            correct=self._is_correct(tally),
            ended=self._ended or "budget",
            tokens=self._tokens,
            path=self._now,
            started=self._started,
            stopped=self._stopped,
            cancelled=self._cancelled,
        )

    def _leave(self) -> None:
        """End what the verdict needs no longer."""
        for trace, running in list(self._running.items()):
            running.length = self._tokens_so_far(trace, running)
            running.finish = FinishReason.CONSENSUS
            if self._watcher is not None:
                self._watcher.ended(self._conclude(trace, running), self._policy.standing())
            else:
                self._cancelled += 1
                self._tokens += running.length

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._add(action)
                case Stop(traces):
                    for trace in traces:
                        if trace in self._running:
                            self._cancel(trace)
                case Forget():
                    self._pending.clear()
                case Continue():
                    raise _refused(self._policy, CONTINUES, RUN_LIVE)
                case Done(reason):
                    self._ended = reason
                    self._pending.clear()
                    return

    def _add(self, start: Start) -> None:
        self._pending.add(start)
        if self._pending.asked > len(self._traces):
            raise _refused(
                self._policy,
                f"it starts {self._pending.asked} traces, and {len(self._traces)} were recorded",
                "Lower the budget, record more, or draw with replacement.",
            )

    def _fill(self) -> None:
        while self._pending and len(self._running) < self._concurrency:
            start, count = self._pending.take(self._concurrency - len(self._running))
            for _ in range(count):
                self._begin(start.gate)

    def _begin(self, gate: Gate | None) -> None:
        trace = self._started
        recorded = self._traces[trace]
        position = recorded.stop_position(gate) if gate else None
        length = recorded.tokens if position is None else position
        finish = recorded.finish if position is None else FinishReason.LOW_CONFIDENCE
        end = self._now + length * recorded.pace
        self._running[trace] = _PlayedTraceRun(self._now, length, finish, end)
        self._started += 1
        heappush(self._ends, (end, trace))
        if self._watcher is not None:
            self._watcher.began(trace, self._now, gate)

    def _cancel(self, trace: int) -> None:
        """Let it end now, as a cancelled trace that the policy still hears of."""
        running = self._running[trace]
        running.length = self._tokens_so_far(trace, running)
        running.finish, running.end = FinishReason.CANCELLED, self._now
        heappush(self._ends, (self._now, trace))

    def _tokens_so_far(self, trace: int, running: _PlayedTraceRun) -> int:
        pace = self._traces[trace].pace
        done = (self._now - running.began) / pace if pace else running.length
        # The clock is a sum of floats: a token that is due now has come.
        return min(int(done + 1e-9), running.length)

    def _conclude(self, trace: int, running: _PlayedTraceRun) -> Trace:
        del self._running[trace]
        recorded = self._traces[trace]
        finish, tokens = running.finish, running.length
        self._tokens += tokens
        whole = tokens == recorded.tokens and finish is recorded.finish
        self._stopped += finish is FinishReason.LOW_CONFIDENCE
        self._cancelled += finish in (FinishReason.CANCELLED, FinishReason.CONSENSUS)
        confidences = recorded.confidences
        if confidences is None:
            confidences = _NO_CONFIDENCES
        return Trace(
            id=trace,
            finish=finish,
            tokens=tokens,
            confidences=confidences if whole else confidences[:tokens],
            answer=recorded.answer if whole else None,
            started=running.began,
            ended=self._now,
            scores=recorded.scores if whole else {},
        )

    def _is_correct(self, tally: Tally) -> bool:
        """Whether a trace that voted for the leader is right, so that all of its class are."""
        leader = tally.leader
        return leader is not None and self._traces[leader.votes[0]].correct


def _refused(policy: Policy, found: str, remedy: str) -> InvalidSettingError:
    return InvalidSettingError(
        tried=f"replay the policy {policy.name!r}", found=found, remedy=remedy
    )
