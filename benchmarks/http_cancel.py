"""What a real server goes on to generate after its stream was closed, by its own counters.

    python benchmarks/http_cancel.py --base-url http://127.0.0.1:8000/v1

Several traces run at once; each is closed after some tokens. The server must be doing nothing else.
"""

import argparse
import statistics
import time
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio

from conviction.core import Message, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.probe_streams import Load, read_load

STORY = (Message("user", "Tell me a very long story about a farmer and his sheep."),)
IDLE_SECONDS = 30.0


@dataclass
class Round:
    """One round: tokens read, tokens generated beyond them, and two times in seconds."""

    read: int
    after: int
    generating: float
    until_idle: float


async def load(engine: OpenAIEngine) -> Load:
    http = engine.servers[0].http
    address = urlsplit(http.base_url)
    page = await http.ask(
        "GET", address._replace(path=address.path.removesuffix("/v1") + "/metrics").geturl()
    )
    found = read_load(page.decode())
    if found is None or found.generated is None:
        raise SystemExit("The server's metrics do not tell what it generates.")
    return found


async def idle(engine: OpenAIEngine) -> Load:
    with anyio.fail_after(IDLE_SECONDS):
        while (now := await load(engine)).running:  # noqa: ASYNC110  # it tells nobody
            await anyio.sleep(0.005)
    return now


async def one_round(engine: OpenAIEngine, traces: int, tokens: int, seed: int) -> Round:
    before = await idle(engine)
    read = [0] * traces

    async def trace(number: int) -> None:
        request = TraceRequest(
            STORY, Sampling(max_tokens=20 * tokens), number, seed + number, top_k=20
        )
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                read[number] += chunk.confidences.size
                if read[number] >= tokens:
                    break

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(traces):
            tasks.start_soon(trace, number)
    closed = time.perf_counter()
    after = await idle(engine)
    assert before.generated is not None
    assert after.generated is not None
    generated = round(after.generated - before.generated)
    return Round(sum(read), generated - sum(read), closed - began, time.perf_counter() - closed)


async def main(base_url: str, traces: int, tokens: int, rounds: int) -> None:
    async with OpenAIEngine(base_url, concurrency=traces) as engine:
        await engine.capabilities()
        print(f"{engine.name}: {traces} traces, each closed after {tokens} tokens")
        done = [await one_round(engine, traces, tokens, traces * n) for n in range(rounds)]
    after = statistics.median(r.after / traces for r in done)
    speed = statistics.median(r.read / traces / r.generating for r in done)
    until_idle = statistics.median(r.until_idle for r in done)
    worst = max(r.after for r in done) / traces
    print(f"tokens after the close, per trace   {after:8.2f}   (worst round {worst:.2f})")
    print(f"speed of a trace                    {speed:8.1f} tokens/s")
    print(f"so generated in vain, per trace     {after / speed:8.3f} s   target: at most 0.5")
    print(f"until the server was idle           {until_idle:8.3f} s after the last close")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--traces", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    anyio.run(main, given.base_url, given.traces, given.tokens, given.rounds)
