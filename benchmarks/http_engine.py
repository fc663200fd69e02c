"""What it costs a client to read log-probabilities from a server of completions.

    python benchmarks/http_engine.py [--rounds 5]

A server in a process of its own plays 256 streams at once, about 1.9 kB of JSON a token with 20
log-probabilities, in two regimes: as fast as each connection takes it, and paced as a server that
batches sends it, every token of every stream a write of its own. What is printed is the CPU time
of this process, user and system, from the moment that all streams stand; whatever is compared
takes turns in random order. `pip install openai orjson uvloop` adds what they can be compared to.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import aiohttp
import anyio
import msgspec
import pydantic
from replaying_server import MODEL, TOP_K, tokens

from conviction.answers.base import AnswerKind
from conviction.core import Question, Sampling, Trace
from conviction.engines.base import Capabilities, TraceRequest
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import Event, TraceReader, decode
from conviction.engines.openai.requests import Dialect, Route, trace_body
from conviction.engines.openai.sse import EventParser
from conviction.gate import Gate
from conviction.policies import Action, Conditions, Majority, Start
from conviction.thinking import deliberate

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


async def bare(url: str, count: int) -> None:
    """The floor: the HTTP client that the engine stands on, and nothing else."""

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

    def extract(self, text: str) -> str | None:
        del text
        return None

    def canonical(self, answer: str) -> str:
        return answer


@dataclass
class Gated(Majority):
    """Watches every token of every trace, and stops none."""

    budget: int = STREAMS
    finished: int = field(default=0, init=False)

    def begin(self, conditions: Conditions) -> list[Action]:
        del conditions
        return [Start(self.budget, Gate(WINDOW, 0.0))]

    def on_finished(self, trace: Trace) -> list[Action]:
        self.finished += trace.tokens
        return []


async def driver(url: str, count: int) -> None:
    await driven(url, count, Gated())


async def driven(url: str, count: int, policy: Majority) -> None:
    async with KnownServer(url, model=MODEL, concurrency=STREAMS) as servers:
        verdict = await deliberate(
            QUESTION,
            engine=servers,
            policy=policy,
            answers=Nothing(),
            sampling=Sampling(max_tokens=count),
        )
    assert verdict.usage.generated == count * STREAMS


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
    readers = {"bare aiohttp": bare, "OpenAIEngine.stream": engine, "driver with gates": driver}
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


def found(package: str) -> bool:
    if find_spec(package):
        return True
    print(f"{package} is not installed: `pip install {package}` to compare with it")
    return False


def memory(port: int) -> None:
    """What a run keeps: the difference between long traces and short ones."""
    kept: dict[int, int] = {}

    class Watched(Gated):
        def on_finished(self, trace: Trace) -> list[Action]:
            super().on_finished(trace)
            if self.finished == STREAMS * trace.tokens:
                gc.collect()
                kept[trace.tokens], _ = tracemalloc.get_traced_memory()
            return []

        def fresh(self) -> "Watched":
            return Watched()

    async def once(count: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driven, f"http://127.0.0.1:{port}/fast/v1", count, Watched())
            await all_stand(port)

    lengths = (200, 800)
    for count in (lengths[0], *lengths):
        tracemalloc.start()
        anyio.run(once, count)
        tracemalloc.stop()
    (short, less), (long, more) = kept.items()
    a_token = (more - less) / (long - short) / STREAMS
    print(f"\nkept when {STREAMS} traces have ended: {a_token:.1f} bytes/token", end="")
    print(f" and {(less / STREAMS - a_token * short) / 1e3:.1f} kB/trace")


class LikelyToken(pydantic.BaseModel):
    logprob: float


class TokenPlace(pydantic.BaseModel):
    top_logprobs: list[LikelyToken]


class ContentLogprobs(pydantic.BaseModel):
    content: list[TokenPlace]


class ContentDelta(pydantic.BaseModel):
    content: str | None = None


class ContentChoice(pydantic.BaseModel):
    delta: ContentDelta
    logprobs: ContentLogprobs | None = None
    finish_reason: str | None = None


class ContentUsage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int


class ContentEvent(pydantic.BaseModel):
    """The fields that we decode, for pydantic."""

    choices: list[ContentChoice]
    usage: ContentUsage | None = None


def parts(rounds: int) -> None:
    """What parsing costs by itself, and what else the engine does with bytes."""
    data = list(tokens(400))
    decoder = msgspec.json.Decoder(Event)

    def each(parse: Callable[[bytes], object]) -> Callable[[], None]:
        def all_events() -> None:
            for event in data:
                parse(event)

        return all_events

    def reading(size: int) -> Callable[[], None]:
        lines = [b"data: " + event + b"\n\n" for event in data]
        pieces = [b"".join(lines[i : i + size]) for i in range(0, len(lines), size)]

        def all_pieces() -> None:
            parser, reader = EventParser(), TraceReader(TOP_K, len(data))
            for piece in pieces:
                reader.read(parser.feed(piece))

        return all_pieces

    works = {
        "msgspec, the fields we need": each(lambda event: decode(event, decoder)),
        "pydantic, the same fields": each(ContentEvent.model_validate_json),
        "json, everything": each(json.loads),
        "bytes to confidence, 1 event a read": reading(1),
        "bytes to confidence, 40 events a read": reading(40),
    }
    if found("orjson"):
        import orjson  # noqa: PLC0415  # only compared to

        works["orjson, everything"] = each(orjson.loads)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(4 * rounds):
        for name in ORDER.sample(list(works), len(works)):
            began = time.process_time()
            works[name]()
            taken[name].append((time.process_time() - began) / len(data) * 1e6)
    print(f"\nparsing an event of {sum(map(len, data)) / len(data):,.0f} bytes")
    for name, micros in sorted(taken.items(), key=lambda item: median(item[1])):
        pairs = zip(micros, taken["msgspec, the fields we need"], strict=True)
        ratio = median(mine / first for mine, first in pairs)
        print(f"{name:39}{median(micros):>10.1f}{ratio:>10.1f}x")


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
    parts(options.rounds)
    with replaying_server(options.pace) as port:
        memory(port)
        clients(port, options.fast, options.paced, options.rounds)
    print(TARGETS)


if __name__ == "__main__":
    main()
