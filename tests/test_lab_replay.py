"""Replaying a policy on recorded traces, and that it is what would have happened live."""

from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf, nan, sqrt

import anyio
import numpy as np
import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.answers import Grouping, kind
from conviction.confidence import Metric, measure
from conviction.core import FinishReason, Question, Tally, Trace
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, MissingLogprobsError, NothingGeneratedError
from conviction.gate import Gate
from conviction.lab.replay import PlayedTrace, replay
from conviction.policies import (
    AdaptiveConsistency,
    BestOfN,
    Borda,
    Conditions,
    DeepConfHigh,
    DeepConfLow,
    DeepConfOffline,
    DeepConfOnline,
    Done,
    EarlyStoppingConsistency,
    Forget,
    Majority,
    Policy,
    Single,
    Standing,
    Start,
    Stop,
)
from conviction.policies.base import Action
from conviction.policies.settle import SettleConfident
from conviction.thinking import deliberate
from conviction.verdict import Verdict

NUMBERS = kind("number")
# No sum of whole multiples of these equals another, so no two traces end at the same moment.
PACES = [sqrt(p) for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)]

confidences = st.lists(
    st.one_of(st.floats(0.0, 20.0, width=32), st.just(nan)), min_size=1, max_size=12
).map(lambda values: np.array([5.0, *values], np.float32))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    text = draw(st.sampled_from(["Answer: 1", "Answer: 2", "Answer: 2.0", "Answer: 3", "Hm."]))
    finish = draw(st.sampled_from([*[FinishReason.STOP] * 5, FinishReason.LENGTH]))
    return Script(text, draw(confidences), finish)


@st.composite
def odd_scripts(draw: st.DrawFn) -> Script:
    """Among others, traces without a token, and such without a known confidence."""
    size = draw(st.sampled_from([0, 0, 3, 12]))
    blind = np.full(size, nan, np.float32)
    script = replace(draw(scripts()), confidences=draw(st.one_of(confidences, st.just(blind))))
    # The engine that plays it says nothing without a token.
    return script if script.confidences.size else replace(script, text="")


@dataclass
class Fickle(Policy):
    """Starts, stops, forgets and starts again, as it was told."""

    name = "fickle"
    budget: int = 10
    plan: tuple[tuple[int, int, bool], ...] = ()
    _finished: int = field(default=0, init=False)
    _started: int = field(default=2, init=False)

    def begin(self, conditions: Conditions) -> list[Action]:
        del conditions
        return [Start(2, Gate(2, 6.0))]

    def on_finished(self, trace: Trace) -> list[Action]:
        del trace
        step, self._finished = self._finished, self._finished + 1
        if step >= len(self.plan):
            return []
        start, stop, forget = self.plan[step]
        start = min(start, self.budget - self._started)
        self._started += start
        forgetting = [Forget()] if forget else []
        return [*forgetting, *([Start(start)] if start else []), Stop((stop,))]

    def standing(self) -> Standing:
        return Standing(Tally())


policies = st.one_of(
    st.builds(Single),
    st.builds(Majority, budget=st.integers(1, 10)),
    st.builds(AdaptiveConsistency, budget=st.integers(1, 10), wave=st.integers(1, 6)),
    st.builds(EarlyStoppingConsistency, budget=st.integers(1, 10), window=st.integers(2, 5)),
    st.builds(DeepConfOffline, budget=st.integers(1, 10), keep=st.sampled_from([0.1, 0.5, 1.0])),
    st.builds(BestOfN, budget=st.integers(1, 10)),
    st.builds(Borda, budget=st.integers(1, 10)),
    st.builds(
        DeepConfOnline,
        budget=st.integers(4, 10),
        warmup=st.integers(1, 4),
        keep=st.sampled_from([0.1, 0.5, 0.9]),
        window=st.integers(1, 6),
        consensus=st.floats(0.4, 1.0),
        quorum=st.integers(1, 3),
    ),
    st.builds(
        SettleConfident,
        budget=st.integers(1, 10),
        metric=st.sampled_from(Metric),
        window=st.integers(1, 6),
        power=st.sampled_from([0.0, 2.0]),
        gain=st.sampled_from([0.0, 1.0]),
        keep=st.sampled_from([None, 0.1, 0.5, 1.0]),
        warmup=st.integers(1, 4),
        first=st.integers(1, 6),
    ),
    st.builds(DeepConfLow, budget=st.just(10)),
    st.builds(DeepConfHigh, budget=st.integers(4, 10)),
    st.builds(
        Fickle,
        plan=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 8), st.booleans()), max_size=10
        ).map(tuple),
    ),
)


def recorded(played: list[Script], paces: list[float]) -> list[PlayedTrace]:
    grouping = Grouping(NUMBERS)
    traces: list[PlayedTrace] = []
    for script, pace in zip(played, paces, strict=True):
        found = NUMBERS.extract(script.text)
        answer = grouping.classify(found) if found else None
        traces.append(
            PlayedTrace(
                script.confidences.size,
                script.finish,
                answer,
                # As a pool gives them.
                confidences=script.confidences if np.isfinite(script.confidences).any() else None,
                pace=pace,
            )
        )
    return traces


