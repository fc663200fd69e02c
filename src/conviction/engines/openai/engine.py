"""An engine over HTTP: one or several servers that speak the OpenAI protocol of completions.

One request per trace, with a single choice, so that each trace can be cancelled alone: closing
its connection is what tells the server to stop.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from conviction.core import require, require_whole
from conviction.display import quoted
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.engines.openai.facts import FILTERS_OFF, Dialect, FactsCache, Route, ServerFacts
from conviction.engines.openai.http import NO_HEADERS, NOTHING, HttpClient, Json, Timeouts, check
from conviction.engines.openai.probe import find_model, probe
from conviction.engines.openai.servers import (
    Balancer,
    Endpoint,
    Lease,
    Server,
    backoff,
    common_capabilities,
)
from conviction.engines.openai.traces import SilentChannelError, TraceStream, open_trace
from conviction.engines.vllm_gate import remove_leftovers
from conviction.errors import (
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    StreamError,
    TemporarilyUnavailableError,
)


class OpenAIEngine(Engine):
    """Generates traces on servers of completions, such as vLLM, SGLang and llama.cpp.

    Several addresses make one engine: a trace goes to the server with the fewest outstanding
    tokens; one that fails gets no new traces until it answers again.

    Args:
        base_url: Address that "/chat/completions" is added to, as in "http://127.0.0.1:8000/v1";
            or several.
        model: Name of the model; None for the first that the server lists.
        api_key: Key to send, to all servers; never shown, never logged.
        route: `Route.COMPLETIONS` for prompts that have the model's template already.
        concurrency: Traces that one server gets at once, at least 1; further traces wait.
        retries: How often a request that a server did not take is sent again, at least 0.
        patience: Seconds that all servers may fail before traces stop waiting for them. Time that
            a server asks for is granted beside it, up to two minutes.
        facts_folder: Where to keep what was found out about servers; None to ask at every start.
        headers: Further headers of every request; never shown, never logged.
        extra: Further settings to send with every trace.

    Raises:
        InvalidSettingError: a setting lies outside of its range, or an address is unusable.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        model: str | None = None,
        api_key: str | None = None,
        route: Route = Route.CHAT,
        concurrency: int = 64,
        timeouts: Timeouts | None = None,
        retries: int = 5,
        patience: float = 30.0,
        facts_folder: Path | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        extra: Json = NOTHING,
    ) -> None:
        require_whole("concurrency", concurrency, low=1)
        require_whole("retries", retries, low=0)
        require("patience", patience, low=0)
        given = [base_url] if isinstance(base_url, str) else base_url
        urls = list(dict.fromkeys(url.rstrip("/") for url in given))
        if not urls:
            raise InvalidSettingError(
                tried="make an engine of servers",
                found="there is no address",
                remedy="Give at least one, such as http://127.0.0.1:8000/v1.",
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidSettingError(
                tried="use the key that was given",
                found="it is no single line of plain characters",
                remedy="Leave out what surrounds it, such as the end of a line.",
            )
        self._model = model
        self._route = route
        self._concurrency = concurrency
        self._retries = retries
        self._cache = FactsCache(facts_folder) if facts_folder else None
        self._extra = dict(extra)
        bounds = timeouts or Timeouts()
        self._servers = [
            Server(HttpClient(url, api_key=api_key, timeouts=bounds, headers=headers))
            for url in urls
        ]
        endpoints = [Endpoint(server, concurrency) for server in self._servers]
        self._balancer = Balancer(endpoints, lambda server: check(server.http), patience)
        self._stack = AsyncExitStack()
        self._probing = anyio.Lock()
        self._capabilities: Capabilities | None = None

    @property
    def name(self) -> str:
        """The model's name and the servers' addresses."""
        used = [server for server in self._servers if server.trouble is None] or self._servers
        addresses = " and ".join(server.http.base_url for server in used)
        return f"{quoted(self._model or 'a model')} at {addresses}"

    @property
    def servers(self) -> Sequence[Server]:
        """The servers, in the order given."""
        return tuple(self._servers)

    @property
    def failure(self) -> EngineError | None:
        """The last failure of a server that has taken nothing since, if none of them works."""
        failures = [endpoint.failure for endpoint in self._balancer.endpoints]
        known = [*failures, *(server.trouble or server.failing for server in self._servers)]
        working = self._capabilities is not None and None in failures
        return None if working else next(filter(None, known), None)

    async def __aenter__(self) -> Self:
        """Open the clients; the servers are first spoken to when something is asked."""
        async with AsyncExitStack() as stack:
            for server in self._servers:
                await stack.enter_async_context(server.http)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._stack.aclose()

    async def capabilities(self) -> Capabilities:
        """What the servers can do: asked once, with their lists of models and small requests."""
        async with self._probing:
            if self._capabilities is None:
                self._capabilities = await self._find_out()
            return self._capabilities

    async def check(self) -> None:
        """Ask all servers for a sign of life; one is enough, else the first error is raised."""
        troubles: list[EngineError] = []

        async def ask(server: Server) -> None:
            try:
                await check(server.http)
            except EngineError as error:
                troubles.append(error)

        async with anyio.create_task_group() as tasks:
            for server in self._servers:
                tasks.start_soon(ask, server)
        if len(troubles) == len(self._servers):
            raise troubles[0]

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace.

        Raises:
            EngineUnavailableError: no server can be reached, or it refuses us.
            ContextOverflowError: the trace does not fit the model's context.
            StreamError: the stream broke, stalled, or is no stream of completions.
            EngineError: the server refuses the request for another reason.
        """
        lease, trace, notes = await self._begin(request)
        server = lease.endpoint.server
        complete = False
        try:
            # Closing this generator closes the connection.
            async with aclosing(trace.chunks()) as chunks:
                async for chunk in chunks:
                    lease.advance(chunk.confidences.size)
                    yield replace(chunk, notes=notes) if notes else chunk
                    notes = ()
            last = await trace.last()
            complete = True
            if request.top_k and not trace.informed:
                await self._forget(server)
        except SilentChannelError:
            # Not broken: its next trace asks for log-probabilities.
            await self._forget(server)
            server.lose_gate()
            raise
        except StreamError:
            lease.endpoint.broke(self._balancer.clock())
            raise
        finally:
            trace.close()
            self._balancer.give_back(lease, complete=complete)
        yield replace(last, notes=(*notes, *last.notes)) if notes else last

    async def _begin(
        self, request: TraceRequest
    ) -> tuple[Lease[Server], TraceStream, tuple[str, ...]]:
        """A server's answer, once one takes the trace, and what happened on the way."""
        notes: dict[str, None] = {}
        attempts = 0
        while True:
            lease = await self._balancer.take(request.sampling.max_tokens)
            endpoint = lease.endpoint
            facts = endpoint.server.facts
            try:
                trace = await self._open(endpoint.server, request)
            except EngineUnavailableError as error:
                self._balancer.give_back(lease)
                alone = len(self._balancer.endpoints) == 1
                if alone and not isinstance(error, TemporarilyUnavailableError):
                    raise
                # A server that is busy with our own traces takes this one when one of them ends.
                attempts += not (error.busy and endpoint.open)
                now = self._balancer.clock()
                if error.busy:
                    endpoint.crowded(error, now, error.wait)
                else:
                    endpoint.failed(error, now)
                if attempts > self._retries:
                    raise
                notes[f"A request had to be sent again: {error.tried}: {error.found}."] = None
            except BaseException as error:
                self._balancer.give_back(lease)
                if not await self._asked_anew(endpoint.server, facts, error):
                    raise
            else:
                endpoint.answered()
                return lease, trace, tuple(notes)

    async def _asked_anew(
        self, server: Server, facts: ServerFacts | None, error: BaseException
    ) -> bool:
        """Whether a refusal may be due to facts that are no longer true, and was: then try again.

        Servers are restarted with other settings while what was found out about them is kept.
        """
        if type(error) is not EngineError:
            return False
        async with self._probing:
            if not server.remembered:
                return server.facts is not facts  # Another trace has had it asked.
            await self._forget(server)
            listed = await find_model(server.http, self._model)
            server.facts = await self._probe(server, listed)
        return True

    async def _forget(self, server: Server) -> None:
        """Have what is remembered of a server asked again, at the latest by the next run."""
        server.remembered = False
        if self._cache and server.facts:
            known = (server.http.base_url, server.facts.model, self._route)
            await anyio.to_thread.run_sync(self._cache.forget, *known)

    async def _open(self, server: Server, request: TraceRequest) -> TraceStream:
        plainest = Dialect(dict(FILTERS_OFF[0]))
        facts = server.facts or ServerFacts(self._model or "", dialect=plainest)
        return await open_trace(server.http, facts, request, route=self._route, extra=self._extra)

    async def _find_out(self) -> Capabilities:
        async with anyio.create_task_group() as tasks:
            for server in self._servers:
                server.trouble = None  # That of an earlier call may be over.
                tasks.start_soon(self._ask, server)
        troubles = [server.trouble for server in self._servers if server.trouble]
        if len(troubles) == len(self._servers):
            raise troubles[0]
        capabilities = common_capabilities(self._servers, self._concurrency)
        self._model = capabilities.model
        if any(server.facts and server.facts.channel for server in self._servers):
            await anyio.to_thread.run_sync(remove_leftovers)
        # Not a new balancer: traces may be waiting at this one already.
        self._balancer.endpoints = [
            endpoint for endpoint in self._balancer.endpoints if endpoint.server.trouble is None
        ]
        return capabilities

    async def _ask(self, server: Server) -> None:
        """Find out about a server; one that is busy, or still loading its model, is waited for."""
        deadline = self._balancer.clock() + self._balancer.patience
        failures = 0
        while server.facts is None and server.trouble is None:
            try:
                server.facts = await self._facts(server)
                server.failing = None
            except TemporarilyUnavailableError as error:
                wait = error.wait or backoff(failures)
                failures += 1
                server.failing = error
                if not error.busy or self._balancer.clock() + wait > deadline:
                    server.trouble = error
                else:
                    await anyio.sleep(wait)
            except EngineError as error:
                server.trouble = error

    async def _facts(self, server: Server) -> ServerFacts:
        listed = await find_model(server.http, self._model)
        known = None
        if self._cache:
            which = (server.http.base_url, listed.model, self._route)
            known = await anyio.to_thread.run_sync(self._cache.load, *which)
        if known is None:
            return await self._probe(server, listed)
        server.remembered = True
        return replace(known, listed=listed.listed, context=listed.context)

    async def _probe(self, server: Server, listed: ServerFacts) -> ServerFacts:
        facts = await probe(server.http, self._route, listed)
        # Without log-probabilities, the user may switch them on and start again at once.
        if self._cache and facts.top_k:
            place = (server.http.base_url, self._route)
            await anyio.to_thread.run_sync(self._cache.save, *place, facts)
        return facts
