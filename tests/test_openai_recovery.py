"""Servers that go wrong in lasting ways, and what is remembered of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from completion_events import (
    DONE,
    STOP,
    assert_idle,
    collect,
    event,
    events,
    joined,
    json_answer,
    position,
    request,
    stream,
    usage,
)
from scripted_server import Mark, Received, ScriptedServer, Step, answer, chunked, serving

from conviction.answers import kind
from conviction.core import FinishReason, Question
from conviction.engines.base import Capabilities
from conviction.engines.openai import OpenAIEngine, servers
from conviction.errors import EngineUnavailableError, NothingGeneratedError, StreamError
from conviction.policies import Majority
from conviction.thinking import deliberate
from conviction.verdict import Verdict

pytestmark = pytest.mark.anyio

TOKEN = event("= 4 ", position(-1.0, -1.0))
GOOD = [stream(TOKEN, STOP)]


def listing(play: Callable[[Received], Sequence[Step]]) -> Callable[[Received], Sequence[Step]]:
    """A server that lists its models whatever else it does."""
    models = [json_answer({"data": [{"id": "m"}]})]
    return lambda received: play(received) if received.body else models


def opened(*servers: ScriptedServer, **settings: Any) -> OpenAIEngine:
    engine = OpenAIEngine([server.url for server in servers], **settings)
    engine._capabilities = Capabilities("m", 2, 8)
    return engine


async def think(engine: OpenAIEngine, budget: int) -> Verdict:
    return await deliberate(
        Question.ask("?"), engine=engine, policy=Majority(budget=budget), answers=kind("number")
    )


def posts(server: ScriptedServer) -> int:
    return sum(received.body is not None for received in server.requests)


@pytest.mark.parametrize(
    "bad",
    [
        [json_answer({"error": "who are you?"}, "401 Unauthorized")],
        [json_answer({"error": "no such model"}, "404 Not Found")],
        [json_answer({"error": {"code": "insufficient_quota"}}, "429 Too Many Requests")],
        [stream({"error": "always"})],
        [chunked(events(TOKEN)), Mark.RESET],
    ],
)
async def test_a_server_that_fails_every_time_does_not_take_the_traces_of_a_good_one(
    bad: list[Step],
) -> None:
    slowly = [answer("200 OK", b"", "text/event-stream"), 0.02, events(TOKEN, STOP) + DONE]
    async with (
        serving(listing(lambda _: bad)) as first,
        serving(listing(lambda _: slowly)) as second,
        opened(first, second, concurrency=4) as engine,
    ):
        verdict = await think(engine, 24)
        assert_idle(engine)
    assert [trace.finish for trace in verdict.traces] == [FinishReason.STOP] * 24
    assert posts(first) <= 8


async def test_a_server_that_is_well_again_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)
    once: list[Sequence[Step]] = [[chunked(events(TOKEN)), Mark.RESET]]
    async with (
        serving(listing(lambda _: once.pop() if once else GOOD)) as first,
        serving(listing(lambda _: GOOD)) as second,
        opened(first, second, concurrency=64) as engine,
    ):
        await think(engine, 2)
        before = posts(first)
        for _ in range(8):
            await anyio.sleep(0.02)
            await think(engine, 2)
    assert posts(first) >= before + 4


async def test_what_came_before_a_fault_in_the_same_read_counts() -> None:
    faulty = [stream(*[TOKEN] * 50, {"error": "no"})]
    async with serving(listing(lambda _: faulty)) as server, opened(server) as engine:
        chunks = engine.stream(request())
        assert (await anext(chunks)).confidences.size == 50
        with pytest.raises(StreamError, match="no"):
            await anext(chunks)


@pytest.mark.parametrize("end", [[Mark.RESET], [Mark.UNTIL_HANG_UP], []])
async def test_a_trace_that_has_ended_is_whole_however_its_connection_ends(
    end: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conviction.engines.openai.http._FAREWELL_SECONDS", 0.1)
    steps = [chunked(events(TOKEN, STOP)), 0.05, *end]
    async with serving(listing(lambda _: steps)) as server, opened(server) as engine:
        with anyio.fail_after(3):
            chunks = await collect(engine)
    assert joined(chunks)[0] == "= 4 "
    assert chunks[-1].finish is FinishReason.STOP


async def test_a_last_event_without_its_empty_line_is_read() -> None:
    whole = answer("200 OK", events(TOKEN, STOP) + events(TOKEN)[:-2], "text/event-stream")
    async with serving(listing(lambda _: [whole])) as server, opened(server) as engine:
        assert joined(await collect(engine))[0] == "= 4 = 4 "


async def test_lists_longer_than_asked_for_are_no_cut_ones() -> None:
    # With k = 3, a list of 4 holds the 3 best, whichever stands first.
    place = position(-9.0, -1.0, -2.0, -3.0)
    steps = [stream(event("a", place), STOP)]
    async with serving(listing(lambda _: steps)) as server, opened(server) as engine:
        assert joined(await collect(engine, request(3)))[1] == [2.0]


async def test_an_unlikely_sample_does_not_take_the_place_of_the_third_best() -> None:
    place = position(-9.0, -1.0, -2.0)
    steps = [stream(event("a", place), STOP)]
    async with serving(listing(lambda _: steps)) as server, opened(server) as engine:
        assert joined(await collect(engine, request(3)))[1] == [pytest.approx(5 / 3)]


# --- What is remembered ---------------------------------------------------------------------------


class Changing:
    """A server whose abilities change: the log-probabilities it gives, the filters it takes."""

    def __init__(self, *, most: int, strict: bool = False) -> None:
        self.most, self.strict = most, strict

    def __call__(self, received: Received) -> Sequence[Step]:
        body = received.body
        if self.strict and "top_k" in body:
            return [json_answer({"error": "unknown field top_k"}, "400 Bad Request")]
        asked = min(body.get("top_logprobs", 0), self.most)
        places = [position(*[-1.0 - n for n in range(asked)])] if asked else []
        if body["stream"]:
            return [stream(event("= 4 ", *places), STOP, usage(3, 1))]
        choice = {"message": {"content": "= 4"}, "logprobs": {"content": places}}
        return [json_answer({"choices": [choice]})]


async def test_that_there_are_no_log_probabilities_is_not_remembered(tmp_path: Path) -> None:
    changing = Changing(most=0)
    async with serving(listing(changing)) as server:
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            assert (await engine.capabilities()).top_k == 0
        changing.most = 20
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            assert (await engine.capabilities()).top_k == 20


async def test_a_trace_without_any_makes_the_next_run_look_again(tmp_path: Path) -> None:
    changing = Changing(most=20)
    async with serving(listing(changing)) as server:
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            await engine.capabilities()
            changing.most = 0
            await collect(engine, request(20))
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            assert (await engine.capabilities()).top_k == 0


async def test_a_refusal_that_rests_on_what_is_remembered_has_it_asked_anew(
    tmp_path: Path,
) -> None:
    changing = Changing(most=20)
    async with serving(listing(changing)) as server:
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            await engine.capabilities()
        changing.strict = True
        async with OpenAIEngine(server.url, facts_folder=tmp_path) as engine:
            await engine.capabilities()
            verdict = await think(engine, 4)
    assert [trace.finish for trace in verdict.traces] == [FinishReason.STOP] * 4
    assert verdict.top_k == 20


# --- Before the first trace -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["interrupt", "time"])
async def test_a_server_that_never_answers_does_not_hold_a_run_that_is_to_end(how: str) -> None:
    interrupt = anyio.Event()
    async with serving([Mark.UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        with anyio.fail_after(3):
            async with anyio.create_task_group() as tasks:
                if how == "interrupt":
                    tasks.start_soon(_set_later, interrupt)
                with pytest.raises(NothingGeneratedError, match="not one token") as caught:
                    await deliberate(
                        Question.ask("?"),
                        engine=engine,
                        policy=Majority(budget=2),
                        answers=kind("number"),
                        interrupt=interrupt,
                        time_limit=0.1 if how == "time" else None,
                    )
                tasks.cancel_scope.cancel()
    assert caught.value.ended == ("interrupted" if how == "interrupt" else "time")


async def _set_later(event: anyio.Event) -> None:
    await anyio.sleep(0.05)
    event.set()


async def test_a_page_that_is_no_list_of_models_points_at_the_address() -> None:
    page = [answer("200 OK", b"<html>Hello</html>", "text/html")]
    async with serving(page) as server, OpenAIEngine(server.url) as engine:
        with pytest.raises(EngineUnavailableError) as caught:
            await engine.capabilities()
    assert "/v1" in caught.value.remedy


def test_the_same_server_twice_is_one_server() -> None:
    engine = OpenAIEngine(["http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1/"])
    assert len(engine.servers) == 1


async def test_a_server_that_asks_for_too_much_time_is_given_up_with_its_wish() -> None:
    busy = [answer("429 Too Many Requests", b"busy", Retry_After="3600")]
    async with (
        serving(listing(lambda _: busy)) as server,
        opened(server) as engine,
    ):
        with pytest.raises(EngineUnavailableError, match="wait 3,600 s"), anyio.fail_after(3):
            await collect(engine)
