"""A stream that breaks is an error of its trace alone; no stream is read without a bound."""

import gzip
import math

import anyio
import pytest
from completion_events import (
    DONE,
    SOME,
    STOP,
    collect,
    event,
    events,
    failure,
    joined,
    played,
    position,
    request,
    stream,
    usage,
)
from scripted_server import Mark, Step, answer, chunked, serving

from conviction.core import Sampling
from conviction.engines.openai import OpenAIEngine, http
from conviction.engines.openai import events as parsing
from conviction.errors import EngineError, EngineUnavailableError, StreamError

pytestmark = pytest.mark.anyio
HEAD = answer("200 OK", b"", "text/event-stream")


# --- A stream that breaks -------------------------------------------------------------------------


def deep(levels: int) -> bytes:
    return b'data: {"x": ' + b"[" * levels + b"]" * levels + b"}\n\n"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([stream(SOME, end=b"")], "in the middle of the trace, after 1 tokens"),
        ([stream(SOME)], "in the middle of the trace"),
        ([stream(end=b"")], "after 0 tokens"),
        ([stream(SOME, end=b""), 0.05, Mark.RESET], "in the middle of the trace"),
        ([chunked(events(SOME)), 0.05, Mark.RESET], "reset"),
        ([stream(SOME, end=b"data: {'no json\n\n")], "malformed data came: {'no json"),
        ([stream(SOME, end=b'data: {"choices": [{"del')], "malformed"),
        ([stream(SOME, end=b"data: [1, 2]\n\n")], "malformed"),
        ([stream(SOME, end=b"data: \xff\xfe\n\n")], "malformed"),
        ([stream(SOME, end=b"data: \0\n\n")], "malformed"),
        ([stream(SOME, end=b'data: {"choices": [{"text": "\xff"}]}\n\n')], "malformed"),
        ([stream(SOME, end=deep(100_000))], "malformed"),
        ([stream(SOME, end=b"\0" * 1000)], "in the middle"),
        (
            [stream(SOME, {"error": {"message": "out of memory", "code": 500}})],
            "reported an error: out of memory",
        ),
        ([stream(SOME, {"error": "out of memory"})], "out of memory"),
        ([stream(SOME, {"error": {"error": {"detail": "out of memory"}}})], "out of memory"),
        ([stream(SOME, {"error": {"code": math.nan}})], "error"),
        ([stream(*[SOME] * 80)], "more than were asked for"),
        ([stream(*[SOME] * 80, STOP)], "more than were asked for"),
        ([stream(SOME, STOP, usage(3, 80))], "counts 80 tokens"),
        ([chunked(events(SOME)), 0.05, b"zz\r\n"], "no HTTP"),
        ([chunked(events(SOME)) + b"ff\r\n" + events(SOME)], ""),
        ([chunked(events(SOME))], ""),
        ([answer("200 OK", b"no gzip", "text/event-stream", Content_Encoding="gzip")], ""),
    ],
)
async def test_a_stream_that_breaks_is_an_error_of_its_trace(steps: list[Step], words: str) -> None:
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        with pytest.raises(StreamError) as caught, anyio.fail_after(5):
            await collect(engine, request(sampling=Sampling(max_tokens=20)))
        assert len(server.requests) == 1  # To begin again is for the driver to decide.
        endpoint = engine._balancer.endpoints[0]
    assert words in caught.value.found
    assert (endpoint.open, endpoint.trusted) == (0, False)


async def test_trouble_reported_in_place_of_a_stream_is_an_error_of_its_trace() -> None:
    error = await failure([answer("200 OK", b'{"error": {"message": "busy"}}')], StreamError)
    assert error.found == "it answered with application/json: busy"


async def test_an_error_that_says_nothing_is_no_error() -> None:
    chunks = await played([stream({**SOME, "error": None}, {**STOP, "error": {}})])
    assert joined(chunks) == ("a", [1.0])


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html; charset=utf-8", b"<html>Log in!</html>"), ("", b"Log in!")],
)
async def test_a_page_in_place_of_a_stream_is_no_server_of_completions(
    content_type: str, body: bytes
) -> None:
    error = await failure([answer("200 OK", body, content_type)], EngineUnavailableError)
    assert "Log in!" in error.found


async def test_a_stream_packed_against_our_wish_is_read_all_the_same() -> None:
    packed = gzip.compress(events(SOME, STOP) + DONE)
    chunks = await played([answer("200 OK", packed, "text/event-stream", Content_Encoding="gzip")])
    assert joined(chunks) == ("a", [1.0])


# --- Too much -------------------------------------------------------------------------------------


async def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MOST_EVENT_BYTES", 1000)
    monkeypatch.setattr(parsing.EventParser.__init__, "__defaults__", (1000,))
    error = await failure([HEAD, b"data: ", *[b"x" * 300] * 50], StreamError)
    assert "one event has more than 1,000 bytes" in error.found


@pytest.mark.parametrize("packed", [False, True])
async def test_a_trace_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    monkeypatch.setattr("conviction.engines.openai.traces._TRACE_BYTES", 100_000)
    monkeypatch.setattr("conviction.engines.openai.traces._TOKEN_BYTES", 0)
    pings = b": ping\n\n" * 30_000
    head, body = (HEAD, pings)
    if packed:
        head = answer("200 OK", b"", "text/event-stream", Content_Encoding="gzip")
        body = gzip.compress(pings)
    error = await failure([head, body], StreamError)
    assert "more than 100,000 bytes" in error.found


async def test_of_an_answer_without_end_only_the_beginning_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_MOST_ANSWER_BYTES", 10_000)
    steps = [answer("400 Bad Request", b"top_k! "), *[b"x" * 5000] * 50, Mark.UNTIL_HANG_UP]
    error = await failure(steps, EngineError)
    assert "top_k!" in error.found
    assert len(error.found) < 400


async def test_tokens_beyond_the_limit_by_a_few_are_let_pass() -> None:
    many = [event("a", position(-1.0, -1.0)) for _ in range(8)]
    steps = [stream(*many, STOP, usage(3, 9))]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        chunks = await collect(engine, request(sampling=Sampling(max_tokens=7)))
    assert len(joined(chunks)[1]) == 9
