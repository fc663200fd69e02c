"""A server of completions that fails in every way that was thought of, one way per question.

It lists its model and answers small requests as a good server does, so that an engine takes it; a
question that names a mode, as in "[cut in the middle]", is answered in that mode's way.
"""

import json
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio.from_thread
from completion_events import DONE, STOP, delta, event, events, json_answer, position, stream, usage
from scripted_server import (
    Mark,
    Peer,
    Received,
    ScriptedServer,
    Step,
    answer,
    chunk,
    chunked,
    serving,
)

WORDS = "W" * 5000
HOSTILE = f"\x1b[31mred\x1b]0;title\x07 \x00\x08 \u202egnp.exe\u2066 \r\nERROR forged\u2028{WORDS}"
"""What a server may say: commands for a terminal, false line ends and directions, at length."""

Outcome = Literal["answer", "failure", "no answer"]
"""A verdict with an answer; no verdict; or a verdict of traces that gave no answer."""


@dataclass(frozen=True)
class Mode:
    """One way to answer a trace.

    Attributes:
        steps: What to do.
        outcome: What it comes to for the question.
        tokens: Tokens of each trace that has to be counted, where that is certain.
        status: The HTTP status that a client of `conviction serve` gets, if it fails.
    """

    steps: Sequence[Step]
    outcome: Outcome = "failure"
    tokens: int | None = None
    status: int = 502


TEXT = "So it is. Answer: 41"


def pieces(text: str = TEXT, *, positions: bool = True) -> list[dict[str, Any]]:
    """A text, a word an event, with log-probabilities or without."""
    places = [position(*[-1.0 - n / 8 for n in range(20)])] if positions else []
    return [event(word, *places) for word in re.findall(r"\S+\s*|\s+", text)]


GOOD = pieces()
WORD = pieces("word ")[0]


def refused(status: str, said: object = HOSTILE, **headers: str) -> Mode:
    body = json.dumps({"error": {"message": said}}).encode()
    code = 503 if status[:3] in ("408", "425", "429", "503") else 502
    return Mode([answer(status, body, **headers)], status=code)


def said(*payloads: object, end: bytes = DONE, **more: Any) -> Mode:
    return Mode([stream(*payloads, end=end)], **more)


def raw(data: bytes, **more: Any) -> Mode:
    return Mode([answer("200 OK", data, "text/event-stream")], **more)


def over_and_over(data: bytes, seconds: float = 0.0) -> Callable[[Peer], Awaitable[None]]:
    """Write the same until the client hangs up."""

    async def write(peer: Peer) -> None:
        while True:
            peer[1].write(data)
            await peer[1].drain()
            await anyio.sleep(seconds)

    return write


def endless(data: bytes, seconds: float = 0.0, **more: Any) -> Mode:
    return Mode([chunked(), over_and_over(chunk(data), seconds)], **more)


