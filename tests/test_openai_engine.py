"""The HTTP engine against a scripted server on loopback that plays bytes, faults included."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import (
    DONE,
    KEY,
    RESET,
    STOP,
    UNTIL_HANG_UP,
    Received,
    ScriptedServer,
    Step,
    answer,
    event,
    events,
    joined,
    position,
    request,
    serving,
    stream,
    usage,
)

from conviction.core import FinishReason, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.openai import OpenAIEngine, Timeouts
from conviction.engines.openai.events import TraceReader
from conviction.engines.openai.sse import EventParser
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    StreamError,
)


async def collect(engine: OpenAIEngine, asked: TraceRequest | None = None) -> list[Chunk]:
    async with aclosing(engine.stream(asked or request())) as chunks:
        return [chunk async for chunk in chunks]


async def played(*payloads: object, top_k: int = 2, end: bytes = DONE) -> list[Chunk]:
    async with serving([stream(*payloads, end=end)]) as server, OpenAIEngine(server.url) as engine:
        return await collect(engine, request(top_k))


async def failure(
    steps: Sequence[Step], kind: type[EngineError] = EngineError, **settings: Any
) -> EngineError:
    """The error that a stream ends in; bounded, as a hang would be the worst of faults."""
    settings = {"retries": 0, **settings}
    with anyio.fail_after(5):
        async with serving(steps) as server, OpenAIEngine(server.url, **settings) as engine:
            with pytest.raises(kind) as caught:
                await collect(engine)
    error = caught.value
    assert type(error) is kind
    assert error.tried
    assert error.found
    assert error.remedy
    return error


# --- What a stream says -----------------------------------------------------------------------


@pytest.mark.anyio
async def test_text_and_confidences_come_with_the_finish_in_the_last_chunk() -> None:
    chunks = await played(
        event("Be", position(-1.0, -3.0)),
        event("cause", position(-2.0, -2.0)),
        STOP,
        usage(9, 2, 4),
    )
    assert joined(chunks) == ("Because", [2.0, 2.0])
    assert [chunk.finish for chunk in chunks] == [None, FinishReason.STOP]
    assert (chunks[-1].prompt_tokens, chunks[-1].cached_tokens) == (9, 4)
    assert all(chunk.confidences.dtype == np.float32 for chunk in chunks)


@pytest.mark.anyio
async def test_only_the_k_largest_log_probabilities_count() -> None:
    chunks = await played(event("a", position(-9.0, -1.0, -2.0)), STOP, top_k=2)
    assert joined(chunks)[1] == [1.5]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "unusable",
    [
        position(-1.0, -math.inf),
        position(-1.0, -9999.0),
        position(-1.0, math.nan),
        position(-1.0, None),
        position(-1.0),
        {"token": "x", "top_logprobs": [{"token": "y", "logprob": -1.0}, {"token": "z"}]},
        {"token": "x", "top_logprobs": None},
        {"token": "x"},
    ],
)
async def test_a_token_without_k_usable_log_probabilities_counts_with_unknown_confidence(
    unusable: object,
) -> None:
    _, confidences = joined(await played(event("ab", unusable, position(-1.0, -2.0)), STOP))
    assert confidences == [pytest.approx(math.nan, nan_ok=True), 1.5]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "parts",
    [
        [event("word"), event(None, position(-1.0, -1.0))],
        [event(None, position(-1.0, -1.0)), event("word")],
        [event("word", position(-1.0, -1.0))],
    ],
)
async def test_log_probabilities_may_come_before_with_or_after_their_text(
    parts: list[object],
) -> None:
    assert joined(await played(*parts, STOP)) == ("word", [1.0])


@pytest.mark.anyio
async def test_log_probabilities_in_the_finishing_event_are_kept() -> None:
    last = event("b", position(-1.0, -1.0), finish="length")
    chunks = await played(event("a", position(-2.0, -2.0)), last)
    assert joined(chunks) == ("ab", [2.0, 1.0])
    assert chunks[-1].finish is FinishReason.LENGTH


@pytest.mark.anyio
async def test_the_token_that_ends_a_trace_counts_though_it_has_no_log_probabilities() -> None:
    _, confidences = joined(await played(event("a", position(-1.0, -1.0)), STOP, usage(5, 2)))
    assert confidences == [1.0, pytest.approx(math.nan, nan_ok=True)]


@pytest.mark.anyio
async def test_tokens_generated_in_silence_are_counted_where_they_lie() -> None:
    # llama.cpp: the pieces of a character give one event, with the last piece's numbers.
    piecewise = event("한", position(-2.0, -2.0), timings={"predicted_n": 4, "prompt_n": 3})
    chunks = await played(event("a", position(-1.0, -1.0)), piecewise, STOP, usage(3, 4))
    unknown = pytest.approx(math.nan, nan_ok=True)
    assert joined(chunks) == ("a한", [1.0, unknown, unknown, 2.0])
    assert chunks[1].prompt_tokens == 3


@pytest.mark.anyio
async def test_without_log_probabilities_tokens_are_counted_all_the_same() -> None:
    chunks = await played(event("a"), event("b"), STOP, usage(5, 4), top_k=0)
    text, confidences = joined(chunks)
    assert text == "ab"
    assert len(confidences) == 4
    assert np.isnan(confidences).all()


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_what_a_model_thinks_is_part_of_its_trace(name: str) -> None:
    thinking = event(None, position(-1.0, -1.0))
    thinking["choices"][0]["delta"] = {name: "Hm. ", "content": None}
    chunks = await played(thinking, event("42", position(-2.0, -2.0)), STOP)
    assert joined(chunks) == ("Hm. 42", [1.0, 2.0])


@pytest.mark.anyio
async def test_a_stream_may_end_without_the_word_done() -> None:
    assert (await played(event("a"), STOP, end=b""))[-1].finish is FinishReason.STOP


@pytest.mark.anyio
async def test_the_request_spells_out_filters_that_are_off_and_sends_the_key() -> None:
    async with (
        serving([stream(STOP)]) as server,
        OpenAIEngine(server.url, model="m", api_key=KEY, extra={"user": "me"}) as engine,
    ):
        await collect(engine, request(5, Sampling(temperature=0.3, top_k=40, max_tokens=11)))
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
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
        "max_tokens": 11,
        "user": "me",
    }


@pytest.mark.anyio
async def test_servers_that_refuse_unknown_filters_are_not_sent_them() -> None:
    async with (
        serving([stream(STOP)]) as server,
        OpenAIEngine(server.url, filters_off={}) as engine,
    ):
        await collect(engine, request(0))
    assert not {"top_k", "min_p", "top_p", "logprobs"} & set(server.requests[0].body)


@pytest.mark.anyio
async def test_a_proxy_for_the_outside_world_is_not_asked_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert joined(await played(event("a", position(-1.0, -1.0)), STOP))[0] == "a"


# --- However the bytes are cut ------------------------------------------------------------------

TRACE = [
    event("Schöne ", position(-1.0, -3.0), position(-1.5, -1.5)),
    event("Grüße, 세상 🌍\n", position(-0.5, -2.5)),
    event("", position(-1.0, -1.0)),
    STOP,
    usage(3, 5, 1),
]


def unescaped(payload: object) -> str:
    return json.dumps(payload, ensure_ascii=False, indent=1)


def whole_stream(line_end: str, comments: list[bool]) -> bytes:
    """The trace as a stream of events whose data takes many lines, with pings in between."""
    lines: list[str] = []
    for payload, comment in zip([*map(unescaped, TRACE), "[DONE]"], comments, strict=True):
        if comment:
            lines += [": ping", "event: message", "id: 3", "retry: 10", ""]
        lines += [f"data: {line}" for line in payload.split("\n")]
        lines.append("")
    return (line_end.join(lines) + line_end).encode()


def read(pieces: Sequence[bytes]) -> tuple[str, list[float], Chunk]:
    parser, reader = EventParser(), TraceReader(2)
    found: list[Chunk] = []
    for piece in pieces:
        found += filter(None, [reader.read(parser.feed(piece))])
    found += filter(None, [reader.read(parser.finish())])
    assert reader.done
    last = reader.finish()
    return *joined([*found, last]), last


@given(
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.booleans(), min_size=len(TRACE) + 1, max_size=len(TRACE) + 1),
    st.one_of(st.none(), st.lists(st.integers(0, 5000), max_size=40)),
)
def test_any_split_of_the_bytes_gives_the_same_trace(
    line_end: str, comments: list[bool], cuts: list[int] | None
) -> None:
    data = whole_stream(line_end, comments)
    if cuts is None:
        pieces = [bytes([byte]) for byte in data]
    else:
        places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
        pieces = [data[begin:end] for begin, end in pairwise(places)]
    text, confidences, last = read(pieces)
    assert text == "Schöne Grüße, 세상 🌍\n"
    assert confidences[:4] == [2.0, 1.5, 1.5, 1.0]
    assert math.isnan(confidences[4])
    assert len(confidences) == 5
    assert (last.finish, last.prompt_tokens, last.cached_tokens) == (FinishReason.STOP, 3, 1)


@pytest.mark.anyio
async def test_a_character_cut_in_two_between_packets_arrives_whole() -> None:
    data = whole_stream("\n", [False] * 6)
    middle = data.index("🌍".encode()) + 2
    head = answer("200 OK", b"", "text/event-stream")
    steps = [head, data[:middle], 0.05, data[middle:]]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        chunks = await collect(engine)
    assert joined(chunks)[0] == "Schöne Grüße, 세상 🌍\n"
    assert len(chunks) == 4


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_an_event_without_end_is_refused_before_it_fills_the_memory(line_end: bytes) -> None:
    parser = EventParser(most_bytes=1000)
    with pytest.raises(StreamError, match="more than 1,000 bytes"):
        endlessly(parser, b"data: " + b"x" * 50 + line_end)


def endlessly(parser: EventParser, piece: bytes) -> None:
    for _ in range(100):
        parser.feed(piece)


# --- Faults -------------------------------------------------------------------------------------

SOME = event("a", position(-1.0, -1.0))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([stream(SOME, end=b"")], "in the middle of the trace, after 1 tokens"),
        ([stream(SOME)], "in the middle of the trace"),
        ([stream(end=b"")], "after 0 tokens"),
        ([stream(SOME, end=b"data: {'no json\n\n")], "malformed"),
        ([stream(SOME, end=b'data: {"choices": [{"del')], "malformed"),
        ([stream(SOME, end=b"data: [1, 2]\n\n")], "malformed"),
        ([stream(SOME, {"error": {"message": "out of memory", "code": 500}})], "out of memory"),
        ([stream(SOME, {"error": "out of memory"})], "out of memory"),
        ([stream(SOME, event(finish="content_filter"))], "content_filter"),
        ([stream(SOME, end=b""), RESET], ""),
        ([answer("200 OK", b"<html>Log in!</html>", "text/html")], "text/html: <html>Log in!"),
        ([answer("200 OK", b'{"error": {"message": "busy"}}')], "busy"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_of_its_trace(steps: list[Step], words: str) -> None:
    error = await failure(steps, StreamError)
    assert words in error.found


@pytest.mark.anyio
async def test_a_chunked_answer_that_is_cut_is_an_error_of_its_trace() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    error = await failure([head + b"ff\r\n" + events(SOME)], StreamError)
    assert "incomplete" in error.found


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("401 Unauthorized", f"bad key {KEY}", EngineUnavailableError, "bad key …"),
        ("403 Forbidden", f'{{"error": "{KEY}"}}', EngineUnavailableError, "403"),
        (
            "404 Not Found",
            '{"error": {"message": "no model m"}}',
            EngineUnavailableError,
            "no model m",
        ),
        ("429 Too Many Requests", "slow down", EngineUnavailableError, "slow down"),
        ("500 Internal Server Error", "", EngineUnavailableError, "no reason given"),
        ("503 Service Unavailable", "loading", EngineUnavailableError, "loading"),
        ("400 Bad Request", '{"detail": "bad top_k"}', EngineError, "bad top_k"),
        (
            "400 Bad Request",
            '{"error": {"message": "too long", "type": "exceed_context_size_error"}}',
            ContextOverflowError,
            "too long",
        ),
        (
            "400 Bad Request",
            '{"object": "error", "message": "maximum context length is 2048 tokens"}',
            ContextOverflowError,
            "2048",
        ),
    ],
)
async def test_each_refusal_of_a_server_has_its_error_and_never_shows_the_key(
    status: str, body: str, kind: type[EngineError], words: str
) -> None:
    error = await failure([answer(status, body.encode())], kind, api_key=KEY)
    assert words in error.found
    assert KEY not in str(error)


@pytest.mark.anyio
async def test_a_redirect_is_not_followed() -> None:
    async with serving([stream(STOP)]) as other:
        moved = answer("307 Temporary Redirect", b"", Location=other.url)
        error = await failure([moved], EngineUnavailableError, api_key=KEY)
        assert other.url in error.found
        assert not other.requests


@pytest.mark.anyio
async def test_a_refused_connection_is_named_with_the_address() -> None:
    async with serving([]) as server:
        url = server.url
    async with OpenAIEngine(url) as engine:
        with pytest.raises(EngineUnavailableError, match=url):
            await collect(engine)


@pytest.mark.anyio
async def test_a_server_that_closes_without_an_answer_is_an_error() -> None:
    await failure([], EngineUnavailableError)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([UNTIL_HANG_UP], EngineUnavailableError),
        ([stream(SOME, end=b""), UNTIL_HANG_UP], StreamError),
        ([answer("500 Internal Server Error", b"not fin"), UNTIL_HANG_UP], StreamError),
    ],
)
async def test_a_server_that_falls_silent_is_given_up(
    steps: list[Step], kind: type[EngineError]
) -> None:
    error = await failure(steps, kind, timeouts=Timeouts(first_byte=0.2, stall=0.2))
    assert "not a byte came" in error.found


@pytest.mark.anyio
async def test_pings_keep_a_slow_stream_alive() -> None:
    ping = b": still there\n\n"
    head = answer("200 OK", b"", "text/event-stream")
    steps = [head, *[ping, 0.15] * 4, events(SOME, STOP) + DONE]
    async with (
        serving(steps) as server,
        OpenAIEngine(server.url, timeouts=Timeouts(stall=0.4)) as engine,
    ):
        assert joined(await collect(engine))[0] == "a"


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["http://[", "no address", ""])
async def test_an_unusable_address_is_an_error(url: str) -> None:
    with pytest.raises(EngineUnavailableError):
        async with OpenAIEngine(url) as engine:
            await collect(engine)


@pytest.mark.anyio
async def test_an_engine_that_is_not_started_says_so() -> None:
    with pytest.raises(EngineUnavailableError, match="not started"):
        await collect(OpenAIEngine("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    "settings", [{"concurrency": 0}, {"stall_timeout": 0}, {"connect_timeout": math.nan}]
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettingError):
        OpenAIEngine("http://127.0.0.1:9/v1", **settings)


# --- Stopping -----------------------------------------------------------------------------------


async def hung_up(server: ScriptedServer) -> None:
    with anyio.fail_after(1):
        await server.hung_up.wait()


@pytest.mark.anyio
async def test_closing_the_generator_closes_the_connection_at_once() -> None:
    steps = [stream(SOME, end=b""), UNTIL_HANG_UP]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        async with aclosing(engine.stream(request())) as chunks:
            assert (await anext(chunks)).text == "a"
        await hung_up(server)


@pytest.mark.anyio
@pytest.mark.parametrize("before", [stream(SOME, end=b""), b""])
async def test_cancelling_the_reader_closes_the_connection_at_once(before: bytes) -> None:
    async with serving([before, UNTIL_HANG_UP]) as server, OpenAIEngine(server.url) as engine:
        with anyio.move_on_after(0.2) as scope:
            await collect(engine)
        assert scope.cancelled_caught
        await hung_up(server)


@pytest.mark.anyio
async def test_further_traces_wait_their_turn_and_a_cancelled_one_gives_its_place_back() -> None:
    steps = [stream(SOME, end=b""), 0.05, events(STOP)]
    async with serving(steps) as server, OpenAIEngine(server.url, concurrency=2) as engine:
        async with anyio.create_task_group() as tasks:
            for delay in (10.0, 10.0, 0.01, 0.06, 10.0):
                tasks.start_soon(_collect_for, delay, engine)
        assert server.most_open == 2
        began = time.perf_counter()
        await collect(engine)
        assert time.perf_counter() - began < 2


async def _collect_for(seconds: float, engine: OpenAIEngine) -> None:
    with anyio.move_on_after(seconds):
        await collect(engine)


# --- What a server can do -----------------------------------------------------------------------


def probed_server(limit: int) -> Callable[[Received], Sequence[Step]]:
    """A server that gives at most `limit` log-probabilities, and refuses to be asked for more."""

    def play(received: Received) -> Sequence[Step]:
        if received.path.endswith("/models"):
            listed = [{"id": "small", "meta": {"n_ctx": 2048}}, {"id": "big", "max_model_len": 99}]
            return [answer("200 OK", json.dumps({"data": listed}).encode())]
        asked = received.body.get("top_logprobs", 0)
        if asked > limit:
            return [answer("400 Bad Request", b'{"error": "top_logprobs must be less"}')]
        choice = {"logprobs": {"content": [position(*[-1.0] * asked)]}} if asked else {}
        return [answer("200 OK", json.dumps({"choices": [choice]}).encode())]

    return play


@pytest.mark.anyio
@pytest.mark.parametrize(("limit", "found"), [(20, 20), (5, 5), (0, 0)])
async def test_the_largest_k_is_probed_once(limit: int, found: int) -> None:
    async with serving(probed_server(limit)) as server, OpenAIEngine(server.url) as engine:
        first = await engine.capabilities()
        asked = len(server.requests)
        assert await engine.capabilities() == first
        assert len(server.requests) == asked
    assert (first.model, first.top_k, first.context) == ("small", found, 2048)
    assert "small" in engine.name


@pytest.mark.anyio
async def test_the_named_model_is_looked_up() -> None:
    async with (
        serving(probed_server(20)) as server,
        OpenAIEngine(server.url, model="big") as engine,
    ):
        assert (await engine.capabilities()).context == 99
        assert server.requests[-1].body["model"] == "big"


@pytest.mark.anyio
async def test_a_server_that_leaves_log_probabilities_out_is_found_to_give_none() -> None:
    both: dict[str, Any] = {"data": [{"id": "m"}], "choices": [{"message": {"content": "1"}}]}
    steps = [answer("200 OK", json.dumps(both).encode())]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        assert (await engine.capabilities()).top_k == 0


@pytest.mark.anyio
async def test_an_unreachable_server_has_no_capabilities() -> None:
    steps = [answer("503 Service Unavailable", b"loading")]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        with pytest.raises(EngineUnavailableError, match="loading"):
            await engine.capabilities()
