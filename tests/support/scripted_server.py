"""A server on loopback that plays bytes, and the words that such servers speak."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np

from conviction.core import Message, Sampling
from conviction.engines.base import Chunk, TraceRequest

KEY = "sk-a-secret-of-mine"
DONE = b"data: [DONE]\n\n"
UNTIL_HANG_UP = object()
RESET = object()
Step = bytes | float | object


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """Answers every request with the steps that `play` gives for it."""

    play: Callable[[Received], Sequence[Step]]
    url: str = ""
    requests: list[Received] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    hung_up: anyio.Event = field(default_factory=anyio.Event)
    idle: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.idle = anyio.Event()
        self.most_open = max(self.most_open, self.open)
        try:
            request = await _receive(reader)
            self.requests.append(request)
            for step in self.play(request):
                await self._do(step, reader, writer)
        except ConnectionError:
            self.hung_up.set()
        finally:
            self.open -= 1
            writer.close()
            if not self.open:
                self.idle.set()

    async def _do(
        self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if step is UNTIL_HANG_UP:
            assert await reader.read() == b""
            self.hung_up.set()
        elif step is RESET:
            writer.transport.abort()
        elif isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        else:
            await asyncio.sleep(step)


async def _receive(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split()[1], headers, json.loads(body or b"null"))


@asynccontextmanager
async def serving(
    play: Callable[[Received], Sequence[Step]] | Sequence[Step],
) -> AsyncGenerator[ScriptedServer, None]:
    script = ScriptedServer(play if callable(play) else lambda _: play)
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield script
    finally:
        server.close()
        if script.open:
            with anyio.move_on_after(2):
                await script.idle.wait()


def answer(status: str, body: bytes, content_type: str = "application/json", **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stream(*payloads: object, end: bytes = DONE) -> bytes:
    return answer("200 OK", events(*payloads) + end, "text/event-stream")


def events(*payloads: object) -> bytes:
    return b"".join(f"data: {json.dumps(payload)}\n\n".encode() for payload in payloads)


def position(*logprobs: float | None) -> dict[str, Any]:
    """One token's place in `logprobs.content`."""
    return {"token": "x", "top_logprobs": [{"token": "y", "logprob": value} for value in logprobs]}


def event(
    text: str | None = None, *positions: object, finish: str | None = None, **more: object
) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    logprobs = {"content": list(positions)} if positions else None
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {"choices": [choice], **more}


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"choices": [], "usage": counts}


STOP = event(finish="stop")


def request(top_k: int = 2, sampling: Sampling | None = None) -> TraceRequest:
    chat = (Message("user", "Why?"),)
    return TraceRequest(chat, sampling or Sampling(), seed=7, top_k=top_k)


def joined(chunks: Sequence[Chunk]) -> tuple[str, list[float]]:
    confidences = np.concatenate([chunk.confidences for chunk in chunks])
    return "".join(chunk.text for chunk in chunks), confidences.tolist()
