"""Who hangs up ends all that was started for him: of a stream or not, waiting or running."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
from real_servers import RealServer
from server_app import SECONDS, Served, asking, endless, engine_of, served, until

from conviction.engines.base import Chunk, Engine, TraceRequest
from conviction.engines.local import LocalEngine
from conviction.engines.openai import OpenAIEngine
from conviction.models import resolve
from conviction.server.responses import PING

pytestmark = pytest.mark.anyio


async def hang_up_when(server: Served, condition: Any, *, stream: bool) -> None:
    """Ask, and close the connection as soon as something is true."""
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as http:
                address = f"{server.url}/v1/chat/completions"
                model = server.service.model
                body = asking("Count on.", stream=stream, model=model, max_tokens=1500)
                async with http.stream("POST", address, json=body) as answer:
                    async for _ in answer.aiter_raw():
                        pass

        tasks.start_soon(ask)
        await until(condition)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_ends_every_trace(*, stream: bool) -> None:
    engine = endless(concurrency=8)
    async with served(engine) as server:
        await hang_up_when(server, lambda: engine.running == 8, stream=stream)
        read = sum(engine.generated)
        await until(lambda: engine.running == 0)
        spent = sum(engine.generated)
        # Less than eight traces generate in a second, however slow the machine is just now.
        assert spent - read <= 8 * 1000
        assert (await server.http.get("/health")).json()["running"] == 0
        # Nothing goes on behind anybody's back.
        assert sum(engine.generated) == spent
        counted = (await server.http.get("/metrics")).text
    assert f'conviction_tokens_total{{fate="cancelled"}} {spent:.1f}' in counted
    assert 'conviction_failures_total{error="CancelledError"} 1.0' in counted


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_while_waiting_leaves_the_queue(*, stream: bool) -> None:
    engine = endless(concurrency=2)
    async with served(engine, queueing={"running": 1}) as server:
        door = server.service.admission
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.chat)
            await until(lambda: door.running == 1)
            await hang_up_when(server, lambda: door.queued == 1, stream=stream)
            await until(lambda: door.queued == 0)
            assert door.running == 1
            tasks.cancel_scope.cancel()


async def test_one_who_hangs_up_ends_nobody_elses_traces() -> None:
    engine = endless(concurrency=8)
    async with served(engine) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.chat)
        await until(lambda: engine.running == 8)
        await hang_up_when(server, lambda: server.service.admission.running == 2, stream=True)
        await until(lambda: server.service.admission.running == 1)
        assert engine.running == 8
        tasks.cancel_scope.cancel()


async def test_a_silent_stream_pings() -> None:
    engine = endless(concurrency=1)
    async with served(engine, ping_seconds=0.02, progress_seconds=60) as server:
        pieces = bytearray()
        address = "/v1/chat/completions"
        async with server.http.stream("POST", address, json=asking(stream=True)) as answer:
            with anyio.fail_after(SECONDS):
                async for piece in answer.aiter_raw():
                    pieces += piece
                    if pieces.count(PING) >= 3:
                        break
        assert pieces.startswith(b'data: {"id"')


async def test_a_stream_that_speaks_does_not_ping() -> None:
    async with served(engine_of(7), ping_seconds=30) as server:
        answer = await server.chat(stream=True)
    assert PING.decode() not in answer.text


class Counting(Engine):
    """Counts the tokens that were read, and knows since when."""

    tokens = 0
    began = 0.0

    @property
    def pace(self) -> float:
        """Tokens per second so far, of all traces together."""
        return self.tokens / (anyio.current_time() - self.began)

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                self.began = self.began or anyio.current_time()
                self.tokens += chunk.confidences.size
                yield chunk


class CountingLocal(Counting, LocalEngine):
    pass


class CountingServers(Counting, OpenAIEngine):
    pass


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_frees_a_real_engine_within_a_second(*, stream: bool) -> None:
    engine = CountingLocal(resolve("smollm2").path, slots=4, context=4096)
    async with served(engine, queueing={"running": 1}) as server:
        running: Any = engine._running

        async def asked(path: str) -> bytes:
            return await running.http.ask("GET", running.server.url + path)

        async def resting() -> bool:
            return not any(slot["is_processing"] for slot in json.loads(await asked("/slots")))

        async def generated() -> int:
            """Tokens that llama.cpp has generated, by its own count."""
            lines = (await asked("/metrics")).decode().splitlines()
            name = "llamacpp:tokens_predicted_total "
            return next(int(line.split()[1]) for line in lines if line.startswith(name))

        await hang_up_when(server, lambda: engine.tokens >= 40, stream=stream)
        read, pace = engine.tokens, engine.pace
        with anyio.fail_after(SECONDS):
            while not await resting():  # noqa: ASYNC110  # llama.cpp tells nobody
                await anyio.sleep(0.01)
        spent = await generated()
        # Not even what it generates in a second; seconds of a busy machine would tell less.
        assert read <= spent <= read + pace
        assert running.slots.free == 4
        # All of the engine is there for the next one, and nothing else has gone on.
        answer = await server.chat(model=f"{server.service.model}@single", max_tokens=8)
        assert answer.status_code == 200
        assert await resting()
        # One more is drawn, and dropped, where the prompt is computed for all slots.
        assert await generated() == spent + answer.json()["usage"]["completion_tokens"] + 1


@pytest.mark.servers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["llama_server", "vllm_server"])
async def test_hanging_up_frees_a_server_behind_this_one_within_a_second(
    name: str, request: pytest.FixtureRequest
) -> None:
    behind: RealServer = request.getfixturevalue(name)

    async def generated() -> int:
        """Tokens by its own count, once it has come to rest."""
        with anyio.fail_after(SECONDS):
            while await anyio.to_thread.run_sync(behind.running):  # noqa: ASYNC110  # tells nobody
                await anyio.sleep(0.01)
        return await anyio.to_thread.run_sync(behind.generated_tokens)

    engine = CountingServers(behind.url)
    async with served(engine) as server:
        before = await generated()
        fields = {"model": server.service.model, "max_tokens": 8}
        answer = await server.chat(**fields, conviction={"policy": "majority", "budget": 3})
        spent = answer.json()["usage"]["completion_tokens"]
        assert spent == await generated() - before == engine.tokens
        engine.tokens, engine.began = 0, 0.0
        before = await generated()
        await hang_up_when(server, lambda: engine.tokens >= 40, stream=True)
        read, pace = engine.tokens, engine.pace
        assert await generated() - before <= read + pace
