"""A trace whose stream breaks is begun again, and what was lost is still counted."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import numpy as np
import pytest
from completion_events import STOP, assert_idle, event, events, json_answer, position, stream
from scripted_server import Mark, Received, ScriptedServer, Step, chunk, chunked, serving

from conviction.answers import kind
from conviction.core import FinishReason, Question
from conviction.engines.base import Capabilities, TraceRequest
from conviction.engines.openai import OpenAIEngine, servers
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    AllTracesFailedError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    StreamError,
)
from conviction.events import Event, TraceAdvanced, TraceFinished, TraceRestarted, TraceStarted
from conviction.gate import Gate
from conviction.policies import Action, Conditions, Majority, Start
from conviction.thinking import RESTARTS, deliberate
from conviction.verdict import Verdict

pytestmark = pytest.mark.anyio
GATED = Gate(window=4, threshold=5.0)


class Gated(Majority):
    """Majority, each trace with a gate."""

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        del conditions
        return [Start(self.budget, GATED)]


class Attempts(ScriptedEngine):
    """Plays for each trace one script after another, and keeps what it was asked."""

    def __init__(self, *scripts: Script) -> None:
        self.asked: list[TraceRequest] = []
        self.scripts = scripts
        super().__init__(self._next, chunk_tokens=2)

    def _next(self, request: TraceRequest) -> Script:
        attempt = sum(asked.trace == request.trace for asked in self.asked)
        self.asked.append(request)
        return self.scripts[min(attempt, len(self.scripts) - 1)]


def good(text: str = "= 4", tokens: int = 10, confidence: float = 9.0) -> Script:
    return Script.even(text, tokens=tokens, confidence=confidence)


def breaking(
    after: int, *, text: str = "= 5", confidence: float = 9.0, fault: Exception | None = None
) -> Script:
    fault = fault or StreamError(tried="read", found="it broke", remedy="Go on.")
    values = np.full(20, confidence, np.float32)
    return Script(text, values, fault=fault, fault_after=after)


async def think(engine: Any, budget: int = 1, **options: Any) -> Verdict:
    options.setdefault("policy", Majority(budget=budget))
    with anyio.fail_after(10):
        return await deliberate(
            Question.ask("2 + 2"), engine=engine, answers=kind("number"), **options
        )


# --- The driver -----------------------------------------------------------------------------------


async def test_a_broken_trace_is_begun_again_and_its_lost_tokens_count_as_failed() -> None:
    verdict = await think(Attempts(breaking(6), breaking(3), good()))
    [trace] = verdict.traces
    assert (trace.finish, trace.text, trace.tokens) == (FinishReason.STOP, "= 4", 10)
    assert (trace.restarts, trace.lost_tokens) == (2, 9)
    assert (verdict.usage.voted, verdict.usage.failed, verdict.usage.generated) == (10, 9, 19)
    assert verdict.answer == "4"
    stored = verdict.to_dict()["traces"][0]
    assert (stored["restarts"], stored["lost_tokens"]) == (2, 9)


async def test_every_attempt_is_the_same_request() -> None:
    engine = Attempts(breaking(6), breaking(3), good())
    await think(engine, budget=3)
    for trace in range(3):
        first, *others = [asked for asked in engine.asked if asked.trace == trace]
        assert others == [first] * 2
    assert len({asked.seed for asked in engine.asked}) == 3


@pytest.mark.parametrize("restarts", [0, 1, 4])
async def test_a_trace_is_begun_again_at_most_so_often(restarts: int) -> None:
    engine = Attempts(breaking(5))
    with pytest.raises(AllTracesFailedError, match="it broke"):
        await think(engine, restarts=restarts)
    assert len(engine.asked) == restarts + 1
    assert engine.running == 0


async def test_the_tokens_of_a_trace_that_fails_in_the_end_are_counted_once() -> None:
    def play(request: TraceRequest) -> Script:
        return good() if request.trace else breaking(5)

    verdict = await think(ScriptedEngine(play), budget=2)
    failed, _ = verdict.traces
    assert (failed.finish, failed.restarts, failed.lost_tokens) == (
        FinishReason.ERROR,
        RESTARTS,
        5 * RESTARTS,
    )
    assert failed.tokens == 5
    assert "it broke" in failed.error
    assert (verdict.usage.failed, verdict.usage.voted) == (5 * (RESTARTS + 1), 10)


@pytest.mark.parametrize(
    "fault",
    [
        EngineError(tried="read", found="content_filter", remedy="Ask otherwise."),
        EngineUnavailableError(tried="ask", found="401", remedy="Give a key."),
        ZeroDivisionError("a bug"),
    ],
)
async def test_only_a_broken_stream_is_worth_another_try(fault: Exception) -> None:
    engine = Attempts(breaking(5, fault=fault))
    with pytest.raises(AllTracesFailedError):
        await think(engine)
    assert len(engine.asked) == 1


async def test_listeners_hear_of_a_trace_that_begins_again() -> None:
    heard: list[Event] = []
    await think(Attempts(breaking(4), good(tokens=2)), on_event=heard.append)
    kinds = [type(one) for one in heard[1:-1]]
    assert kinds == [
        TraceStarted,
        TraceAdvanced,
        TraceAdvanced,
        TraceRestarted,
        TraceAdvanced,
        TraceAdvanced,
        TraceFinished,
    ]
    restarted = next(one for one in heard if isinstance(one, TraceRestarted))
    assert (restarted.trace, restarted.lost_tokens) == (0, 4)
    assert "it broke" in restarted.error


async def test_the_gate_of_a_trace_that_begins_again_starts_afresh() -> None:
    # Two attempts of three unsure tokens each would fill the gate's window of four.
    unsure = breaking(3, confidence=1.0)
    verdict = await think(Attempts(unsure, unsure, good()), policy=Gated(budget=1))
    [trace] = verdict.traces
    assert trace.finish is FinishReason.STOP

    verdict = await think(
        Attempts(breaking(3), good(confidence=1.0), good()), policy=Gated(budget=1)
    )
    [trace] = verdict.traces
    assert (trace.finish, trace.tokens, trace.restarts) == (FinishReason.LOW_CONFIDENCE, 4, 1)
    assert (verdict.usage.stopped, verdict.usage.failed) == (4, 3)


async def test_a_verdict_warns_of_traces_that_were_begun_again() -> None:
    verdict = await think(Attempts(breaking(6), good()), budget=3)
    [warning] = [text for text in verdict.warnings if "begun again" in text]
    assert "3 of 3 traces" in warning
    assert "18 tokens" in warning
    assert "it broke" in warning
    assert not (await think(Attempts(good()), budget=3)).warnings


async def test_nothing_is_begun_again_once_the_run_is_over() -> None:
    interrupt = anyio.Event()

    def interrupted(one: Event) -> None:
        if isinstance(one, TraceAdvanced):
            interrupt.set()

    engine = Attempts(breaking(2))
    verdict = await think(engine, on_event=interrupted, interrupt=interrupt)
    assert verdict.ended == "interrupted"
    assert len(engine.asked) <= 2
    assert engine.running == 0
    assert verdict.usage.generated == sum(engine.generated)


@pytest.mark.parametrize("restarts", [-1, 1.5])
async def test_a_senseless_number_of_restarts_is_refused(restarts: float) -> None:
    with pytest.raises(InvalidSettingError, match="restarts"):
        await think(Attempts(good()), restarts=restarts)


# --- Over HTTP ------------------------------------------------------------------------------------

TOKEN = event("= 4 ", position(-1.0, -1.0))


def playing(steps: Callable[[int], list[Step]]) -> Callable[[Received], Sequence[Step]]:
    """A server that lists its models and plays for the n-th trace what `steps` gives for n."""
    traces: list[Received] = []

    def play(received: Received) -> Sequence[Step]:
        if received.body is None:
            return [json_answer({"data": [{"id": "m"}]})]
        traces.append(received)
        return steps(len(traces) - 1)

    return play


def opened(*servers: ScriptedServer, **settings: Any) -> OpenAIEngine:
    engine = OpenAIEngine([server.url for server in servers], **settings)
    engine._capabilities = Capabilities("m", 2, 8)
    return engine


async def test_a_stream_that_breaks_over_http_is_begun_again_with_its_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)
    seen: set[int] = set()

    def play(received: Received) -> Sequence[Step]:
        if received.body is None:
            return [json_answer({"data": [{"id": "m"}]})]
        if received.body["seed"] in seen:
            return [stream(TOKEN, STOP)]
        seen.add(received.body["seed"])
        return [chunked(events(TOKEN, TOKEN)), 0.02, Mark.RESET]

    async with serving(play) as server, opened(server, concurrency=1) as engine:
        verdict = await think(engine, budget=4)
        assert_idle(engine)
    assert [trace.restarts for trace in verdict.traces] == [1] * 4
    assert (verdict.usage.voted, verdict.usage.failed) == (4, 8)
    seeds = [request.body["seed"] for request in server.requests if request.body]
    assert len(seeds) == 8
    assert all(seeds.count(seed) == 2 for seed in seeds)


async def test_a_refused_request_is_no_restart_but_is_told() -> None:
    def steps(trace: int) -> list[Step]:
        if trace:
            return [stream(TOKEN, STOP)]
        return [json_answer({"error": "hold on"}, "429 Too Many Requests")]

    async with serving(playing(steps)) as server, opened(server) as engine:
        verdict = await think(engine, budget=3)
    assert [trace.restarts for trace in verdict.traces] == [0] * 3
    assert verdict.usage.failed == 0
    [warning] = verdict.warnings
    assert "hold on" in warning
    assert "(1 of 3 traces)" in warning


@pytest.mark.parametrize(
    "death", [Mark.RESET, chunk(b"data: {\n\n"), chunk(events({"error": "I die"}))]
)
async def test_a_run_outlives_one_of_its_servers(
    monkeypatch: pytest.MonkeyPatch, death: Step
) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)

    async def die(_: object) -> None:
        bad.stop_listening()

    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(serving(playing(lambda _: [stream(TOKEN, STOP)])))
        last_words: list[Step] = [chunked(events(TOKEN, TOKEN, TOKEN)), 0.05, die, death]
        bad = await stack.enter_async_context(serving(playing(lambda _: last_words)))
        engine = await stack.enter_async_context(opened(bad, good, concurrency=4))
        heard: list[Event] = []
        verdict = await think(engine, budget=12, on_event=heard.append)
        assert_idle(engine)
    assert verdict.answer == "4"
    assert verdict.share == 1.0
    assert verdict.ended == "budget"
    assert [trace.finish for trace in verdict.traces] == [FinishReason.STOP] * 12
    restarted = [trace for trace in verdict.traces if trace.restarts]
    assert len(restarted) == 4
    assert verdict.usage.voted == 12
    assert verdict.usage.failed == sum(trace.lost_tokens for trace in restarted) == 12
    assert sum(isinstance(one, TraceRestarted) for one in heard) == 4
    assert any("begun again" in warning for warning in verdict.warnings)


async def test_a_run_whose_only_server_dies_ends_with_what_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)

    def steps(trace: int) -> list[Step]:
        if trace < 2:
            return [stream(TOKEN, STOP)]
        return [chunked(events(TOKEN)), 0.02, Mark.RESET]

    async with (
        serving(playing(steps)) as server,
        opened(server, concurrency=1, patience=0.1) as engine,
    ):
        verdict = await think(engine, budget=4)
        assert_idle(engine)
    finishes = [trace.finish for trace in verdict.traces]
    assert finishes == [FinishReason.STOP] * 2 + [FinishReason.ERROR] * 2
    assert (verdict.usage.voted, verdict.usage.failed) == (2, 2 * (RESTARTS + 1))
    assert any("2 of 4 traces failed" in warning for warning in verdict.warnings)
