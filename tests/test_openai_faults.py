"""What goes wrong on the way to a server, and what comes of it: another try, or a clear error."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, repeat
from typing import Any

import anyio
import pytest
from completion_events import (
    DONE,
    SOME,
    STOP,
    collect,
    events,
    failure,
    joined,
    played,
    stream,
    usage,
)
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_server import Mark, Received, Step, answer, chunked, serving

from conviction.engines.openai import OpenAIEngine, Timeouts, failures, servers
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    StreamError,
    TemporarilyUnavailableError,
)

pytestmark = pytest.mark.anyio
GOOD = stream(SOME, STOP)
HEAD = answer("200 OK", b"", "text/event-stream")
QUICK = Timeouts(connect=0.3, first_byte=0.3, stall=0.3)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)


def after(*refusals: Sequence[Step]) -> Callable[[Received], Sequence[Step]]:
    """A server that refuses some traces, then takes them; it always lists its models."""
    plays = chain(refusals, repeat([GOOD]))

    def play(received: Received) -> Sequence[Step]:
        listing = received.path.endswith("/models")
        return [answer("200 OK", b'{"data": []}')] if listing else next(plays)

    return play


# --- No answer ------------------------------------------------------------------------------------


async def test_a_refused_connection_is_named_with_the_address() -> None:
    async with serving([]) as server:
        url = server.url
    async with OpenAIEngine(url, patience=0.3) as engine:
        with pytest.raises(TemporarilyUnavailableError, match=url), anyio.fail_after(5):
            await collect(engine)


async def test_a_server_that_begins_to_listen_meanwhile_gets_the_trace() -> None:
    async with serving([]) as server:
        port = int(server.url.split(":")[2].split("/")[0])

    async def listen_later() -> None:
        await anyio.sleep(0.1)
        async with serving(after(), port=port):
            await done.wait()

    done = anyio.Event()
    async with anyio.create_task_group() as tasks, OpenAIEngine(server.url, retries=9) as engine:
        tasks.start_soon(listen_later)
        with anyio.fail_after(5):
            chunks = await collect(engine)
        done.set()
    assert joined(chunks) == ("a", [1.0])
    assert "had to be sent again" in chunks[0].notes[0]
    assert server.url in chunks[0].notes[0]


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Mark.RESET],
        [b"HTTP/1.1 200 OK\r\nContent-Ty", Mark.RESET],
        [Mark.HALF_CLOSE, Mark.UNTIL_HANG_UP],
        [b"SSH-2.0-OpenSSH_9.6\r\n"],
        [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"],
        [b"\0" * 1000],
        [b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n"],
    ],
)
async def test_no_answer_that_can_be_read_is_a_passing_trouble(steps: list[Step]) -> None:
    await failure(steps, TemporarilyUnavailableError)
    chunks = await played(after(steps, steps), retries=2)
    assert joined(chunks) == ("a", [1.0])
    assert len(chunks[0].notes) == 1


async def test_a_kept_connection_that_is_dropped_when_it_is_used_again_is_no_trouble() -> None:
    body = chunked(events(SOME, STOP) + DONE, b"")

    def play(received: Received) -> list[Step]:
        again = any(r.connection == received.connection for r in server.requests[:-1])
        return [Mark.RESET] if again else [body]

    async with (
        serving(play, keeps_alive=True) as server,
        OpenAIEngine(server.url, retries=0) as engine,
    ):
        for _ in range(4):
            assert (await collect(engine))[0].notes == ()
    assert len(server.requests) == 7  # All but the first were sent on a kept connection first.


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([Mark.UNTIL_HANG_UP], TemporarilyUnavailableError),
        ([b"HTTP/1.1 200 OK\r\n", Mark.UNTIL_HANG_UP], TemporarilyUnavailableError),
        ([b"HTTP/1.1 200 OK\r\nX: ", *[b"x", 0.05] * 20], TemporarilyUnavailableError),
        ([*[b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.05] * 20], TemporarilyUnavailableError),
        ([HEAD, Mark.UNTIL_HANG_UP], StreamError),
        ([stream(SOME, end=b""), Mark.UNTIL_HANG_UP], StreamError),
        ([stream(SOME, end=b""), Mark.HALF_CLOSE, Mark.UNTIL_HANG_UP], StreamError),
        ([chunked(events(SOME)), Mark.UNTIL_HANG_UP], StreamError),
        (
            [answer("500 Internal Server Error", b"not fin"), Mark.UNTIL_HANG_UP],
            TemporarilyUnavailableError,
        ),
        ([answer("200 OK", b"{"), *[b" ", 0.05] * 20], TemporarilyUnavailableError),
    ],
)
async def test_a_server_that_falls_silent_is_given_up(
    steps: list[Step], kind: type[EngineError]
) -> None:
    began = time.perf_counter()
    error = await failure(steps, kind, timeouts=QUICK)
    assert time.perf_counter() - began < 1.5
    assert "not a byte came" in error.found or "in the middle" in error.found


async def test_the_error_of_a_stall_names_its_time() -> None:
    steps = [stream(SOME, end=b""), Mark.UNTIL_HANG_UP]
    error = await failure(steps, StreamError, timeouts=Timeouts(first_byte=9, stall=0.15))
    assert "within 0.15 s" in error.found
    error = await failure(
        [HEAD, Mark.UNTIL_HANG_UP], StreamError, timeouts=Timeouts(first_byte=0.2)
    )
    assert "within 0.2 s" in error.found


async def test_pings_keep_a_slow_stream_alive() -> None:
    steps = [HEAD, *[b": still there\n\n", 0.15] * 4, events(SOME, STOP) + DONE]
    chunks = await played(steps, timeouts=Timeouts(stall=0.4))
    assert joined(chunks)[0] == "a"


async def test_pings_for_ever_end_with_the_time_of_a_trace() -> None:
    steps = [HEAD, *[b": still there\n\n", 0.02] * 200]
    error = await failure(steps, StreamError, timeouts=Timeouts(trace=0.3))
    assert "had not ended after 0.3 s" in error.found


async def test_a_proxy_that_holds_everything_back_only_delays_the_trace() -> None:
    chunks = await played([HEAD, 0.2, events(SOME, SOME, STOP, usage(3, 3)) + DONE])
    assert joined(chunks)[0] == "aa"
    assert len(chunks) == 2


# --- A busy or broken server ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        "408 Request Timeout",
        "425 Too Early",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
        "529 Overloaded",
    ],
)
async def test_a_server_in_trouble_is_asked_again_and_then_given_up(status: str) -> None:
    refusal = [answer(status, b'{"error": {"message": "not now"}}')]
    assert joined(await played(after(refusal, refusal), retries=2)) == ("a", [1.0])
    error = await failure(after(*[refusal] * 9), TemporarilyUnavailableError, retries=2)
    assert error.found == f"status {status.split(maxsplit=1)[0]}: not now"


async def test_notes_of_equal_troubles_are_one() -> None:
    refusal = [answer("429 Too Many Requests", b"slow down")]
    chunks = await played(after(refusal, refusal), retries=2)
    assert [note for chunk in chunks for note in chunk.notes] == list(chunks[0].notes)
    assert len(chunks[0].notes) == 1
    assert "slow down" in chunks[0].notes[0]


def dated() -> str:
    """A time of day has whole seconds, so up to one of the two is gone already."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize(
    ("say", "least", "most"),
    [(lambda: "0.4", 0.4, 1.0), (lambda: "1", 1.0, 1.6), (dated, 0.9, 2.6)],
)
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    say: Callable[[], str], least: float, most: float
) -> None:
    began = time.perf_counter()
    steps = [answer("429 Too Many Requests", b"", Retry_After=say())]
    await played(after(steps), retries=1)
    assert least <= time.perf_counter() - began < most


