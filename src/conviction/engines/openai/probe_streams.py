"""Finding out what only the streams of a server show, with the help of its metrics."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

import anyio
import msgspec

from conviction.engines.openai.events import EventParser, TraceReader, decode
from conviction.engines.openai.facts import Route, ServerFacts
from conviction.engines.openai.http import HttpClient, Json
from conviction.engines.openai.shapes import Event
from conviction.errors import EngineError, EngineUnavailableError

_STREAMS = 3
_ENOUGH_TOKENS = 16
"""Tokens after which it is clear whether they arrive one by one."""

_LEAST_PIECES = 4
_FREED_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_BEGUN = "one two three"
_EVENT = msgspec.json.Decoder(Event)

_SAMPLE = re.compile(
    r"^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})?[ \t]+(\d+(?:\.\d+)?(?:[eE][-+]?\d{1,2})?)(?:[ \t]+\d+)?$",
    re.ASCII | re.MULTILINE,
)
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_GENERATED = (
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
    "llamacpp:tokens_predicted_total",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What a server was doing at one moment, by its Prometheus metrics.

    `generated` are its tokens since it started; None where it does not report them.
    """

    running: float
    generated: float | None


def read_load(metrics: str) -> Load | None:
    """The load in a page of metrics; None where no known name stands in it."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name in _RUNNING or name in _GENERATED:
            sums[name] = sums.get(name, 0.0) + float(value)
    running = next((sums[name] for name in _RUNNING if name in sums), None)
    if running is None:
        return None
    return Load(running, next((sums[name] for name in _GENERATED if name in sums), None))


@dataclass(frozen=True, slots=True)
class StreamProbe:
    """Small streamed requests to one server."""

    http: HttpClient
    route: Route

    async def counts_in_events(self, body: Json) -> Literal["", "usage", "timings"]:
        """Where every event can carry the counts of tokens, by a request for both kinds."""
        try:
            data = await self._events(body)
            events = [decode(event, _EVENT) for event in data if event.startswith(b"{")]
        except EngineUnavailableError:
            raise
        except (EngineError, ValueError):
            return ""
        early = [e for e in events if e.choices and not e.choices[0].finish_reason]
        if any(event.usage and event.usage.completion_tokens is not None for event in early):
            return "usage"
        return "timings" if any(event.timings for event in early) else ""

    async def watch(
        self, facts: ServerFacts, body: Callable[[int], Json], top_k: int, tokens: int
    ) -> ServerFacts:
        """Find out whether tokens arrive one by one, and what closing a stream does.

        A trace may end by itself before that can be seen, so there are several attempts. A machine
        that is busy may read late what was sent one by one, so lumps have to be seen twice.

        `body` gives the request for a trace of `tokens` with a seed.
        """
        for seed in range(1, 1 + _STREAMS):
            found = await self._watch_one(facts, body(seed), top_k, tokens)
            in_lumps_again = found.incremental is False and facts.incremental is False
            if found.incremental is not None:
                facts = found
            if found.incremental or in_lumps_again:
                break
        return facts

    async def continues(self, body: Callable[[str], Json]) -> bool | None:
        """Whether the server goes on with a begun message, told by how its prompts grow.

        The same words add as many tokens the first time as the second, unless the message was
        closed and another one opened: the first time adds the marks of that, too. What the model
        writes tells less: a small one may start over, a good one may go on with a closed message.

        `body` gives the request for one token after a given beginning. None if the server does not
        count its prompts' tokens.
        """
        if self.route is Route.COMPLETIONS:
            return True
        beginnings = ("", _BEGUN, f"{_BEGUN} {_BEGUN}")
        prompts: list[int] = []
        try:
            for begun in beginnings:
                reader = TraceReader(top_k=0)
                chunk = reader.read(await self._events(body(begun)))
                prompts.append(reader.finish().prompt_tokens)
                if begun and chunk and chunk.text.startswith(_BEGUN):
                    return False  # The beginning came back as if it had been generated.
        except EngineUnavailableError:
            raise
        except EngineError:
            return False
        none, once, twice = prompts
        return once - none == twice - once if 0 < none < once < twice else None

    async def _watch_one(
        self, facts: ServerFacts, body: Json, top_k: int, tokens: int
    ) -> ServerFacts:
        before = await self._load()
        stream = await self.http.stream(self.route, body)
        reader, parser, pieces = TraceReader(top_k, tokens), EventParser(), 0
        try:
            async for piece in stream.pieces():
                seen = reader.tokens
                reader.read(parser.feed(piece))
                pieces += reader.tokens > seen
                if reader.done or (reader.tokens >= _ENOUGH_TOKENS and pieces >= _LEAST_PIECES):
                    break
        finally:
            stream.close()
        incremental = None if reader.tokens < _ENOUGH_TOKENS else pieces >= _LEAST_PIECES
        if before is None or reader.done:
            return replace(facts, incremental=incremental, frees=None, tokens_after_close=None)
        frees, after = await self._watch_it_end(before, reader.tokens)
        return replace(facts, incremental=incremental, frees=frees, tokens_after_close=after)

    async def _watch_it_end(self, before: Load, read: int) -> tuple[bool, int | None]:
        """Whether the server stops, and how many tokens it generated that were not read."""
        load = await self._load()
        deadline = time.monotonic() + _FREED_SECONDS
        while load is not None and load.running > before.running and time.monotonic() < deadline:
            await anyio.sleep(_LOOK_SECONDS)
            load = await self._load()
        freed = load is not None and load.running <= before.running
        if load is None or before.generated is None or load.generated is None:
            return freed, None
        # Some servers count a request's tokens only once it has ended.
        return freed, max(0, round(load.generated - before.generated) - read)

    async def _events(self, body: Json) -> list[bytes]:
        """The data of all events of a stream."""
        parser = EventParser()
        stream = await self.http.stream(self.route, body)
        try:
            data = [event async for piece in stream.pieces() for event in parser.feed(piece)]
        finally:
            stream.close()
        return data + parser.finish()

    async def _load(self) -> Load | None:
        address = urlsplit(self.http.base_url)
        path = address.path.removesuffix("/v1") + "/metrics"
        try:
            page = await self.http.ask("GET", address._replace(path=path).geturl())
        except EngineError:
            return None
        return read_load(page.decode("utf-8", "replace"))
