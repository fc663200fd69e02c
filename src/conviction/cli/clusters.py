"""Options for engines in a Ray cluster in place of one in this process."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from conviction.cli.arguments import WHOLE
from conviction.cli.asking import context_for
from conviction.cli.server import ServerOptions
from conviction.core import InvalidSettingError, Sampling, require, require_whole
from conviction.engines.base import Engine
from conviction.evaluation.plan import PromptedQuestion
from conviction.ray.cluster import check_extra, connected, parse_resources
from conviction.ray.engines import EngineFactory, LocalFactory

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
    "What an actor needs on its node, as in GPU=1, CPU=4 or memory=8e9; repeat for several."
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

    def instead_of(
        self,
        engine: Engine,
        *,
        server: ServerOptions,
        model: str | None,
        asked: Sequence[PromptedQuestion],
        sampling: Sampling,
        answers: str,
    ) -> "Engine | RayWorkers":
        """The workers in the cluster where one is wanted, else the engine as it is.

        Args:
            engine: What would generate the traces in this process.
            server: Where its servers are, if it has any.
            model: Name of the model.
            asked: The questions.
            sampling: How tokens are drawn.
            answers: Name of the kind of answer.
        """
        if self.ray is None:
            return engine
        from conviction.ray.workers import Bounds, RayWorkers  # noqa: PLC0415  # an extra

        resources = parse_resources(self.engine_resources or ())
        gpus = int(resources.get("GPU", 0))
        engines: Sequence[EngineFactory] = server.factories(model, gpus=gpus)
        if not engines:
            threads = int(resources.get("CPU", 0)) or None
            context = context_for(asked, sampling)
            engines = [LocalFactory(model, context=context, threads=threads)]
        return RayWorkers(
            engines,
            answers=answers,
            actors=self.actors,
            resources=resources,
            bounds=Bounds(placement=self.placement_timeout),
        )
