"""What is sent to a server, and how its answer is carried."""

import time
from contextlib import aclosing

import anyio
import pytest
from completion_events import (
    DONE,
    KEY,
    SOME,
    STOP,
    collect,
    events,
    joined,
    plain,
    played,
    request,
    stream,
)
from scripted_server import Mark, answer, chunk, chunked, serving

from conviction.core import FinishReason, Message, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.openai import OpenAIEngine, Route, Timeouts
from conviction.errors import InvalidSettingError

pytestmark = pytest.mark.anyio


async def test_tokens_arrive_as_they_are_sent() -> None:
    head = answer("200 OK", b"", "text/event-stream")
    steps = [head, events(SOME), 0.05, events(SOME, SOME), 0.05, events(STOP) + DONE]
    chunks = await played(steps)
    assert [(chunk.text, chunk.finish) for chunk in chunks] == [
        ("a", None),
        ("aa", None),
        ("", FinishReason.STOP),
    ]


async def test_the_request_spells_out_filters_that_are_off_and_sends_the_key() -> None:
    async with (
        serving([stream(STOP)]) as server,
        OpenAIEngine(server.url, model="m", api_key=KEY, extra={"user": "me"}) as engine,
    ):
        await collect(engine, request(5, Sampling(temperature=0.3, top_k=40, max_tokens=11)))
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Why?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 5,
        "seed": 7,
        "temperature": 0.3,
        "top_k": 40,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 11,
        "user": "me",
    }


async def test_without_confidence_no_log_probabilities_are_asked_for() -> None:
    async with serving([stream(STOP)]) as server, OpenAIEngine(server.url) as engine:
        await collect(engine, request(0))
    assert not {"logprobs", "top_logprobs"} & set(server.requests[0].body)


async def test_a_templated_prompt_goes_to_the_model_as_it_is() -> None:
    steps = [stream(plain("a", {"top_logprobs": [{"t1": -1.0, "t2": -1.0}]}, finish="stop"))]
    async with (
        serving(steps) as server,
        OpenAIEngine(server.url, route=Route.COMPLETIONS) as engine,
    ):
        assert joined(await collect(engine)) == ("a", [1.0])
        chat = (Message("system", "Be brief."), Message("user", "Why?"))
        with pytest.raises(InvalidSettingError, match="a chat of 2 messages"):
            await collect(engine, TraceRequest(chat, Sampling()))
        assert engine._balancer.endpoints[0].open == 0
    sent = server.requests[0]
    assert sent.path == "/v1/completions"
    assert (sent.body["prompt"], sent.body["logprobs"]) == ("Why?", 2)
    assert not {"messages", "top_logprobs"} & set(sent.body)


async def test_a_connection_is_used_again_and_one_dropped_meanwhile_is_made_anew() -> None:
    # The end of an answer may come after the last event.
    steps = [chunked(events(SOME, STOP) + DONE), 0.02, chunk(b"")]
    async with serving(steps, keeps_alive=True) as server, OpenAIEngine(server.url) as engine:
        for _ in range(3):
            await collect(engine)
        assert server.connections == 1
        server.keeps_alive = False
        await collect(engine)
        await anyio.sleep(0.05)
        chunks = await collect(engine)
    assert joined(chunks) == ("a", [1.0])
    assert server.connections == 2


async def test_a_server_that_does_not_end_its_answer_is_not_waited_for() -> None:
    steps = [chunked(events(SOME, STOP) + DONE), Mark.UNTIL_HANG_UP]
    began = time.perf_counter()
    assert joined(await played(steps)) == ("a", [1.0])
    assert time.perf_counter() - began < 1


async def test_a_reader_that_takes_its_time_is_no_silence_of_the_server() -> None:
    steps = [chunked(events(SOME)), 0.1, chunk(events(SOME, STOP)), chunk(b"")]
    async with (
        serving(steps) as server,
        OpenAIEngine(server.url, timeouts=Timeouts(stall=0.3)) as engine,
        aclosing(engine.stream(request())) as chunks,
    ):
        found = [await anext(chunks)]
        await anyio.sleep(0.7)
        found += [chunk async for chunk in chunks]
    assert joined(found)[0] == "aa"
