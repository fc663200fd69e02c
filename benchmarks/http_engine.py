"""What it costs a client to read log-probabilities from a server of completions.

    python benchmarks/http_engine.py [--rounds 5]

A server in a process of its own plays 256 streams at once, about 1.9 kB of JSON a token with 20
log-probabilities, in two regimes: as fast as each connection takes it, and paced as a server that
batches sends it, every token of every stream a write of its own. What is printed is the CPU time
of this process, user and system, from the moment that all streams stand; whatever is compared
takes turns in random order. `pip install openai orjson uvloop` adds what they can be compared to.
"""

import argparse
import asyncio
import gc
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import aiohttp
import anyio
import msgspec
from event_parsers import found, parsers
from replaying_server import MODEL, TOP_K, tokens

from conviction.answers import AnswerKind
from conviction.core import Question, Sampling
from conviction.engines.base import Capabilities, Chunk, TraceRequest
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import TraceReader
from conviction.engines.openai.facts import Dialect, Route
from conviction.engines.openai.traces import trace_body
from conviction.gate import Gate
from conviction.live import LiveTrace
from conviction.policies import Action, Conditions, Majority, Start
from conviction.thinking import deliberate
from conviction.verdict import Verdict

STREAMS = 256
QUESTION = Question.ask("How many?")
WINDOW = 2048
TARGETS = "targets: <= 15 us/token, <= 32 bytes/token"
ORDER = random.Random(7)  # noqa: S311


def trace(number: int, count: int) -> TraceRequest:
    sampling = Sampling(max_tokens=count)
    return TraceRequest(QUESTION.messages, sampling, trace=number, seed=number, top_k=TOP_K)


def body(number: int, count: int) -> dict[str, object]:
    return trace_body(
        trace(number, count), route=Route.CHAT, model=MODEL, dialect=Dialect(counts=True)
    )


class KnownServer(OpenAIEngine):
    """Spares the replaying server the questions that a real one is asked first."""

    async def capabilities(self) -> Capabilities:
        return Capabilities(MODEL, top_k=TOP_K, concurrency=STREAMS)


async def all_streams(read: Callable[[int], Awaitable[object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(STREAMS):
            tasks.start_soon(read, number)


class Dropping(asyncio.Protocol):
    def __init__(self) -> None:
        self.over = anyio.Event()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.over.set()


async def sockets(url: str, count: int) -> None:
    """What nobody who uses asyncio gets below: bytes are received and dropped."""
    address, loop = urlsplit(url), asyncio.get_running_loop()

    async def read(number: int) -> None:
        data = msgspec.json.encode(body(number, count))
        path, size = f"{address.path}/chat/completions", len(data)
        connected = loop.create_connection(Dropping, address.hostname, address.port)
        transport, protocol = await connected
        transport.write(f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode() + data)
        await protocol.over.wait()

    await all_streams(read)


async def bare(url: str, count: int) -> None:
    """The HTTP client that the engine stands on, and nothing else."""

    async def read(number: int) -> None:
        async with session.post(f"{url}/chat/completions", json=body(number, count)) as response:
            async for _ in response.content.iter_any():
                pass

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 18) as session:
        await all_streams(read)


async def engine(url: str, count: int) -> None:
    async def read(number: int) -> None:
        came = 0
        async with aclosing(servers.stream(trace(number, count))) as chunks:
            async for chunk in chunks:
                came += chunk.confidences.size
        assert came == count

    async with KnownServer(url, model=MODEL, concurrency=STREAMS) as servers:
        await all_streams(read)


class Nothing(AnswerKind):
    name = "nothing"
    quick = True

    def extract(self, text: str) -> str | None:
        del text
        return None

    def canonical(self, answer: str) -> str:
        return answer


@dataclass
class Gated(Majority):
    """Watches every token of every trace, and stops none."""

    budget: int = STREAMS

    def begin(self, conditions: Conditions) -> list[Action]:
        del conditions
        return [Start(self.budget, Gate(WINDOW, 0.0))]


async def driver(url: str, count: int) -> None:
    verdict = await driven(url, count)
    assert verdict.usage.generated == count * STREAMS


async def driven(url: str, count: int) -> Verdict:
    async with KnownServer(url, model=MODEL, concurrency=STREAMS) as servers:
        return await deliberate(
            QUESTION,
            engine=servers,
            policy=Gated(),
            answers=Nothing(),
            sampling=Sampling(max_tokens=count),
        )


async def official(url: str, count: int) -> None:
    """OpenAI's own client, which makes objects of everything that comes."""
    from openai import AsyncOpenAI  # noqa: PLC0415  # only compared to

    async def read(number: int) -> None:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION.text}],
            stream=True,
            logprobs=True,
            top_logprobs=TOP_K,
            max_tokens=count,
            seed=number,
        )
        async for _ in stream:
            pass

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        await all_streams(read)


