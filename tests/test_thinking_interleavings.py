"""The driver under every interleaving that the scripted engine can produce.

A turnstile holds every trace before each of its chunks, and every answer before it is
classified, and hypothesis chooses who goes next. What must hold is checked after each run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil, nan
from typing import Any
from unittest.mock import patch

import anyio
import anyio.lowlevel
import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conviction.answers import AnswerKind, reading
from conviction.confidence import Metric
from conviction.core import FinishReason, Question, Sampling, Tally, Trace
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import AllTracesFailedError, StreamError
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceRestarted,
    TraceStarted,
)
from conviction.gate import Gate
from conviction.policies import (
    Action,
    Conditions,
    DeepConfOffline,
    DeepConfOnline,
    Done,
    Majority,
    Policy,
    Start,
    Stop,
)
from conviction.policies.settle import SettleConfident
from conviction.thinking import RESTARTS, deliberate
from conviction.verdict import Verdict

LIMIT = 20_000
"""Turns of the event loop after which a run counts as hung."""


class LastWord(AnswerKind):
    """The answer is what follows the last equals sign."""

    name = "last word"

    def extract(self, text: str) -> str | None:
        return text.rpartition("=")[2].strip() or None if "=" in text else None

    def canonical(self, answer: str) -> str:
        return answer.lower()


@dataclass
class Chaos(Majority):
    """Starts, stops and ends as it was told to, whatever happens."""

    plan: list[list[Action]] = field(default_factory=list)
    first: Start = field(default_factory=lambda: Start(1))
    _step: int = field(default=0, init=False)

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        del conditions
        return [self.first]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        super().on_finished(trace)
        self._step += 1
        return self.plan[self._step - 1] if self._step <= len(self.plan) else []


class Turnstile:
    """Lets one of those who wait pass at a time."""

    def __init__(self, choices: Sequence[int], happenings: dict[int, Callable[[], Any]]) -> None:
        self._choices = iter(choices)
        self._happenings = happenings
        self._waiting: list[anyio.Event] = []
        self.most_running = 0
        self.engine: ScriptedEngine | None = None

    async def wait(self, *_: object) -> None:
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    async def read(self, kind: AnswerKind, work: Callable[..., Any], *arguments: Any) -> Any:
        """Stands in for a thread that reads answers."""
        del kind
        await self.wait()
        return work(*arguments)

    async def conduct(self) -> None:
        for step in range(LIMIT):
            for _ in range(next(self._choices, 0) % 7 + 1):
                await anyio.lowlevel.checkpoint()
            if self.engine is not None:
                self.most_running = max(self.most_running, self.engine.running)
            self._happenings.get(step, lambda: None)()
            if self._waiting:
                self._waiting.pop(next(self._choices, 0) % len(self._waiting)).set()
        raise AssertionError("the run hangs")

    @contextmanager
    def installed(self) -> Iterator[None]:
        with patch.object(reading, "in_thread", self.read):
            yield


@dataclass
class Setup:
    """One run, and what was seen of it."""

    scripts: list[Script]
    policy: Policy
    concurrency: int
    chunk_tokens: int
    max_tokens: int
    choices: list[int]
    interrupt_at: int | None = None
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.interrupt = anyio.Event()
        happenings: dict[int, Callable[[], Any]] = {}
        if self.interrupt_at is not None:
            happenings[self.interrupt_at] = self.interrupt.set
        self.turnstile = Turnstile(self.choices, happenings)
        self.engine = self.turnstile.engine = ScriptedEngine(
            self.scripts,
            concurrency=self.concurrency,
            chunk_tokens=self.chunk_tokens,
            pace=self.turnstile.wait,
        )

    async def think(self) -> Verdict:
        return await deliberate(
            Question.ask("?"),
            engine=self.engine,
            policy=self.policy,
            answers=LastWord(),
            sampling=Sampling(max_tokens=self.max_tokens),
            on_event=self.events.append,
            interrupt=self.interrupt,
        )

    def run(self) -> Verdict | AllTracesFailedError:
        async def main() -> Verdict | AllTracesFailedError:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.turnstile.conduct)
                try:
                    return await self.think()
                except AllTracesFailedError as error:
                    return error
                finally:
                    tasks.cancel_scope.cancel()
            raise AssertionError

        with self.turnstile.installed():
            return anyio.run(main)

    def played(self, trace: int) -> np.ndarray:
        """The confidences that a trace's script gives at most."""
        script = self.scripts[trace % len(self.scripts)]
        length = min(script.confidences.size, self.max_tokens)
        return script.confidences[: min(length, script.fault_after) if script.fault else length]

    def of(self, kind: type[Any]) -> list[Any]:
        return [seen for seen in self.events if isinstance(seen, kind)]


FAULTS = [
    StreamError(tried="read the stream", found="it broke", remedy="Retry."),
    RuntimeError("the engine has a bug"),
    ExceptionGroup("several", [OSError("one"), ValueError("two")]),
]