def at_length(before: bytes, size: int, after: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Write a word of many bytes, which are made when they are needed."""

    async def write(peer: Peer) -> None:
        peer[1].write(before + b"w" * size + after)
        await peer[1].drain()

    return write


def nested(depth: int) -> bytes:
    return b"data: " + b'{"choices":' * depth + b"1" + b"}" * depth + b"\n\n"


def answered(text: str, **more: Any) -> Mode:
    return said(*pieces(text), STOP, **{"outcome": "answer", "tokens": None, **more})


def one(fields: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, **fields}]}


SILENT = Mark.UNTIL_HANG_UP
HEAD = answer("200 OK", b"", "text/event-stream")
HALF = chunked(events(*GOOD[:3]))

MODES: dict[str, Mode] = {
    "good": said(*GOOD, STOP, usage(9, 6), outcome="answer", tokens=6),
    # Refusals.
    **{
        f"status {code}": refused(f"{code} No")
        for code in (400, 401, 403, 404, 405, 413, 418, 422, 500, 501, 502, 504, 529)
    },
    **{f"status {code}": refused(f"{code} No") for code in (408, 425, 429, 503)},
    "wait a second": refused("429 No", Retry_After="1"),
    "wait a day": refused("429 No", Retry_After="86400"),
    "wait for rubbish": refused("429 No", Retry_After="soon\x0b"),
    "wait until a date": refused("503 No", Retry_After="Fri, 31 Dec 2100 23:59:59 GMT"),
    "quota": Mode(
        [answer("429 No", b'{"error": {"code": "insufficient_quota", "message": "pay"}}')]
    ),
    "redirect": Mode([answer("307 Go", b"", Location="http://127.0.0.1:9/v1")]),
    "redirect to nowhere": Mode([answer("302 Go", b"")]),
    "status 204": Mode([answer("204 Nothing", b"")]),
    "status 1": Mode([b"HTTP/1.1 001 Odd\r\nContent-Length: 0\r\n\r\n"]),
    # What is no stream of events.
    "empty body": Mode([answer("200 OK", b"", "text/event-stream")]),
    "a page": Mode([answer("200 OK", f"<html>{HOSTILE}</html>".encode(), "text/html")]),
    "a whole answer": Mode([json_answer({"choices": [{"message": {"content": TEXT}}]})]),
    "an error with 200": Mode([json_answer({"error": {"message": HOSTILE}})]),
    "wrong content type": Mode([answer("200 OK", events(*GOOD, STOP) + DONE, "text/plain")]),
    "binary": Mode([answer("200 OK", bytes(range(256)) * 64, "application/octet-stream")]),
    "no headers": Mode([b"HTTP/1.1 200 OK\r\n\r\n" + events(*GOOD, STOP)]),
    "not HTTP": Mode([b"\x00\x01SSH-2.0-OpenSSH\r\n" * 20]),
    "TLS on a plain port": Mode([b"\x15\x03\x01\x00\x02\x02\x28"]),
    "headers without end": Mode([b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000]),
    # Connections.
    "hang up at once": Mode([]),
    "reset at once": Mode([Mark.RESET]),
    "reset after the headers": Mode([HEAD, 0.02, Mark.RESET]),
    "reset in the middle": Mode([HALF, 0.02, Mark.RESET]),
    "cut in the middle": Mode([HALF]),
    "cut without chunks": Mode([answer("200 OK", events(*GOOD[:3]), "text/event-stream")]),
    "half closed": Mode([HALF, Mark.HALF_CLOSE, SILENT]),
    "wrong size of a chunk": Mode([chunked(), b"zz\r\n" + events(*GOOD)]),
    "less than its length": Mode(
        [answer("200 OK", events(WORD), "text/event-stream", Content_Length="9999")]
    ),
    "silent": Mode([SILENT], status=504),
    "silent after the headers": Mode([HEAD, SILENT], status=504),
    "silent after three tokens": Mode([HALF, SILENT], "no answer", tokens=3),
    "one byte at a time": endless(b":", 0.02, status=504),
    "pings alone": endless(b": ping\n\n", 0.01, status=504),
    "empty events": endless(b"data: {}\n\n", 0.01, status=504),
    "slowly": endless(events(WORD), 0.2, outcome="no answer"),
    "without end": endless(events(WORD) * 20),
    # Events that are not what they should be.
    "rubbish": raw(b"data: {oh no\n\n"),
    "rubbish without events": raw(b"\x00\xff\xfe" * 10_000),
    "not UTF-8": raw(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n'),
    "a list": raw(b"data: [1, 2]\n\n"),
    "a word": raw(b'data: "word"\n\n'),
    "null": raw(b"data: null\n\n"),
    "a number without end": raw(b"data: " + b"9" * 100_000 + b"\n\n"),
    "nested deeply": raw(nested(100_000)),
    "no choices": said({"object": "chat.completion.chunk"}),
    "empty choices": said({"choices": []}),
    "choices of null": said({"choices": None}),
    "a choice of null": said({"choices": [None]}),
    "text of a number": said(one({"delta": {"content": 41}})),
    "text of a list": said(one({"delta": {"content": ["41"]}})),
    "an error": said({"error": {"message": HOSTILE, "type": HOSTILE}}),
    "an error after tokens": said(*GOOD[:3], {"error": HOSTILE}),
    "an unknown end": said(*GOOD, event(finish=HOSTILE)),
    "content filter": said(*GOOD, event(finish="content_filter")),
    "tool calls": said(event(finish="tool_calls")),
    "stop alone": said(STOP),
    "length alone": said(event(finish="length")),
    "done alone": said(),
    "no finish": said(*GOOD),
    "no end": said(*GOOD, STOP, end=b"", outcome="answer", tokens=5),
    "two ends": said(*GOOD, STOP, STOP, outcome="answer", tokens=5),
    "more after the end": said(
        *GOOD, STOP, end=DONE + events(WORD) * 9, outcome="answer", tokens=5
    ),
    "several choices": said(
        *({"choices": [*one_["choices"], *WORD["choices"]]} for one_ in GOOD),
        STOP,
        outcome="answer",
    ),
    "the same index twice": said(
        *({"choices": one_["choices"] * 2} for one_ in GOOD), STOP, outcome="answer", tokens=5
    ),
    "negative index": said(
        *({"choices": [{**one_["choices"][0], "index": -7}]} for one_ in GOOD),
        STOP,
        outcome="answer",
        tokens=5,
    ),
    # Log-probabilities and counts.
    "no log-probabilities": said(
        *pieces(positions=False), STOP, usage(9, 6), outcome="answer", tokens=6
    ),
    "no log-probabilities and no counts": said(
        *pieces(positions=False), STOP, outcome="answer", tokens=5
    ),
    "empty log-probabilities": said(
        *(one({"delta": {"content": w}, "logprobs": {"content": []}}) for w in TEXT.split(" ")),
        STOP,
        outcome="answer",
        tokens=5,
    ),
    "positive log-probabilities": said(
        event(TEXT, position(*[5.0] * 20)), STOP, outcome="answer", tokens=1
    ),
    "log-probabilities of text": said(
        one({"delta": {"content": TEXT}, "logprobs": {"content": [{"logprob": "low"}]}}), STOP
    ),
    "without end and without log-probabilities": endless(events(event("w ")) * 50),
    "a count below the truth": said(*GOOD, STOP, usage(9, 1), outcome="answer", tokens=5),
    "a negative count": said(*GOOD, STOP, usage(-9, -1), outcome="answer", tokens=5),
    "a count without bounds": said(*GOOD, STOP, usage(9, 10**15)),
    "a count beyond integers": said(*GOOD, STOP, usage(9, 10**40)),
    "a count of text": said(*GOOD, STOP, {"choices": [], "usage": {"completion_tokens": "6"}}),
    "a count of null": said(*GOOD, STOP, {"usage": None}, outcome="answer", tokens=5),
    # Much at once, and hostile text.
    "one event of ten megabytes": Mode(
        [HEAD, at_length(b'data: {"choices": [{"text": "', 10_000_000, b'"}]}\n\n'), events(STOP)]
    ),
    "one event of forty megabytes": Mode([HEAD, at_length(b"data: ", 40_000_000, b"\n\n")]),
    "one line without end": endless(b"w" * 65_536),
    "a million empty lines": Mode(
        [answer("200 OK", b"\n" * 1_000_000 + events(*GOOD, STOP) + DONE, "text/event-stream")],
        "answer",
        tokens=5,
    ),
    "hostile text": answered(f"{HOSTILE[:60]} Answer: 41"),
    "NUL": answered("\0\0 Answer: 41"),
    "halves of characters": said(
        delta({"content": "\ud83c So"}), *pieces(" Answer: 41"), STOP, outcome="answer"
    ),
}


def play(received: Received) -> Sequence[Step]:
    """A good server, but for questions that name a mode."""
    if received.path.endswith("/models"):
        return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
    if received.path.endswith("/metrics"):
        return [json_answer({}, "404 Not Found")]
    named = re.findall(r"\[([^\[\]]+)\]", json.dumps(received.body))
    mode = next((MODES[name] for name in named if name in MODES), None)
    if mode is None and not received.body["stream"]:
        most = received.body.get("top_logprobs") or int(received.body.get("logprobs") or 0)
        places = [position(*[-1.0 - n / 8 for n in range(most)])] * 4
        choice = {"message": {"content": TEXT}, "text": TEXT, "logprobs": {"content": places}}
        return [json_answer({"choices": [choice]})]
    return (mode or MODES["good"]).steps


def question(mode: str) -> str:
    """A question that is answered in a mode's way."""
    return f"What is 41? [{mode}]"


@contextmanager
def faulty() -> Generator[ScriptedServer]:
    """The server, in a thread of its own."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(play)) as server,
    ):
        yield server