def live(policy: Policy, played: list[Script], paces: list[float], concurrency: int) -> Verdict:
    calls: Counter[int] = Counter()

    async def pace(request: TraceRequest) -> None:
        calls[request.trace] += 1
        if calls[request.trace] <= played[request.trace].confidences.size:
            await anyio.sleep(paces[request.trace])

    async def main() -> Verdict:
        return await deliberate(
            Question.ask("?"),
            engine=ScriptedEngine(played, concurrency=concurrency, pace=pace),
            policy=policy,
            answers=NUMBERS,
        )

    return virtual_time.run(main)


@settings(max_examples=400)
@given(
    policies,
    st.lists(scripts(), min_size=10, max_size=10),
    st.permutations(PACES),
    st.integers(1, 12),
)
def test_a_replay_is_what_would_have_happened_live(
    policy: Policy, played: list[Script], paces: list[float], concurrency: int
) -> None:
    check_agreement(policy, played, paces, concurrency)


@settings(max_examples=200)
@given(policies, st.lists(odd_scripts(), min_size=10, max_size=10))
def test_traces_that_are_empty_or_of_unknown_confidence_are_replayed_as_they_run_live(
    policy: Policy, played: list[Script]
) -> None:
    # One after another, so that no two of them end at the same moment.
    try:
        check_agreement(policy, played, PACES, concurrency=1)
    except NothingGeneratedError:
        # The traces that were asked for: a replay has no answer there either.
        assert any(not one.confidences.size for one in played)
        assert replay(policy, recorded(played, PACES), concurrency=1).tokens == 0
    except MissingLogprobsError:
        # The first that has tokens knows nothing of them, which tells of an engine without.
        first = next(one for one in played if one.confidences.size)
        assert policy.needs_confidence
        assert np.isnan(first.confidences).all()


def check_agreement(
    policy: Policy, played: list[Script], paces: list[float], concurrency: int
) -> None:
    """Check that a replay is what happens live."""
    verdict = live(policy, played, paces, concurrency)
    outcome = replay(policy, recorded(played, paces), concurrency=concurrency)
    finishes = Counter(trace.finish for trace in verdict.traces)
    assert outcome.tally == verdict.tally
    assert outcome.ended == verdict.ended
    assert outcome.tokens == verdict.usage.generated
    assert outcome.started == len(verdict.traces)
    assert outcome.stopped == finishes[FinishReason.LOW_CONFIDENCE]
    assert outcome.cancelled == (
        finishes[FinishReason.CONSENSUS] + finishes[FinishReason.CANCELLED]
    )


@given(confidences, st.integers(1, 8), st.floats(0.0, 20.0))
def test_a_stop_is_found_where_the_gate_says(
    values: np.ndarray, window: int, threshold: float
) -> None:
    gate = Gate(window, threshold)
    trace = PlayedTrace(values.size, FinishReason.STOP, None, confidences=values)
    assert trace.stop_position(gate) == gate.stop_position(values)
    for (metric, width), score in trace.scores.items():
        assert score == measure(Metric(metric), values, width)


def even(tokens: int) -> PlayedTrace:
    return PlayedTrace(tokens, FinishReason.STOP, None)


@pytest.mark.parametrize(("concurrency", "path"), [(1, 60), (2, 30 + 10), (3, 30), (inf, 30)])
def test_the_path_is_the_time_of_a_machine_with_so_many_slots(
    concurrency: float, path: float
) -> None:
    traces = [even(10), even(20), even(30)]
    outcome = replay(Majority(budget=3), traces, concurrency=concurrency)
    assert (outcome.path, outcome.tokens) == (path, 60)


def test_what_was_cancelled_counts_as_far_as_it_got() -> None:
    @dataclass
    class First(Majority):
        name = "first"

        def on_finished(self, trace: Trace) -> list[Action]:
            del trace
            return [Stop((1,))]

    outcome = replay(First(budget=3), [even(10), even(20), even(30)])
    assert (outcome.tokens, outcome.path, outcome.cancelled) == (10 + 10 + 30, 30, 1)


def test_the_path_ends_with_the_verdict_and_not_with_what_is_cancelled_then() -> None:
    @dataclass
    class Second(Majority):
        name = "second"

        def on_finished(self, trace: Trace) -> list[Action]:
            return [Done("consensus")] if trace.id == 1 else []

    outcome = replay(Second(budget=3), [even(10), even(20), even(30)])
    assert (outcome.ended, outcome.path) == ("consensus", 20)
    assert (outcome.tokens, outcome.cancelled) == (10 + 20 + 20, 1)


@pytest.mark.parametrize(
    ("policy", "words"),
    [(Majority(budget=4), "3 were recorded"), (Fickle(budget=1), "its own budget of 1")],
)
def test_what_cannot_be_replayed_is_refused(policy: Policy, words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        replay(policy, [even(10)] * 3)
