"""The engine replicas as a driver replica sees them, through a handle of Serve.

A trace goes to the replica that holds its prefix, as long as that has room.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from contextvars import Context
from copy import copy
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Self, cast

import anyio
from ray.exceptions import RayError
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.errors import EngineStartError, EngineUnavailableError, StreamError
from conviction.ray.host import Batch, Started

_SILENCE_SECONDS = 30.0
_CHECK_SECONDS = 5.0
_FULL_SECONDS = 0.05


class RemoteEngine(Engine):
    """Generates traces on the engine replicas of a service.

    Args:
        handle: Of the deployment of engine replicas.
        replicas: The most replicas that there may be; so many traces more may wait for them.
        takes: The most traces that a replica runs at once.
        start_timeout: Seconds that the first replica may take to start.
    """

    def __init__(
        self, handle: Any, replicas: int, takes: int, *, start_timeout: float = 600.0
    ) -> None:
        self._handle = handle
        # Calls of a handle wait in one line, whatever they call: what is no trace has its own.
        self._asking = copy(handle)
        self._replicas = replicas
        self._takes = takes
        self._start_timeout = start_timeout
        self._started: Started | None = None

    async def __aenter__(self) -> Self:
        """Wait for an engine.

        Raises:
            EngineStartError: none has started in time.
        """
        try:
            with anyio.fail_after(self._start_timeout):
                self._started = await self._asking.started.remote()
        except (TimeoutError, RayError) as error:
            reason = f"no answer within {self._start_timeout:g} s"
            raise EngineStartError(
                tried="wait for an engine replica",
                found=reason if isinstance(error, TimeoutError) else str(error),
                remedy="See `serve status` and the logs of the replicas.",
            ) from None
        return self

    @property
    def name(self) -> str:
        """The engine's name."""
        return self._known().engine

    async def capabilities(self) -> Capabilities:
        """What an engine can do; as many traces at once as all replicas run that there may be."""
        known = self._known().capabilities
        each = min(known.concurrency, self._takes)
        return replace(known, concurrency=each * self._replicas, gates=True)

    async def check(self) -> None:
        """See whether any engine replica answers.

        Raises:
            EngineUnavailableError: none does.
        """
        try:
            with anyio.fail_after(_CHECK_SECONDS):
                await self._asking.started.remote()
        except (TimeoutError, RayError):
            raise EngineUnavailableError(
                tried="reach an engine replica",
                found=f"none answered within {_CHECK_SECONDS:g} s",
                remedy="See `serve status`.",
            ) from None

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace on the replica that has its prefix, or else has room.

        Raises:
            StreamError: the replica was lost; the trace may be begun again elsewhere.
            ConvictionError: as the engine raised it.
        """
        response, batches = self._begin(request)
        over = False
        seconds: float | None = None  # Until its turn comes, the request's own time bounds it.
        try:
            while not over:
                with anyio.fail_after(seconds):
                    batch = await anext(batches)
                if batch.full:
                    # Drivers that do not know of each other sent it more than it takes. It is left
                    # out as long as Serve remembers that.
                    await anyio.sleep(_FULL_SECONDS)
                    response, batches = self._begin(request)
                    continue
                seconds = _SILENCE_SECONDS
                for chunk in batch.chunks:
                    over = over or chunk.finish is not None
                    yield chunk
                if batch.error is not None:
                    over = True
                    raise batch.error
        except (RayError, TimeoutError, StopAsyncIteration) as error:
            reason = str(error).strip().splitlines()
            raise StreamError(
                tried=f"generate a trace on a replica of {self.name}",
                found=reason[-1].strip() if reason else "it fell silent, or ended without a word",
                remedy="Ask again; Serve starts replicas anew.",
            ) from None
        finally:
            if not over:
                with suppress(Exception):  # Whatever Serve says: it is as good as gone.
                    response.cancel()

    def _begin(self, request: TraceRequest) -> tuple[Any, AsyncGenerator[Batch]]:
        # Serve would give all calls within one request the same inner id, and a router of our own
        # tells them apart by it: in an empty context each is a request of its own.
        begin = self._handle.options(stream=True).stream.remote
        response: Any = Context().run(begin, request)
        return response, cast("AsyncGenerator[Batch]", aiter(response))

    def _known(self) -> Started:
        if self._started is None:
            raise EngineStartError(
                tried="use the engine replicas",
                found="nobody has waited for them",
                remedy="Enter the engine first: async with engine.",
            )
        return self._started


def ranked(request: TraceRequest, replicas: Sequence[str]) -> list[str]:
    """Names of replicas, the one first that traces with these messages prefer.

    Every driver replica ranks alike without asking anybody, and a replica that comes or goes moves
    only the prefixes that it gets or had (rendezvous hashing).
    """
    prefix = blake2b(digest_size=16)
    for message in request.messages:
        prefix.update(f"{len(message.content)} {message.role} {message.content}".encode())
    key = prefix.digest()

    def weight(name: str) -> bytes:
        return blake2b(name.encode(), key=key, digest_size=8).digest()

    return sorted(replicas, key=weight, reverse=True)


class PrefixRouter(RequestRouter):
    """Sends a trace to the first replica of its ranking that has room.

    A replica answers more calls at once than it takes traces, so that questions about it (whether
    it lives, what it is) never wait behind those.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve hands over what the deployment says: `takes`, how many traces a replica takes."""
        self._takes = int(kwargs["takes"])

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas, one a rank; for requests that are no traces, all in one."""
        if pending_request is not None:
            # All replicas were looked at, so the next look is worth a pause.
            pending_request.routing_context.should_backoff = True
        arguments: Sequence[Any] = pending_request.args if pending_request else ()
        if not arguments or not isinstance(arguments[0], TraceRequest):
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [
            [cast("RunningReplica", _ForTraces(by_name[name], self._takes))]
            for name in ranked(arguments[0], list(by_name))
        ]


class _ForTraces:
    """A replica as traces see it: full with as many calls as it takes traces."""

    def __init__(self, replica: RunningReplica, takes: int) -> None:
        self._replica = replica
        self.max_ongoing_requests = takes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)