@dataclass(frozen=True)
class Way:
    """One way to read all streams, and the costs that were measured of it."""

    name: str
    regime: str
    read: Callable[[str, int], Awaitable[None]]
    count: int
    loop: str = "asyncio"
    micros: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def measure(self, port: int) -> None:
        """Read all streams once, in an event loop of its own."""
        options = {"use_uvloop": self.loop == "uvloop"}
        anyio.run(self._measure, port, backend_options=options)

    async def _measure(self, port: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.read, f"http://127.0.0.1:{port}/{self.regime}/v1", self.count)
            await all_stand(port)
            cpu, wall = time.process_time(), time.perf_counter()
        cpu = time.process_time() - cpu
        self.micros.append(cpu / (self.count * STREAMS) * 1e6)
        self.busy.append(cpu / (time.perf_counter() - wall))


async def all_stand(port: int) -> None:
    """Until all streams are connected; what that took is settled, too."""
    async with await anyio.connect_tcp("127.0.0.1", port) as control:
        await control.send(b"GET /begin/%d HTTP/1.1\r\n\r\n" % STREAMS)
        await control.receive()
    await anyio.sleep(0.1)
    gc.collect()


def clients(port: int, fast: int, paced: int, rounds: int) -> None:
    readers = {
        "bare sockets": sockets,
        "bare aiohttp": bare,
        "OpenAIEngine.stream": engine,
        "driver with gates": driver,
    }
    ways = [
        Way(name, regime, read, count, loop)
        for regime, count in (("fast", fast), ("paced", paced))
        for loop in (("asyncio", "uvloop") if found("uvloop") else ("asyncio",))
        for name, read in readers.items()
    ]
    if found("openai"):
        ways += [
            Way("openai client", "fast", official, min(fast, paced)),
            Way("openai client", "paced", official, paced),
        ]
    for _ in range(rounds):
        for way in ORDER.sample(ways, len(ways)):
            way.measure(port)
    print(f"\n{STREAMS} streams, {fast} tokens each if fast, {paced} if paced; {rounds} rounds")
    print(f"{'':30}{'':9}{'us/token':>10}{'least':>8}{'most':>8}{'of engine':>11}{'busy':>7}")
    for way in sorted(ways, key=lambda way: way.regime):
        ours = next(w for w in ways if w.read is engine and w.regime == way.regime)
        ratio = median(mine / our for mine, our in zip(way.micros, ours.micros, strict=True))
        print(
            f"{way.regime + ', ' + way.name:30}{way.loop:9}{median(way.micros):>10.1f}"
            f"{min(way.micros):>8.1f}{max(way.micros):>8.1f}{ratio:>10.2f}x{median(way.busy):>7.0%}"
        )


async def verdict_bytes(port: int, count: int) -> int:
    """What a verdict over all streams keeps, once the connections are gone."""
    kept = 0

    async def read() -> None:
        nonlocal kept
        verdict = await driven(f"http://127.0.0.1:{port}/fast/v1", count)
        await anyio.sleep(0.5)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        assert len(verdict.traces) == STREAMS

    tracemalloc.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await all_stand(port)
    tracemalloc.stop()
    return kept


async def running_bytes(count: int) -> int:
    """What a trace that is being read keeps."""
    live = LiveTrace(id=0, seed=0, gate=Gate(WINDOW, 0.0), started=0.0)
    events, reader = list(tokens(count)), TraceReader(TOP_K, count)

    async def chunks() -> AsyncIterator[Chunk]:
        for event in events:
            chunk = reader.read([event])
            assert chunk
            yield chunk

    tracemalloc.start()
    await live.read(chunks())
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


def memory(port: int) -> None:
    """What a token costs in memory: the difference between long traces and short ones."""
    short, long = 200, 800
    anyio.run(verdict_bytes, port, short)
    less, more = (anyio.run(verdict_bytes, port, count) for count in (short, long))
    a_token = (more - less) / (long - short) / STREAMS
    a_trace = less / STREAMS - a_token * short
    running = anyio.run(running_bytes, 10 * long) / (10 * long)
    print(f"\nkept by a running trace: {running:.1f} bytes/token")
    print(
        f"kept by a verdict of {STREAMS} traces: {a_token:.1f} bytes/token, {a_trace:,.0f} a trace"
    )


@contextmanager
def replaying_server(pace: float) -> Iterator[int]:
    """A server's port."""
    program = Path(__file__).with_name("replaying_server.py")
    command = [sys.executable, str(program), "--pace", str(pace)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        # Leaving closes its standard input, which ends it.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", type=float, default=20.0, help="tokens/s of a paced stream")
    parser.add_argument("--fast", type=int, default=400, help="tokens of a fast stream")
    parser.add_argument("--paced", type=int, default=100, help="tokens of a paced stream")
    options = parser.parse_args()
    parsers(options.rounds)
    with replaying_server(options.pace) as port:
        memory(port)
        clients(port, options.fast, options.paced, options.rounds)
    print(TARGETS)


if __name__ == "__main__":
    main()