@st.composite
def script(draw: st.DrawFn) -> Script:
    sure = st.floats(1, 30, width=32)
    # The first confidence is known, or the engine would count as one that gives none.
    values = [draw(sure), *draw(st.lists(st.one_of(sure, st.just(nan)), max_size=12))]
    faulty = draw(st.integers(0, 9)) == 9
    return Script(
        text=draw(st.sampled_from(["so = a", "so = a", "so = A", "so = b", "no idea", ""])),
        confidences=np.array(values, np.float32),
        finish=draw(st.sampled_from([FinishReason.STOP] * 3 + [FinishReason.LENGTH])),
        fault=draw(st.sampled_from(FAULTS)) if faulty else None,
        fault_after=draw(st.integers(0, 13)) if faulty else 0,
        prompt_tokens=5,
    )


gates = st.one_of(st.none(), st.builds(Gate, st.integers(1, 6), st.floats(1, 30)))
starts = st.builds(Start, st.integers(1, 3), gates)
actions = st.one_of(
    starts,
    st.builds(Stop, st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    st.builds(Done, st.just("enough")),
)
policies = st.one_of(
    st.builds(Majority, budget=st.integers(2, 10)),
    st.builds(
        DeepConfOffline,
        budget=st.integers(2, 8),
        keep=st.sampled_from([0.3, 1.0]),
        window=st.just(3),
    ),
    st.builds(
        DeepConfOnline,
        budget=st.integers(4, 12),
        warmup=st.integers(1, 4),
        keep=st.sampled_from([0.1, 0.5, 0.9]),
        window=st.integers(1, 6),
        consensus=st.floats(0.4, 1.0),
        quorum=st.integers(1, 3),
    ),
    st.builds(
        SettleConfident,
        budget=st.integers(2, 12),
        metric=st.sampled_from(Metric),
        window=st.integers(1, 6),
        power=st.sampled_from([0.0, 2.0]),
        gain=st.sampled_from([0.0, 1.0]),
        keep=st.sampled_from([None, 0.1, 0.5, 1.0]),
        warmup=st.integers(1, 4),
        first=st.integers(1, 6),
    ),
    st.builds(
        Chaos,
        budget=st.just(60),
        first=starts,
        plan=st.lists(st.lists(actions, max_size=2), max_size=10),
    ),
)
setups = st.builds(
    Setup,
    scripts=st.lists(script(), min_size=1, max_size=8),
    policy=policies,
    concurrency=st.integers(1, 12),
    chunk_tokens=st.sampled_from([1, 1, 2, 3, 5, 50]),
    max_tokens=st.sampled_from([4, 50]),
    choices=st.lists(st.integers(0, 40), max_size=200),
    interrupt_at=st.one_of(st.none(), st.integers(0, 60)),
)


@settings(max_examples=400)
@given(setups)
def test_whatever_the_order_every_trace_is_accounted_for(setup: Setup) -> None:
    outcome = setup.run()
    assert setup.engine.running == 0
    assert setup.turnstile.most_running <= setup.concurrency
    finished = [seen.trace for seen in setup.of(TraceFinished)]
    assert Counter(trace.id for trace in finished) == Counter(range(len(finished)))
    assert [seen.trace for seen in setup.of(TraceStarted)] == list(range(len(finished)))
    for trace in finished:
        check_trace(setup, trace)
    if isinstance(outcome, AllTracesFailedError):
        event("all failed")
        assert {trace.finish for trace in finished} == {FinishReason.ERROR}
        assert set(outcome.causes) == {trace.error for trace in finished}
        return
    event(f"{type(setup.policy).__name__} ended by {outcome.ended}")
    check_events(setup, outcome)
    check_accounts(setup, outcome, finished)
    check_replay(setup, outcome, finished)


def check_trace(setup: Setup, trace: Trace) -> None:
    """Its tokens are its script's, and it was stopped exactly where its gate says."""
    played = setup.played(trace.id)
    whole = setup.scripts[trace.id % len(setup.scripts)]
    begun = next(seen for seen in setup.of(TraceStarted) if seen.trace == trace.id)
    assert trace.tokens == trace.confidences.size <= played.size
    assert np.array_equal(trace.confidences, played[: trace.tokens], equal_nan=True)
    assert trace.text == whole.text[: trace.tokens * len(whole.text) // whole.confidences.size]
    stop = begun.gate.stop_position(played) if begun.gate else None
    if stop is not None:
        stop = min(ceil(stop / setup.chunk_tokens) * setup.chunk_tokens, played.size)
    match trace.finish:
        case FinishReason.LOW_CONFIDENCE:
            assert trace.tokens == stop
        case FinishReason.STOP | FinishReason.LENGTH:
            assert stop is None
            assert whole.fault is None
            assert trace.tokens == played.size
            cut = played.size < whole.confidences.size
            assert trace.finish is (FinishReason.LENGTH if cut else whole.finish)
            assert trace.prompt_tokens == 5
        case FinishReason.ERROR:
            assert stop is None
            assert str(whole.fault) in trace.error
            assert trace.tokens == played.size
            again = RESTARTS if isinstance(whole.fault, StreamError) else 0
            assert (trace.restarts, trace.lost_tokens) == (again, again * played.size)
        case FinishReason.CANCELLED | FinishReason.CONSENSUS:
            assert stop is None or trace.tokens < stop
    if trace.finish is not FinishReason.ERROR:
        assert trace.error == ""
    if not trace.complete:
        assert trace.answer is None


def check_events(setup: Setup, verdict: Verdict) -> None:
    """The events tell the same story, in order."""
    assert isinstance(setup.events[0], RunStarted)
    assert isinstance(setup.events[-1], RunFinished)
    assert setup.of(RunFinished) == [setup.events[-1]]
    assert setup.events[-1].verdict is verdict
    alive: set[int] = set()
    advanced: Counter[int] = Counter()
    for seen in setup.events:
        match seen:
            case TraceStarted(trace):
                alive.add(trace)
                assert len(alive) <= setup.concurrency
            case TraceAdvanced(trace, chunk):
                assert trace in alive
                advanced[trace] += chunk.confidences.size
            case TraceRestarted(trace, lost):
                assert advanced.pop(trace, 0) == lost
            case TraceFinished(trace):
                alive.remove(trace.id)
                assert advanced[trace.id] == trace.tokens
            case _:
                pass
    assert not alive


def check_accounts(setup: Setup, verdict: Verdict, finished: list[Trace]) -> None:
    """Every trace once, every token once, no vote from a trace that did not end itself."""
    assert list(verdict.traces) == sorted(finished, key=lambda trace: trace.id)
    assert len(verdict.traces) <= verdict.budget
    usage = verdict.usage
    assert usage.generated == sum(setup.engine.generated)
    lost = sum(trace.lost_tokens for trace in verdict.traces)
    assert usage.generated == sum(trace.tokens for trace in verdict.traces) + lost
    voters = verdict.tally.voters
    assert sum(entry.count for entry in verdict.tally.entries) == len(voters)
    by_id = {trace.id: trace for trace in verdict.traces}
    for voter in voters:
        assert by_id[voter].finish is FinishReason.STOP
        assert by_id[voter].answer is not None
    assert usage.voted == sum(by_id[voter].tokens for voter in voters)
    tokens: Counter[FinishReason] = Counter()
    for trace in verdict.traces:
        tokens[trace.finish] += trace.tokens
    assert usage.stopped == tokens[FinishReason.LOW_CONFIDENCE]
    assert usage.failed == tokens[FinishReason.ERROR] + lost
    assert usage.cancelled == tokens[FinishReason.CANCELLED] + tokens[FinishReason.CONSENSUS]
    if verdict.ended == "budget":
        assert FinishReason.CONSENSUS not in tokens


def check_replay(setup: Setup, verdict: Verdict, finished: list[Trace]) -> None:
    """The same traces in the same order lead a fresh policy to the same verdict."""
    policy = setup.policy.fresh()
    policy.begin(Conditions(setup.concurrency, setup.max_tokens, 20))
    standings: list[Tally] = [policy.standing().tally]
    reason = "budget"
    for trace in finished:
        done = [act for act in policy.on_finished(trace) if isinstance(act, Done)]
        standings.append(policy.standing().tally)
        if done:
            reason = done[0].reason
            break
    if verdict.ended == "interrupted":
        # It heard of the traces that ended before, whichever number that was.
        assert verdict.tally in standings
    else:
        assert (verdict.tally, verdict.ended) == (standings[-1], reason)


@settings(max_examples=200)
@given(setups, st.integers(0, 60))
def test_cancelling_the_caller_at_any_step_frees_the_engine(setup: Setup, step: int) -> None:
    async def main() -> bool:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                setup.turnstile._happenings[step] = scope.cancel
                tasks.start_soon(setup.turnstile.conduct)
                with suppress(AllTracesFailedError):
                    await setup.think()
            assert setup.engine.running == 0
            tasks.cancel_scope.cancel()
            return scope.cancelled_caught
        raise AssertionError

    with setup.turnstile.installed():
        cancelled = anyio.run(main)
    event(f"cancelled: {cancelled}")
    assert setup.engine.running == 0
    if cancelled:
        assert not setup.of(RunFinished)


@settings(max_examples=100)
@given(setups)
def test_what_the_clock_and_the_threads_do_changes_nothing_that_the_order_does_not(
    setup: Setup,
) -> None:
    # The same choices give the same run: nothing in the driver is random.
    again = Setup(
        setup.scripts,
        setup.policy,
        setup.concurrency,
        setup.chunk_tokens,
        setup.max_tokens,
        setup.choices,
        setup.interrupt_at,
    )
    first, second = setup.run(), again.run()
    assert [trace_of(seen) for seen in setup.events] == [trace_of(seen) for seen in again.events]
    if isinstance(first, Verdict):
        assert isinstance(second, Verdict)
        assert (first.tally, first.ended, first.usage) == (second.tally, second.ended, second.usage)


def trace_of(seen: Event) -> tuple[object, ...]:
    match seen:
        case TraceFinished(trace):
            return type(seen), trace.id, trace.finish, trace.tokens, trace.seed
        case TraceStarted(number) | TraceAdvanced(number) | TraceRestarted(number):
            return type(seen), number
        case _:
            return (type(seen),)
