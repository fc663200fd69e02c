"""Options for engines in a Ray cluster in place of one in this process."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from conviction.backends import Backend, room_for
from conviction.cli.terminal import WHOLE
from conviction.core import InvalidSettingError, Question, Sampling, require, require_whole
from conviction.engines.base import Engine
from conviction.ray.cluster import check_extra, connected, parse_resources

if TYPE_CHECKING:
    from conviction.ray.workers import RayWorkers

_PLACEMENT_SECONDS = 60.0


@Parameter(name="*", group="Ray")
@dataclass(frozen=True)
class RayOptions:
    """Engines in the actors of a Ray cluster, in place of one in this process."""

    ray: Annotated[list[str] | None, Parameter(consume_multiple=(0, 1), negative="")] = None
    """Spread whole questions over a Ray cluster: HOST:PORT of its head; without an address the
    one that runs on this machine, or else one that is started for this run."""
    actors: Annotated[int | None, WHOLE] = None
    """Actors, with one engine each; default: one for each --base-url, else as many as fit."""
    engine_resources: Annotated[list[str] | None, Parameter(negative="")] = None
    "What an actor needs on its node, as in GPU=1, CPU=4 or memory=8e9; repeat, or list several."
    placement_timeout: float = _PLACEMENT_SECONDS
    "Seconds to wait for room in the cluster."

    def check(self) -> None:
        """Refuse what cannot be used, before anything is started.

        Raises:
            UsageError: a value is out of its range, Ray is not installed, or is not asked for.
        """
        if self.ray is None:
            if self != type(self)():
                raise InvalidSettingError(
                    tried="use options for a Ray cluster",
                    found="there is no --ray",
                    remedy="Add it, with the address of the cluster or without.",
                )
            return
        if self.actors is not None:
            require_whole("actors", self.actors, low=1)
        require("placement_timeout", self.placement_timeout, low=1e-3)
        parse_resources(self.engine_resources or ())
        check_extra()

    def connected(self) -> AbstractContextManager[None]:
        """A connection to the cluster, where one is wanted."""
        if self.ray is None:
            return nullcontext()
        return connected(self.ray[0] if self.ray else None)

    def workers(
        self, backend: Backend, questions: Iterable[Question], sampling: Sampling, *, answers: str
    ) -> "Engine | RayWorkers":
        """What answers these questions: a cluster where one is wanted, else an engine here."""
        backend = backend.sized(room_for(questions, sampling))
        if self.ray is None:
            return backend.build()
        from conviction.ray.workers import Bounds, RayWorkers  # noqa: PLC0415  # an extra

        resources = parse_resources(self.engine_resources or ())
        return RayWorkers(
            [one.placed(resources) for one in backend.apart()],
            answers=answers,
            actors=self.actors,
            resources=resources,
            bounds=Bounds(placement=self.placement_timeout),
        )