@pytest.mark.parametrize("asked", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_server_that_asks_for_too_much_time_is_given_up_at_once(asked: str) -> None:
    steps = [answer("429 Too Many Requests", b"come back later", Retry_After=asked)]
    async with serving(after(*[steps] * 9)) as server, OpenAIEngine(server.url) as engine:
        for _ in range(2):  # The second is told the same without asking.
            with pytest.raises(TemporarilyUnavailableError, match="later"), anyio.fail_after(1):
                await collect(engine)
        assert len(server.requests) == 1


@example("-5")
@example("inf")
@example("nan")
@example("Mon, 1 Nov 99999999999999999999 00:00:00 GMT")
@given(st.one_of(st.text(max_size=30), st.from_regex(r"\w{3}, \d+ Nov \d+ \d+:\d+:\d+ [-+]?\w+")))
def test_whatever_stands_for_the_time_to_wait_is_a_number_or_nothing(value: str) -> None:
    seconds = failures._seconds_to_wait(value)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


# --- Refusals that would come again ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("401 Unauthorized", "who are you?", EngineUnavailableError, "who are you?"),
        ("403 Forbidden", '{"error": "no"}', EngineUnavailableError, "no"),
        ("404 Not Found", '{"error": "no model m"}', EngineUnavailableError, "no model m"),
        (
            "429 Too Many Requests",
            '{"error": {"code": "insufficient_quota"}}',
            EngineUnavailableError,
            "quota",
        ),
        ("501 Not Implemented", "", EngineUnavailableError, "no reason given"),
        ("400 Bad Request", '{"detail": "bad top_k"}', EngineError, "bad top_k"),
        ("422 Unprocessable Entity", '{"detail": ["top_k?"]}', EngineError, "top_k?"),
        ("204 No Content", "", EngineError, "204"),
        ("400 Bad Request", "\0\ud7ff {" * 9, EngineError, "{"),
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
async def test_a_refusal_for_good_is_not_sent_again(
    status: str, body: str, kind: type[EngineError], words: str
) -> None:
    asked: list[Received] = []

    def play(received: Received) -> Sequence[Step]:
        asked.append(received)
        return [answer(status, body.encode())]

    error = await failure(play, kind, retries=3)
    assert words in error.found
    assert len(asked) == 1


# --- Settings -------------------------------------------------------------------------------------


async def test_an_engine_that_is_not_started_says_so() -> None:
    with pytest.raises(EngineUnavailableError, match="not started"):
        await collect(OpenAIEngine("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: OpenAIEngine([]),
        lambda: OpenAIEngine("http://h/v1", concurrency=0),
        lambda: OpenAIEngine("http://h/v1", retries=-1),
        lambda: OpenAIEngine("http://h/v1", patience=math.inf),
        lambda: Timeouts(stall=0),
        lambda: Timeouts(connect=math.nan),
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidSettingError):
        make()
