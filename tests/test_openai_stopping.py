"""Stopping a trace frees its server at once, wherever the trace was; engines can be shared."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from completion_events import (
    DONE,
    SOME,
    STOP,
    assert_idle,
    collect,
    event,
    events,
    json_answer,
    position,
    request,
    stream,
)
from scripted_server import Mark, Received, ScriptedServer, Step, chunk, chunked, serving

import conviction
from conviction.answers import kind
from conviction.core import FinishReason, Question
from conviction.engines.base import Capabilities
from conviction.engines.openai import OpenAIEngine
from conviction.errors import EngineError, EngineUnavailableError
from conviction.policies import Majority
from conviction.thinking import deliberate

BEGUN = chunked(events(SOME))
REST = chunk(events(STOP) + DONE) + chunk(b"")
LISTED: list[Step] = [json_answer({"data": [{"id": "m"}]})]


async def hung_up(server: ScriptedServer) -> None:
    with anyio.fail_after(1):
        await server.hung_up.wait()


# --- One trace ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_closing_the_generator_closes_the_connection_at_once() -> None:
    async with serving([BEGUN, Mark.UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        async with aclosing(engine.stream(request())) as chunks:
            assert (await anext(chunks)).text == "a"
        assert_idle(engine)
        await hung_up(server)


@pytest.mark.anyio
@pytest.mark.parametrize("before", [BEGUN, b"HTTP/1.1 200 OK\r\n", b""])
async def test_cancelling_the_reader_closes_the_connection_at_once(before: bytes) -> None:
    async with serving([before, Mark.UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        with anyio.move_on_after(0.1) as scope:
            await collect(engine)
        assert scope.cancelled_caught
        assert_idle(engine)
        await hung_up(server)


@pytest.mark.anyio
async def test_a_generator_that_nobody_closed_is_closed_when_it_is_forgotten() -> None:
    async with serving([BEGUN, Mark.UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        chunks = engine.stream(request())
        await anext(chunks)
        del chunks
        await hung_up(server)
        assert_idle(engine)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "trouble",
    [
        [BEGUN, 0.002, chunk(events(SOME)), 0.002, REST],
        [json_answer({}, "429 Too Many Requests")],
        [json_answer({}, "500 Internal Server Error")],
        [chunked(events(SOME)), 0.002, Mark.RESET],
    ],
)
async def test_cancelling_at_any_step_leaves_nothing_behind(trouble: list[Step]) -> None:
    """Cancels after one turn of the event loop, after two, … until the trace gets to its end."""

    def play(received: Received) -> Sequence[Step]:
        return LISTED if received.body is None else trouble

    async def after(turns: int, scope: anyio.CancelScope) -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with (
        serving(play) as server,
        OpenAIEngine(server.url, retries=1, patience=0) as engine,
    ):
        turns, over = 0, False
        while not over:
            engine._balancer.endpoints[0].rests_until = 0.0
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(after, turns, scope)
                    with suppress(EngineError):
                        await collect(engine)
                tasks.cancel_scope.cancel()
            assert_idle(engine)
            over = not scope.cancelled_caught
            turns += 1 + turns // 20
        assert turns > 5
        await server.idle()


@pytest.mark.anyio
async def test_no_timer_goes_on_for_a_trace_that_is_over() -> None:
    loop: Any = asyncio.get_running_loop()
    async with serving([BEGUN, Mark.UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        for _ in range(5):
            async with aclosing(engine.stream(request())) as chunks:
                await anext(chunks)
        await server.idle()
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]


# --- Several traces -------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_further_traces_wait_their_turn_and_a_cancelled_one_gives_its_place_back() -> None:
    steps: list[Step] = [stream(SOME, end=b""), 0.05, events(STOP)]
    async with serving(steps) as server, OpenAIEngine(server.url, concurrency=2) as engine:

        async def collect_for(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                await collect(engine)

        with anyio.fail_after(2):
            async with anyio.create_task_group() as tasks:
                for seconds in (10.0, 10.0, 0.01, 0.06, 10.0):
                    tasks.start_soon(collect_for, seconds)
            await collect(engine)
        assert server.most_open == 2
        assert_idle(engine)


@pytest.mark.anyio
async def test_closing_the_engine_ends_its_traces_those_that_wait_included() -> None:
    ends: list[str] = []

    async def trace(engine: OpenAIEngine) -> None:
        with pytest.raises(EngineError) as caught:
            await collect(engine)
        ends.append(caught.value.found)

    async with serving([BEGUN, Mark.UNTIL_HANG_UP]) as server:
        engine = OpenAIEngine(server.url, concurrency=2)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks, engine:
                for _ in range(5):
                    tasks.start_soon(trace, engine)
                await anyio.sleep(0.1)
                assert server.open == 2
        assert len(ends) == 5
        assert sum("not started" in end for end in ends) == 3
        assert_idle(engine)
        await server.idle()


@pytest.mark.anyio
async def test_closing_the_engine_ends_requests_that_have_no_answer_yet() -> None:
    async with serving([Mark.UNTIL_HANG_UP]) as server:
        engine = OpenAIEngine(server.url, retries=2)

        async def trace() -> None:
            with pytest.raises(EngineUnavailableError):
                await collect(engine)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks, engine:
                tasks.start_soon(trace)
                await anyio.sleep(0.1)
        assert_idle(engine)
        await server.idle()


@pytest.mark.anyio
async def test_an_engine_can_be_opened_again() -> None:
    async with serving([stream(SOME, STOP)]) as server:
        engine = OpenAIEngine(server.url)
        for _ in range(2):
            async with engine:
                assert (await collect(engine))[-1].finish is FinishReason.STOP


@pytest.mark.anyio
async def test_traces_that_wait_while_the_engine_asks_its_servers_are_not_forgotten() -> None:
    def play(received: Received) -> Sequence[Step]:
        if received.body is None:
            return LISTED
        if not received.body["stream"]:
            return [json_answer({"choices": [{"message": {"content": "1"}}]})]
        return [stream(SOME, end=b""), 0.1, events(STOP)]

    async with serving(play) as server, OpenAIEngine(server.url, concurrency=1) as engine:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(collect, engine)
                await anyio.sleep(0.02)
                await engine.capabilities()
        assert_idle(engine)


# --- Several runs ---------------------------------------------------------------------------------


def answering(received: Received) -> Sequence[Step]:
    """A server that thinks for a while, then says 4."""
    if received.body is None:
        return LISTED
    if not received.body["stream"]:
        return [json_answer({"choices": [{"message": {"content": "1"}}]})]
    token = event("= 4", position(-1.0, -1.0))
    return [stream(token, end=b""), 0.03, events(STOP)]


@pytest.mark.anyio
async def test_two_runs_share_an_engine_and_one_may_leave() -> None:
    async with serving(answering) as server, OpenAIEngine(server.url, concurrency=3) as engine:
        engine._capabilities = Capabilities("m", 2, 3)
        interrupt = anyio.Event()
        answers: list[str | None] = []

        async def run(budget: int, interrupt: anyio.Event | None) -> None:
            verdict = await deliberate(
                Question.ask("2 + 2"),
                engine=engine,
                policy=Majority(budget=budget),
                answers=kind("number"),
                interrupt=interrupt,
            )
            answers.append(verdict.answer)
            assert verdict.ended == ("interrupted" if interrupt else "budget")

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, 12, None)
                tasks.start_soon(run, 200, interrupt)
                await anyio.sleep(0.1)
                interrupt.set()
        assert answers[-1] == "4"
        assert_idle(engine)
        await server.idle()


def test_an_engine_serves_one_event_loop_after_another() -> None:
    async def main() -> None:
        async with serving(answering) as server:
            engine = OpenAIEngine(server.url)
            for _ in range(2):
                verdict = await anyio.to_thread.run_sync(
                    lambda: conviction.think(
                        "2 + 2", engine=engine, policy="majority", budget=3, answers="number"
                    )
                )
                assert verdict.answer == "4"

    anyio.run(main)
