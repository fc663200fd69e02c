"""A pool of actors in a Ray cluster, each with an engine that runs; those that die are replaced."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.to_thread
import ray

from conviction.backends import Backend
from conviction.core import require, require_whole
from conviction.errors import (
    ConvictionError,
    EngineStartError,
    InvalidSettingError,
    ModelError,
    UsageError,
)
from conviction.evaluation import counted
from conviction.ray.actor import EngineActor, Home
from conviction.ray.calls import AnsweredError, LostError, told, within
from conviction.ray.cluster import Cluster, actor_options, wanted
from conviction.ray.host import Started
from conviction.thinking import TOP_K

Result = TypeVar("Result")

_MOST_STARTS = 3
"""How often an actor is tried to be started, one time after another."""
_STOP_SECONDS = 10.0

_ray = cast("Any", ray)  # Its types are not those that pyright wants to see.


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long to wait for actors, in seconds.

    Attributes:
        placement: For room in the cluster, and for an actor to be put there.
        start: For an engine to start.
        silence: For a sign of life from an actor that thinks.
    """

    placement: float = 60.0
    start: float = 600.0
    silence: float = 30.0

    def __post_init__(self) -> None:
        for name in ("placement", "start", "silence"):
            require(name, getattr(self, name), low=1e-3)


@dataclass(eq=False)
class PooledActor:
    """An actor whose engine runs, and how many questions it has."""

    handle: Any
    home: Home
    started: Started
    busy: int = 0
    reason: str = ""
    lost: anyio.Event = field(default_factory=anyio.Event)


