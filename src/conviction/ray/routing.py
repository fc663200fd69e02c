"""Which engine replica a trace goes to: the one that holds its prefix, as long as it has room."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, cast

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from conviction.engines.base import TraceRequest


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
        by_name = {_name(replica.replica_id): replica for replica in candidate_replicas}
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


def _name(replica: ReplicaID) -> str:
    return replica.unique_id
