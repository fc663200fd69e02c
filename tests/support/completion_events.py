"""The words that servers of completions speak, and how the engine is made to listen."""

import json
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest
from scripted_server import Play, Step, answer, serving

from conviction.core import Message, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import EventParser, TraceReader
from conviction.errors import EngineError

KEY = "sk-a-secret-of-mine"
DONE = b"data: [DONE]\n\n"


def events(*payloads: object) -> bytes:
    return b"".join(f"data: {json.dumps(payload)}\n\n".encode() for payload in payloads)


def stream(*payloads: object, end: bytes = DONE) -> bytes:
    return answer("200 OK", events(*payloads) + end, "text/event-stream")


def json_answer(content: object, status: str = "200 OK") -> bytes:
    body = json.dumps(content).encode()
    return answer(status, body, Content_Length=str(len(body)))


def position(*logprobs: float | None) -> dict[str, Any]:
    """One token's place in `logprobs.content`."""
    return {"token": "x", "top_logprobs": [{"token": "y", "logprob": value} for value in logprobs]}


def event(
    text: str | None = None, *positions: object, finish: str | None = None, **more: object
) -> dict[str, Any]:
    """An event of a chat."""
    return delta({} if text is None else {"content": text}, *positions, finish=finish, **more)


def delta(
    added: dict[str, Any], *positions: object, finish: str | None = None, **more: object
) -> dict[str, Any]:
    """An event of a chat that adds something else than content."""
    logprobs = {"content": list(positions)} if positions else None
    choice = {"index": 0, "delta": added, "logprobs": logprobs, "finish_reason": finish}
    return {"choices": [choice], **more}


def plain(
    text: str, logprobs: dict[str, Any] | None = None, *, finish: str | None = None
) -> dict[str, Any]:
    """An event of plain completions."""
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
    return {"choices": [choice]}


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"choices": [], "usage": counts}


SOME = event("a", position(-1.0, -1.0))
STOP = event(finish="stop")


def request(top_k: int = 2, sampling: Sampling | None = None, trace: int = 0) -> TraceRequest:
    chat = (Message("user", "Why?"),)
    return TraceRequest(chat, sampling or Sampling(), trace=trace, seed=7, top_k=top_k)


def joined(chunks: Iterable[Chunk]) -> tuple[str, list[float]]:
    """The text and the confidences of a trace."""
    all_of_them = list(chunks)
    confidences = np.concatenate([chunk.confidences for chunk in all_of_them])
    return "".join(chunk.text for chunk in all_of_them), confidences.tolist()


class Reading(NamedTuple):
    """What a stream said."""

    text: str
    confidences: list[float]
    last: Chunk


def read_pieces(pieces: Iterable[bytes], top_k: int = 2) -> Reading:
    """Read the bytes of a stream as the engine does, but for the network."""
    parser, reader = EventParser(), TraceReader(top_k)
    chunks = [chunk for piece in pieces if (chunk := reader.read(parser.feed(piece)))]
    if rest := reader.read(parser.finish()):
        chunks.append(rest)
    last = reader.finish()
    return Reading(*joined([*chunks, last]), last)


def read(*payloads: object, top_k: int = 2) -> Reading:
    """Read the events of a stream."""
    return read_pieces([events(*payloads) + DONE], top_k)


async def collect(engine: OpenAIEngine, asked: TraceRequest | None = None) -> list[Chunk]:
    async with aclosing(engine.stream(asked or request())) as chunks:
        return [chunk async for chunk in chunks]


async def played(steps: Sequence[Step] | Play, **settings: Any) -> list[Chunk]:
    """The chunks of one trace from a server that plays `steps`."""
    with anyio.fail_after(5):
        async with serving(steps) as server, OpenAIEngine(server.url, **settings) as engine:
            return await collect(engine)


async def failure(
    steps: Sequence[Step] | Play, kind: type[EngineError] = EngineError, **settings: Any
) -> EngineError:
    """The error that a trace ends in; bounded, as a hang would be the worst of faults."""
    settings = {"retries": 0, **settings}
    with anyio.fail_after(5):
        async with serving(steps) as server, OpenAIEngine(server.url, **settings) as engine:
            with pytest.raises(kind) as caught:
                await collect(engine)
            assert_idle(engine)
    error = caught.value
    assert type(error) is kind
    assert error.tried
    assert error.found
    assert error.remedy
    return error


def assert_idle(engine: OpenAIEngine) -> None:
    """No trace holds a place, and none waits for one."""
    balancer = engine._balancer
    assert [(e.open, e.outstanding, e.checking) for e in balancer.endpoints] == [
        (0, 0, False)
    ] * len(balancer.endpoints)
    assert not balancer._waiting