class ActorPool:
    """Keeps actors alive; entering it starts them, leaving it ends them. Ray must be connected.

    Args:
        engines: Which engines the actors hold, taken in turns: actor n takes the n-th.
        answers: Name of the kind of answer.
        actors: How many actors; None for one for each of `engines`, or if that is a single one,
            as many as the cluster has room for: one a node, if they need no resources.
        resources: What each needs on its node, as in {"GPU": 2}; empty for nothing.
        bounds: How long to wait.

    Attributes:
        size: How many actors there are to be.
        losses: Why actors were lost, each.
        setbacks: Why there are fewer actors than there were to be; whole sentences.

    Raises:
        InvalidSettingError: there is no engine, or a number is out of its range.
    """

    def __init__(
        self,
        engines: Sequence[Backend],
        *,
        answers: str,
        actors: int | None = None,
        resources: Mapping[str, float] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        require_whole("the number of engines", len(engines), low=1)
        if actors is not None:
            require_whole("actors", actors, low=1)
        self.size = 0
        self.losses: list[str] = []
        self.setbacks: list[str] = []
        self._engines = tuple(engines)
        self._answers = answers
        self._wanted = actors
        self._resources = dict(resources or {})
        self._bounds = bounds or Bounds()
        self._actors: list[PooledActor] = []
        self._changed = anyio.Condition()
        self._failure: Exception | None = None
        self._first: Started | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the actors; back as soon as one engine runs.

        Raises:
            EngineStartError: the cluster has too little room, or no engine started.
            ConvictionError: as the engine raised it.
        """
        self.size = await self._room()
        # A task of its own, as whoever enters may leave from within another cancel scope.
        self._keeping = asyncio.create_task(self._keep_all())
        try:
            await self._one_runs()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the engines and the actors."""
        if self._keeping is not None:
            self._keeping.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({self._keeping})

    async def _one_runs(self) -> None:
        async with self._changed:
            while not self._actors:
                if self._failure is not None:
                    raise self._failure
                await self._changed.wait()

    @property
    def homes(self) -> list[Home]:
        """Where the actors that live now run."""
        return [actor.home for actor in self._actors]

    @property
    def started(self) -> Started:
        """The first engine that ran; all others are alike."""
        if self._first is None:
            raise EngineStartError(
                tried="use the actors",
                found="they are not started",
                remedy="Enter them first: async with workers.",
            )
        return self._first

    @asynccontextmanager
    async def taken(
        self, most: int, *, unless: anyio.Event | None = None
    ) -> AsyncGenerator[PooledActor | None]:
        """A place in the actor with the fewest questions, as soon as one has less than `most`.

        None as soon as `unless` is set, if there was no place before.

        Raises:
            ConvictionError: no actor is left, or what was asked for is wrong.
        """
        actor = await self._take(most, unless)
        if actor is None:
            yield None
            return
        try:
            yield actor
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    actor.busy -= 1
                    self._changed.notify_all()

    async def call(self, actor: PooledActor, answer: Awaitable[Result]) -> Result:
        """What an actor answers.

        Raises:
            LostError: it does not, so it is given up.
            ConvictionError: its answer is an error.
        """
        try:
            return await within(self._bounds.silence, answer)
        except AnsweredError as error:
            raise told(error, actor.home) from error
        except LostError as error:
            if not actor.lost.is_set():
                actor.reason = f"{actor.home}: {error}"
                self.losses.append(actor.reason)
                actor.lost.set()
            # No other question may be handed to it, whoever learns of it first.
            if actor in self._actors:
                self._actors.remove(actor)
            raise LostError(actor.reason) from None

    async def _take(self, most: int, unless: anyio.Event | None) -> PooledActor | None:
        waking = None if unless is None else asyncio.create_task(self._wake_on(unless))
        try:
            async with self._changed:
                while unless is None or not unless.is_set():
                    if self._failure is not None:
                        raise self._failure
                    if free := [one for one in self._actors if one.busy < most]:
                        actor = min(free, key=lambda one: one.busy)
                        actor.busy += 1
                        return actor
                    await self._changed.wait()
        finally:
            if waking is not None:
                waking.cancel()
        return None

    async def _wake_on(self, event: anyio.Event) -> None:
        await event.wait()
        async with self._changed:
            self._changed.notify_all()

    async def _keep_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for slot in range(self.size):
                tasks.start_soon(self._keep, slot)

    async def _room(self) -> int:
        """How many actors to start, as soon as the cluster has room for them."""
        waited = 0.0
        while True:
            cluster = await anyio.to_thread.run_sync(Cluster)
            room = cluster.room(self._resources)
            several = len(self._engines) if len(self._engines) > 1 else 0
            number = self._wanted or several or (room if self._resources else cluster.nodes)
            if 1 <= number <= room:
                return number
            if waited >= self._bounds.placement:
                each, fits = wanted(self._resources), room or "none"
                raise EngineStartError(
                    tried=f"find room for {counted(max(number, 1), 'actor')} with {each} each",
                    found=f"after {waited:g} s the cluster has room for {fits}: {cluster}",
                    remedy="Ask for less (--engine-resources, --actors), or add nodes: ray start "
                    "--address HEAD:6379.",
                )
            pause = min(1.0, self._bounds.placement - waited)
            await anyio.sleep(pause)
            waited += pause

    async def _keep(self, slot: int) -> None:
        """Keep one actor alive, until nobody needs it or it does not start."""
        failures = 0
        while True:
            try:
                actor = await self._start(slot)
            except Exception as error:  # noqa: BLE001  # those who wait for an actor must hear of it
                failures += 1
                trouble = _trouble(error)
                hopeless = isinstance(trouble, UsageError | ModelError)
                if hopeless or failures == _MOST_STARTS or not self._first:
                    await self._give_up(trouble)
                    return
                await anyio.sleep(failures)
                continue
            failures = 0
            try:
                async with self._changed:
                    self._actors.append(actor)
                    self._changed.notify_all()
                await actor.lost.wait()
            finally:
                await self._end(actor)

    async def _give_up(self, error: ConvictionError) -> None:
        async with self._changed:
            self.size -= 1
            self.setbacks.append(f"Went on with {counted(self.size, 'actor')}: {error}")
            # What was asked for is wrong, or nobody is left.
            if isinstance(error, UsageError) or not self.size:
                self._failure = error
                self.setbacks.clear()
            self._changed.notify_all()

    async def _start(self, slot: int) -> PooledActor:
        make = self._engines[slot % len(self._engines)]
        handle = (
            _ray.remote(EngineActor)
            .options(
                **actor_options(self._resources),
                max_restarts=0,
                max_concurrency=10_000,
                scheduling_strategy="SPREAD",
            )
            .remote(make, self._answers)
        )
        try:
            home: Home = await self._placed(handle)
            try:
                started = await within(self._bounds.start, handle.start.remote())
            except (LostError, AnsweredError) as error:
                raise EngineStartError(
                    tried=f"start an engine in an actor ({home})",
                    found=str(error),
                    remedy="See the actor's log in Ray's session folder, or allow more time.",
                ) from None
            return PooledActor(handle, home, self._checked(started, home))
        except BaseException:
            _ray.kill(handle)
            raise

    async def _placed(self, handle: Any) -> Home:
        try:
            return await within(self._bounds.placement, handle.home.remote())
        except LostError as error:
            cluster = await anyio.to_thread.run_sync(Cluster)
            needs = f" with {wanted(self._resources)}" if self._resources else ""
            raise EngineStartError(
                tried=f"put an actor{needs} into the cluster",
                found=f"{error}; it has {cluster}, and others may use that",
                remedy="Wait until others are done, ask for less (--engine-resources, --actors), "
                "or allow more time (--placement-timeout).",
            ) from None

    def _checked(self, started: Started | Exception, home: Home) -> Started:
        """All engines must make the same traces, whoever gets a question."""
        if isinstance(started, Exception):
            raise started
        if self._first is None:
            self._first = started
            return started
        mine, first = started.capabilities, self._first.capabilities
        for what, one, other in (
            ("the model", mine.model, first.model),
            ("k =", min(TOP_K, mine.top_k), min(TOP_K, first.top_k)),
        ):
            if one != other:
                raise InvalidSettingError(
                    tried=f"use the engine of an actor ({home}) beside the others",
                    found=f"it has {what} {one}, and they have {what} {other}",
                    remedy="Serve the same model everywhere.",
                )
        return started

    async def _end(self, actor: PooledActor) -> None:
        """End an actor: in peace if it lives, so that its engine ends what it started."""
        with anyio.CancelScope(shield=True):
            async with self._changed:
                if actor in self._actors:
                    self._actors.remove(actor)
                self._changed.notify_all()
            if not actor.lost.is_set():
                with suppress(LostError, AnsweredError):
                    await within(_STOP_SECONDS, actor.handle.stop.remote())
            _ray.kill(actor.handle)


def _trouble(error: Exception) -> ConvictionError:
    """Why an actor did not start: engines of one's own raise what they like."""
    if isinstance(error, ConvictionError):
        return error
    return EngineStartError(
        tried="start an engine in an actor",
        found=f"{type(error).__name__}: {error}",
        remedy="Mend the engine, or see the actor's log in Ray's session folder.",
    )
