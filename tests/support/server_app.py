"""The server of conviction inside a test: on a free port, with an engine of the test."""

import json
import socket
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider

from conviction.core import FinishReason
from conviction.engines.base import Engine
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.server.app import create_app
from conviction.server.running import WebServer, listen
from conviction.server.service import Service
from conviction.server.settings import Settings

MODEL = "scripted"
SECONDS = 60.0
"""The longest that anything here may take, on a machine that is busy with other things."""


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: Its address, without a path.
        service: What its requests share.
        http: A client of it.
    """

    url: str
    service: Service
    http: httpx2.AsyncClient

    async def chat(self, text: str = "How many?", **fields: Any) -> httpx2.Response:
        """Ask in a chat of one message."""
        return await self.http.post("/v1/chat/completions", json=asking(text, **fields))

    async def events(self, text: str = "How many?", **fields: Any) -> list[Any]:
        """The events of a streamed answer; the last one as it is, where it is no JSON."""
        response = await self.chat(text, stream=True, **fields)
        assert response.status_code == 200, response.text
        return events_of(response.text)


def asking(text: str = "How many?", **fields: Any) -> dict[str, Any]:
    """A request of one message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def events_of(text: str) -> list[Any]:
    """Server-sent events, comments left out."""
    data = [block[6:] for block in text.split("\n\n") if block.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def answers(*numbers: int, tokens: int = 20) -> list[Script]:
    """Traces that end with these numbers."""
    return [Script.even(f"So it is. Answer: {number}", tokens=tokens) for number in numbers]


def engine_of(*numbers: int, **options: Any) -> ScriptedEngine:
    """An engine whose traces end with these numbers, one after another."""
    return ScriptedEngine(answers(*numbers), **options)


def endless(**options: Any) -> ScriptedEngine:
    """An engine whose traces go on for far longer than any test."""
    script = Script.even("Hm. " * 1000, tokens=1_000_000)
    return ScriptedEngine([script], delay=0.001, **options)


def cut(text: str) -> Script:
    """A trace that reached its limit."""
    return Script(text, Script.even(text).confidences, finish=FinishReason.LENGTH)


@asynccontextmanager
async def served(
    engine: Engine, *, tracing: TracerProvider | None = None, **settings: Any
) -> AsyncGenerator[Served]:
    """A server in this very event loop, while it is needed."""
    told = Settings(**{"port": 0, **settings})
    app = create_app(told, engine, tracing=tracing)
    listener = listen(told)
    started = anyio.Event()
    server = WebServer(app, 0.0, started.set)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service: Service = app.state.service
    # Closed here, too, where a test that fails cuts the server off.
    async with closing_after(listener), anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        with anyio.fail_after(SECONDS):
            await started.wait()
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=SECONDS) as http:
            try:
                yield Served(url, service, http)
            finally:
                server.should_exit = True


@asynccontextmanager
async def closing_after(listener: socket.socket) -> AsyncGenerator[None]:
    with closing(listener):
        yield


@contextmanager
def served_in_thread(engine: Engine, **settings: Any) -> Generator[str]:
    """A server in a thread of its own, for clients that block; gives its address."""
    told = Settings(**{"port": 0, **settings})
    listener = listen(told)
    started = threading.Event()
    app: FastAPI = create_app(told, engine)
    server = WebServer(app, 0.0, started.set)
    thread = threading.Thread(target=anyio.run, args=(server.serve, [listener]), daemon=True)
    thread.start()
    try:
        assert started.wait(SECONDS)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listener.close()


async def until(condition: Any) -> None:
    """Wait until something is true, for a bounded time."""
    with anyio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
            await anyio.sleep(0.005)
