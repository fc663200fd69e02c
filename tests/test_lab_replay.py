"""Replaying a policy on recorded traces, and that it is what would have happened live."""

from collections import Counter
from dataclasses import dataclass, field
from math import inf, nan, sqrt

import anyio
import numpy as np
import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.answers import kind
from conviction.answers.grouping import Grouping
from conviction.confidence import Metric, measure
from conviction.core import FinishReason, Question, Tally, Trace
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError
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
    EarlyStoppingConsistency,
    Majority,
    Policy,
    Single,
    Standing,
    Start,
    Stop,
)
from conviction.policies.base import Action
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


@dataclass
class Fickle(Policy):
    """Starts, stops and starts again, as it was told."""

    name = "fickle"
    budget: int = 10
    plan: tuple[tuple[int, int], ...] = ()
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
        start, stop = self.plan[step]
        start = min(start, self.budget - self._started)
        self._started += start
        return [*([Start(start)] if start else []), Stop((stop,))]

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
    st.builds(DeepConfLow, budget=st.just(10)),
    st.builds(DeepConfHigh, budget=st.integers(4, 10)),
    st.builds(
        Fickle,
        plan=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=10).map(tuple),
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
                confidences=script.confidences,
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


@settings(max_examples=400, deadline=None)
@given(
    policies,
    st.lists(scripts(), min_size=10, max_size=10),
    st.permutations(PACES),
    st.integers(1, 12),
)
def test_a_replay_is_what_would_have_happened_live(
    policy: Policy, played: list[Script], paces: list[float], concurrency: int
) -> None:
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


@pytest.mark.parametrize(
    ("policy", "words"), [(Majority(budget=4), "3 were recorded"), (Fickle(budget=1), "beyond")]
)
def test_what_cannot_be_replayed_is_refused(policy: Policy, words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        replay(policy, [even(10)] * 3)
