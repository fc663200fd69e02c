"""Whatever servers and callers do, every trace comes to an end and gives its place back.

The engine is the real one; its servers are played in virtual time, where a trace that would
wait for ever is found at once.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import virtual_time
from completion_events import SOME, STOP, assert_idle, events, request
from hypothesis import given, note, settings
from hypothesis import strategies as st
from virtual_time import now

from conviction.core import Sampling
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.failures import Failures
from conviction.engines.openai.http import HttpClient
from conviction.errors import EngineError

PATIENCE = 20.0
LONGEST = 1500.0
"""Seconds that a handful of traces may take in the worst of worlds."""


@dataclass(eq=False)
class Played:
    """A server that takes so many traces at once, and is down at times.

    Attributes:
        capacity: Traces at once; more are refused.
        pace: Seconds per token.
        outages: When it goes down and how long it stays there.
        asks: Seconds that it asks refused traces to wait.
    """

    capacity: int
    pace: float
    outages: Sequence[tuple[float, float]]
    asks: float | None
    running: int = 0
    most_running: int = 0
    base_url: str = "http://played"
    failures: Failures = field(default_factory=lambda: Failures("http://played", None))

    @property
    def down(self) -> bool:
        return any(begin <= now() < begin + seconds for begin, seconds in self.outages)

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        assert (method, path, body) == ("GET", "/models", None)
        await anyio.sleep(0.01)
        if self.down:
            raise self.failures.unreachable(ConnectionRefusedError("down"))
        return b"{}"

    async def stream(self, path: str, body: dict[str, Any]) -> "PlayedStream":
        assert path.endswith("completions")
        await anyio.sleep(0.01)
        if self.down:
            raise self.failures.unreachable(ConnectionRefusedError("down"))
        if self.running >= self.capacity:
            headers = {} if self.asks is None else {"Retry-After": str(self.asks)}
            raise self.failures.answered(429, headers, b"too many")
        return PlayedStream(self, body["max_tokens"])


class PlayedStream:
    def __init__(self, server: Played, tokens: int) -> None:
        self._server = server
        self._tokens = tokens
        self._closed = False
        server.running += 1
        server.most_running = max(server.most_running, server.running)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        for _ in range(self._tokens):
            await anyio.sleep(self._server.pace)
            if self._server.down:
                raise self._server.failures.broken("the connection was lost")
            yield events(SOME)
        yield events(STOP) + b"data: [DONE]\n\n"

    async def drain(self) -> None:
        await anyio.sleep(0.01)

    def close(self) -> None:
        assert not self._closed
        self._closed = True
        self._server.running -= 1


@dataclass(frozen=True)
class Caller:
    """Somebody who wants a trace, and may go away, or stop it after some tokens."""

    arrives: float
    tokens: int
    stays: float
    enough: int


def an_engine(servers: Sequence[Played], concurrency: int, retries: int) -> OpenAIEngine:
    urls = [f"http://played-{number}" for number in range(len(servers))]
    engine = OpenAIEngine(urls, concurrency=concurrency, retries=retries, patience=PATIENCE)
    for known, played in zip(engine._servers, servers, strict=True):
        known.http = cast("HttpClient", played)
    engine._balancer.clock = now
    return engine


async def one_trace(engine: OpenAIEngine, caller: Caller) -> str:
    await anyio.sleep(caller.arrives)
    tokens = 0
    asked = request(sampling=Sampling(max_tokens=caller.tokens))
    with anyio.move_on_after(caller.stays):
        try:
            async with aclosing(engine.stream(asked)) as chunks:
                async for chunk in chunks:
                    tokens += chunk.confidences.size
                    if tokens >= caller.enough:
                        return "stopped"
        except EngineError as error:
            return f"failed: {error.found}"
        assert tokens == caller.tokens
        return "complete"
    return "gone"


async def all_traces(engine: OpenAIEngine, callers: Sequence[Caller]) -> list[str]:
    ends = [""] * len(callers)

    async def tell(number: int, caller: Caller) -> None:
        ends[number] = await one_trace(engine, caller)

    async with anyio.create_task_group() as tasks:
        for number, caller in enumerate(callers):
            tasks.start_soon(tell, number, caller)
    return ends


times = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0])
servers = st.builds(
    Played,
    capacity=st.integers(0, 4),
    pace=st.sampled_from([0.01, 0.1, 3.0]),
    outages=st.lists(st.tuples(times, st.sampled_from([0.05, 1.0, 10.0, 1000.0])), max_size=3),
    asks=st.sampled_from([None, None, 0.0, 5.0, 60.0, 600.0]),
)
callers = st.builds(
    Caller,
    arrives=times,
    tokens=st.integers(1, 20),
    stays=st.one_of(st.just(1e6), times),
    enough=st.one_of(st.just(99), st.integers(1, 20)),
)


@settings(max_examples=300)
@given(
    st.lists(servers, min_size=1, max_size=3),
    st.lists(callers, min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 5),
)
def test_every_trace_ends_and_nothing_is_left_behind(
    servers: list[Played], callers: list[Caller], concurrency: int, retries: int
) -> None:
    async def main() -> None:
        engine = an_engine(servers, concurrency, retries)
        ends = await all_traces(engine, callers)
        note(f"{ends} after {now():g} s")
        assert now() < LONGEST
        assert_idle(engine)
        assert [server.running for server in servers] == [0] * len(servers)
        assert all(server.most_running <= concurrency for server in servers)

    for server in servers:
        server.running = server.most_running = 0
    virtual_time.run(main)


@settings(max_examples=50)
@given(
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 3),
    st.sampled_from([None, 0.0, 2.0]),
)
def test_a_busy_server_takes_all_traces_in_the_end(
    capacity: int, traces: int, concurrency: int, retries: int, asks: float | None
) -> None:
    """However few it takes at once: what is busy with our own traces is not out of order."""

    async def main() -> None:
        server = Played(capacity, 3.0, (), asks)  # A trace takes longer than the patience.
        engine = an_engine([server], concurrency, retries)
        ends = await all_traces(engine, [Caller(0.0, 10, 1e9, 99)] * traces)
        assert ends == ["complete"] * traces
        assert server.most_running <= capacity

    virtual_time.run(main)


def test_after_an_outage_all_servers_are_used_again() -> None:
    async def main() -> None:
        servers = [Played(4, 0.1, [(5.0, 20.0)], None), Played(4, 0.1, (), None)]
        engine = an_engine(servers, 4, 5)
        callers = [Caller(number / 4, 10, 1e9, 99) for number in range(400)]
        ends = await all_traces(engine, callers)
        lost = [end for end in ends if end != "complete"]
        assert len(lost) <= 4
        assert all("connection was lost" in end for end in lost)

        again = [Caller(0, 10, 1e9, 99)] * 8
        assert await all_traces(engine, again) == ["complete"] * 8
        assert [server.most_running for server in servers] == [4, 4]

    virtual_time.run(main)


def test_success_wipes_out_what_failed_before() -> None:
    async def main() -> None:
        server = Played(4, 0.1, [(0.0, 0.3), (3 * PATIENCE, 0.3)], None)
        engine = an_engine([server], 4, 5)
        callers = [Caller(arrives, 5, 1e9, 99) for arrives in (0.0, 3 * PATIENCE)]
        assert await all_traces(engine, callers) == ["complete"] * 2

    virtual_time.run(main)


def test_a_server_that_was_crowded_gets_as_many_traces_as_before_once_it_takes_them() -> None:
    async def main() -> None:
        server = Played(2, 0.1, (), None)
        engine = an_engine([server], 8, 5)
        assert await all_traces(engine, [Caller(0, 5, 1e9, 99)] * 9) == ["complete"] * 9
        [endpoint] = engine._balancer.endpoints
        assert endpoint.limit < 8
        server.capacity = 8
        assert await all_traces(engine, [Caller(0, 5, 1e9, 99)] * 30) == ["complete"] * 30
        assert endpoint.limit == server.most_running == 8

    virtual_time.run(main)


def test_tokens_that_came_are_outstanding_no_more() -> None:
    async def main() -> None:
        engine = an_engine([Played(1, 0.1, (), None)], 1, 0)
        [endpoint] = engine._balancer.endpoints
        asked = request(sampling=Sampling(max_tokens=4))
        async with aclosing(engine.stream(asked)) as chunks:
            left = [endpoint.outstanding async for _ in chunks]
        assert left == [3, 2, 1, 0, 0]

    virtual_time.run(main)
