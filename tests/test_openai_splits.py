"""However the bytes of a stream are cut, they say the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from completion_events import (
    DONE,
    STOP,
    Reading,
    collect,
    delta,
    event,
    joined,
    position,
    read_pieces,
    usage,
)
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import answer, serving

from conviction.core import FinishReason
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import EventParser
from conviction.errors import StreamError

K = 2


@dataclass(frozen=True)
class Told:
    """One event, and what it holds: text, confidences, the tokens of the trace if it says so."""

    payload: dict[str, Any]
    thought: str
    text: str
    confidences: list[float]
    count: int = 0


def expected_confidence(values: Sequence[float | None]) -> float:
    usable = sorted(v for v in values if v is not None and -9999.0 < v <= 0.0)
    return -sum(usable[-K:]) / K if len(usable) >= K else math.nan


logprobs = st.one_of(
    st.integers(-40, 0).map(lambda quarter: quarter / 4),
    st.sampled_from([-math.inf, -9999.0, math.nan, None]),
)
places = st.lists(st.lists(logprobs, max_size=K + 2), max_size=3)
words = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("한🌍\n\r\u2028")),
    max_size=4,
)


@st.composite
def chats(draw: st.DrawFn) -> list[Told]:
    """Events of a chat: thoughts first, several tokens at once, some in silence."""
    thoughts = draw(st.integers(0, 3))
    continuous = draw(st.booleans())
    told: list[Told] = []
    tokens = 0
    for number in range(draw(st.integers(thoughts, thoughts + 6))):
        text, values = draw(words), draw(places)
        tokens += len(values) + (draw(st.integers(0, 2)) if continuous else 0)
        confidences = [expected_confidence(value) for value in values]
        counts = {"usage": {"completion_tokens": tokens}} if continuous else {}
        count = tokens if continuous else 0
        positions = [position(*value) for value in values]
        if number < thoughts:
            name = draw(st.sampled_from(["reasoning", "reasoning_content"]))
            payload = delta({name: text, "content": None}, *positions, **counts)
            told.append(Told(payload, text, "", confidences, count))
        else:
            told.append(Told(event(text, *positions, **counts), "", text, confidences, count))
    tokens += draw(st.integers(0, 2))
    return [*told, Told(STOP, "", "", []), Told(usage(3, tokens, 1), "", "", [], tokens)]


@st.composite
def completions(draw: st.DrawFn) -> list[Told]:
    """Events of plain completions, a mapping for each token."""
    told: list[Told] = []
    for _ in range(draw(st.integers(0, 6))):
        text, values = draw(words), draw(places)
        mappings = [{f"token {n}": v for n, v in enumerate(value)} for value in values]
        choice = {"index": 0, "text": text, "logprobs": {"top_logprobs": mappings}}
        confidences = [expected_confidence(value) for value in values]
        told.append(Told({"choices": [choice]}, "", text, confidences))
    last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    return [*told, Told({"choices": [last], "usage": {"prompt_tokens": 3}}, "", "", [])]


def expected(told: Sequence[Told]) -> tuple[str, list[float]]:
    thought, text = "".join(t.thought for t in told), "".join(t.text for t in told)
    if thought:
        thought = f"<think>{thought}" + ("</think>" if text else "")
    return thought + text, expected_confidences(told)


def expected_confidences(told: Sequence[Told]) -> list[float]:
    """Tokens without numbers lie before the next that has some.

    They are what the server counts beyond those with numbers; where it does not count, each event
    with text is one token at least, but the newest, whose numbers may still come.
    """
    found: list[float] = []
    count = texts = 0
    for one in told:
        texts += bool(one.thought or one.text)
        count = one.count or count
        missing = (count or texts) - len(found)
        found += [math.nan] * (missing - max(len(one.confidences), 1)) + one.confidences
    return found + [math.nan] * ((count or texts) - len(found))


@st.composite
def written(draw: st.DrawFn, told: Sequence[Told]) -> list[bytes]:
    """The bytes of each event: lines of any kind, pings and other fields in between."""
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    indent = draw(st.sampled_from([None, 1]))
    pieces: list[bytes] = []
    for data in [
        *(json.dumps(t.payload, ensure_ascii=draw(st.booleans()), indent=indent) for t in told),
        "[DONE]",
    ]:
        lines = [": ping", "event: message", "id: 3", "retry: 10", ""] * draw(st.integers(0, 1))
        space = draw(st.sampled_from(["", " "]))
        lines += [f"data:{space}{line}" for line in data.split("\n")]
        pieces.append("".join(line + line_end for line in [*lines, ""]).encode())
    return pieces


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in random pieces, down to single ones."""
    if draw(st.booleans()):
        return [bytes([byte]) for byte in data]
    places = draw(st.lists(st.integers(0, len(data)), max_size=40))
    return [data[begin:end] for begin, end in pairwise(sorted({0, len(data), *places}))]


@given(st.data())
def test_any_split_of_the_bytes_gives_the_same_trace(data: st.DataObject) -> None:
    told = data.draw(st.one_of(chats(), completions()))
    pieces = data.draw(written(told))
    whole = b"".join(pieces)
    text, confidences = expected(told)
    for split in (pieces, [whole], data.draw(cut(whole))):
        found: Reading = read_pieces(split, K)
        assert found.text == text
        assert len(found.confidences) == len(confidences)
        np.testing.assert_allclose(found.confidences, confidences, rtol=1e-6)
        assert found.last.finish is FinishReason.STOP
        assert found.last.prompt_tokens == 3


@given(
    st.lists(st.sampled_from([b"data: x", b"data:", b"\n", b"\r", b"\r\n", b": c", b"da", b"y"]))
)
def test_the_events_in_any_bytes_do_not_depend_on_how_they_are_cut(parts: list[bytes]) -> None:
    whole, single, many = EventParser(), EventParser(), EventParser()
    data = b"".join(parts)
    found = [*whole.feed(data), *whole.finish()]
    one_by_one = [event for byte in data for event in single.feed(bytes([byte]))]
    assert [*one_by_one, *single.finish()] == found
    by_parts = [event for part in parts for event in many.feed(part)]
    assert [*by_parts, *many.finish()] == found


@pytest.mark.anyio
async def test_a_character_cut_in_two_between_packets_arrives_whole() -> None:
    payload = event("Grüße, 세상 🌍\n", position(-0.5, -2.5))
    data = b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"
    middle = data.index("🌍".encode()) + 2
    head = answer("200 OK", b"", "text/event-stream")
    rest = b"data: " + json.dumps(STOP).encode() + b"\n\n" + DONE
    steps = [head, data[:middle], 0.05, data[middle:] + rest]
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        assert joined(await collect(engine)) == ("Grüße, 세상 🌍\n", [1.5])


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_an_event_without_end_is_refused_before_it_fills_the_memory(line_end: bytes) -> None:
    parser = EventParser(most_bytes=1000)
    with pytest.raises(StreamError, match="more than 1,000 bytes"):
        feed_endlessly(parser, b"data: " + b"x" * 50 + line_end)


def feed_endlessly(parser: EventParser, piece: bytes) -> None:
    for _ in range(100):
        parser.feed(piece)
