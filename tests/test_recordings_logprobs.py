"""Log-probabilities of the tokens on their way from the engine into a pool, whatever interrupts."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conviction.answers import kind
from conviction.core import FinishReason, Question, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, RecordingError, StreamError
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.recording import PromptedQuestion, RecordingPlan, record
from conviction.gate import Gate
from conviction.policies import Action, Conditions, Majority, Start
from conviction.prompts import PromptStyle
from conviction.recordings import Pool, recording_listener
from conviction.thinking import deliberate

NUMBERS = kind("number")
SAMPLING = Sampling(max_tokens=30)
QUESTIONS = ("0 + 1?", "1 + 1?", "2 + 1?")
TRACES = 4


def script(question: str, number: int) -> Script:
    """What a trace of a question writes; some have no log-probabilities, some not all."""
    random = np.random.default_rng([*question.encode(), number])
    tokens = int(random.integers(1, 12))
    values = -random.exponential(2, tokens)
    values[random.random(tokens) < 0.3] = nan
    return Script(
        f"It is {random.integers(4)}.",
        random.uniform(3, 20, tokens).astype(np.float32),
        logprobs=values.astype(np.float32) if random.random() < 0.8 else None,
    )


def expected(question: str, number: int) -> NDArray[np.float32] | None:
    """What is known of a trace in the end: nothing, if not one token is."""
    values = script(question, number).logprobs
    return None if values is None or np.isnan(values).all() else values


def scripted(**options: object) -> ScriptedEngine:
    return ScriptedEngine(
        lambda request: script(request.messages[-1].content, request.trace),
        **options,  # type: ignore[arg-type]
    )


def plan(**changes: object) -> RecordingPlan:
    asked = tuple(
        PromptedQuestion.of(
            DatasetQuestion(f"q{i}", text, "1", f"row {i}"),
            answers="number",
            style=PromptStyle.PLAIN,
        )
        for i, text in enumerate(QUESTIONS)
    )
    return replace(RecordingPlan(asked, TRACES, SAMPLING, logprobs=True), **changes)


def held(folder: Path) -> set[tuple[str, int]]:
    """The traces that a pool holds, by question and number."""
    try:
        pool = Pool.open(folder)
    except (InvalidSettingError, RecordingError):
        return set()
    return {(q.text, int(number)) for q in pool.questions for number in pool.traces(q.id).ids}


def check(folder: Path, wanted: dict[tuple[str, int], bool]) -> None:
    """Check that a pool holds the log-probabilities of the traces for which they were wanted."""
    pool = Pool.open(folder)
    for question in pool.questions:
        numbers = pool.traces(question.id).ids.tolist()
        for number, found in zip(numbers, pool.logprobs(question.id), strict=True):
            right = expected(question.text, number) if wanted[question.text, number] else None
            np.testing.assert_array_equal(found, right)


@settings(max_examples=20, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=5),
    chunk_tokens=st.integers(1, 4),
    concurrency=st.integers(1, 5),
)
def test_a_pool_holds_what_the_engine_gave_however_often_its_recording_was_interrupted(
    runs: list[tuple[int, bool]],
    chunk_tokens: int,
    concurrency: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pools") / "pool"
    wanted: dict[tuple[str, int], bool] = {}

    async def run(chunks: int | None, *, logprobs: bool) -> None:
        """Record, until so many chunks were asked for."""
        left = chunks

        async def pace(_: TraceRequest) -> None:
            nonlocal left
            left = None if left is None else left - 1
            if left == 0:
                limit.cancel()
            await anyio.lowlevel.checkpoint()

        engine = scripted(chunk_tokens=chunk_tokens, concurrency=concurrency, pace=pace)
        with anyio.CancelScope() as limit:
            await record(plan(logprobs=logprobs), folder, engine=engine, answers=NUMBERS)

    for position, (chunks, logprobs) in enumerate(runs, start=1):
        last = position == len(runs)
        anyio.run(partial(run, None if last else chunks, logprobs=logprobs))
        for trace in held(folder):
            wanted.setdefault(trace, logprobs)
        if wanted:
            check(folder, wanted)
    assert len(wanted) == len(QUESTIONS) * TRACES


@settings(max_examples=20, deadline=None)
@given(
    breaks=st.lists(st.integers(0, 12), min_size=8, max_size=8),
    threshold=st.sampled_from([3.0, 9.0, 12.0]),
    chunk_tokens=st.integers(1, 4),
)
def test_a_live_run_keeps_them_for_all_tokens_of_the_attempt_that_counts(
    breaks: list[int],
    threshold: float,
    chunk_tokens: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pools") / "pool"
    begun: set[int] = set()

    def once_broken(request: TraceRequest) -> Script:
        fault = StreamError(tried="read", found="it broke", remedy="Retry.")
        played = script("live", request.trace)
        if request.trace in begun:
            return played
        begun.add(request.trace)
        other = -np.ones(played.confidences.size, np.float32)
        after = breaks[request.trace]
        return replace(played, logprobs=other, fault=fault, fault_after=after)

    with recording_listener(folder, sampling=SAMPLING, answers="number") as listener:
        verdict = anyio.run(
            partial(
                deliberate,
                Question.ask("How many?"),
                engine=ScriptedEngine(once_broken, chunk_tokens=chunk_tokens),
                policy=Gated(8, threshold=threshold),
                answers=NUMBERS,
                sampling=SAMPLING,
                logprobs=True,
                on_event=listener,
            )
        )
    for trace in verdict.traces:
        played = script("live", trace.id).logprobs
        if not trace.restarts:
            played = np.full(30, -1, np.float32)
        right = None if played is None else played[: trace.tokens]
        if right is not None and np.isnan(right).all():
            right = None
        np.testing.assert_array_equal(trace.logprobs, right)
    pool = Pool.open(folder)
    seeds = pool.traces(verdict.question.id).seeds.tolist()
    recorded = dict(zip(seeds, pool.logprobs(verdict.question.id), strict=True))
    for trace in verdict.traces:
        np.testing.assert_array_equal(recorded[trace.seed], trace.logprobs)


class Gated(Majority):
    """Stops traces as soon as two tokens in a row are below a threshold."""

    def __init__(self, budget: int, threshold: float) -> None:
        super().__init__(budget)
        self.threshold = threshold

    def begin(self, conditions: Conditions) -> list[Action]:
        """Start all at once, each with its gate."""
        del conditions
        return [Start(self.budget, Gate(2, self.threshold))]


@pytest.mark.anyio
async def test_whoever_does_not_want_them_gets_none_though_the_engine_has_them() -> None:
    verdict = await deliberate(
        Question.ask("How many?"), engine=scripted(), policy=Majority(4), answers=NUMBERS
    )
    assert {trace.logprobs is None for trace in verdict.traces} == {True}


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (np.zeros(1, np.float32), "a chunk has 2 tokens and 1 log-probabilities"),
        (np.array([-1.0, 0.25], np.float32), r"a log-probability is 0\.25, above 0"),
    ],
)
@pytest.mark.anyio
async def test_an_engine_whose_log_probabilities_cannot_be_fails_its_trace(
    logprobs: NDArray[np.float32], message: str
) -> None:
    class Wrong(ScriptedEngine):
        async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
            async with aclosing(super().stream(request)) as chunks:
                async for chunk in chunks:
                    here = request.trace == 1 and chunk.confidences.size
                    yield replace(chunk, logprobs=logprobs) if here else chunk

    engine = Wrong([Script.even("It is 1.", tokens=4)], chunk_tokens=2)
    verdict = await deliberate(
        Question.ask("?"), engine=engine, policy=Majority(2), answers=NUMBERS, logprobs=True
    )
    assert [trace.finish for trace in verdict.traces] == [FinishReason.STOP, FinishReason.ERROR]
    assert re.search(message, verdict.traces[1].error)


@pytest.mark.anyio
async def test_traces_without_them_are_told_once_and_recorded_all_the_same(tmp_path: Path) -> None:
    engine = ScriptedEngine([Script.even("It is 1.")])
    reached = await record(plan(), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert reached.complete
    assert reached.notes == [
        "Recorded without the log-probability of each token: 12 traces; the engine gave none."
    ]


@pytest.mark.anyio
async def test_a_trace_that_failed_is_not_recorded(tmp_path: Path) -> None:
    fault = StreamError(tried="read", found="it broke", remedy="Retry.")
    scripts = [
        replace(Script.even("It is 1.", tokens=6), fault=fault if number == 1 else None)
        for number in range(3)
    ]
    scripts[1] = replace(scripts[1], fault_after=4)
    with recording_listener(tmp_path / "pool", sampling=SAMPLING, answers="number") as listener:
        verdict = await deliberate(
            Question.ask("How many?"),
            engine=ScriptedEngine(scripts),
            policy=Majority(3),
            answers=NUMBERS,
            sampling=SAMPLING,
            restarts=0,
            on_event=listener,
        )
    failed = verdict.traces[1]
    assert (failed.finish, failed.tokens) == (FinishReason.ERROR, 4)
    traces = Pool.open(tmp_path / "pool").traces(verdict.question.id)
    assert set(traces.seeds.tolist()) == {verdict.traces[i].seed for i in (0, 2)}


def test_answers_alone_come_without_them() -> None:
    with pytest.raises(InvalidSettingError, match="with the confidences"):
        plan(answers_only=True)
