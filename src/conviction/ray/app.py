"""A Ray Serve application with the API of `conviction serve`.

Driver replicas hold no state between requests and scale with them; engine replicas hold one engine
each and scale with traces. To be named in Serve's own files as `conviction.ray.app:build`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, cast

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from conviction.backends import Backend, BackendOptions, backend
from conviction.engines.base import Engine, TraceRequest
from conviction.ray.cluster import actor_options
from conviction.ray.host import Batch, EngineHost, Started, batches
from conviction.ray.remote import PrefixRouter, RemoteEngine
from conviction.server.access import check_bound
from conviction.server.app import create_app
from conviction.server.settings import Count, Settings

_BESIDE_TRACES = 16
"""Calls that an engine replica answers beside its traces: what it is, and whether it lives."""

_serve = cast("Any", serve)  # Its types are not those that pyright wants to see.


class EngineSettings(BaseModel):
    """What an engine replica holds.

    Attributes:
        model: What `conviction serve -m` takes: a name, `vllm:MODEL`, `scripted`, …; with a
            `base_url` the server's name of the model.
        base_url: Address of a server, or several.
        api_key: Key of the server.
        slots: Traces that one replica runs at once; None for 8 of the embedded engine and of
            made-up traces, else 64.
        context: Tokens that prompt and trace may have together.
        delay: Seconds between two pieces of a made-up trace.
        vllm: vLLM's own settings by name.
        factory: A function of your own, as package.module:function, that returns an engine; in
            place of a model.
        resources: What a replica needs on its node, as in {"GPU": 1}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    base_url: str | list[str] | None = None
    api_key: Annotated[str | None, Field(repr=False)] = None
    slots: Count | None = None
    context: Count | None = None
    delay: Annotated[float, Field(ge=0)] | None = None
    vllm: dict[str, Any] | None = None
    factory: Annotated[str | None, Field(pattern=r"^[\w.]+:\w+$")] = None
    resources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    def backend(self) -> Backend:
        """Which engine.

        Raises:
            UsageError: there is no such model, or a setting does not fit it.
        """
        if self.factory is not None:
            return _Made(self.factory, self.slots)
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        options = BackendOptions(
            base_url=urls,
            api_key=self.api_key,
            slots=self.slots,
            context=self.context,
            delay=self.delay,
            vllm=self.vllm,
        )
        return backend(self.model, options).placed(self.resources)


@dataclass(frozen=True)
class _Made(Backend):
    """The engine that a function makes; `model` is its place, as package.module:function."""

    def build(self) -> Engine:
        module, _, function = str(self.model).partition(":")
        return getattr(import_module(module), function)()


class Scale(BaseModel):
    """How many replicas, and when there are more of them.

    Attributes:
        min_replicas: Replicas that there always are.
        max_replicas: Replicas that there may be.
        load: Share of what a replica takes at once, at which another one is wanted, in (0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: Count = 1
    max_replicas: Count = 1
    load: Annotated[float, Field(gt=0, le=1)] = 0.7

    def options(self, takes: int, *, beside: int = 0) -> dict[str, Any]:
        """Serve's options for replicas that take so many requests, and small ones beside them."""
        return {
            "max_ongoing_requests": takes + beside,
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": max(self.min_replicas, self.max_replicas),
                "target_ongoing_requests": max(1.0, self.load * takes),
            },
        }


class ServiceSettings(BaseModel):
    """Everything that the service is told: the `args` of an application in Serve's own files.

    Attributes:
        engine: What each engine replica holds.
        engines: How many engine replicas.
        drivers: How many driver replicas.
        server: As `conviction serve` is told; its host and port are those by which clients know
            Serve's proxy, and where those are not of this machine alone, there must be keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings = EngineSettings()
    engines: Scale = Scale()
    drivers: Scale = Scale()
    server: Settings = Settings(port=8000)


def build(settings: ServiceSettings) -> Any:
    """The application, for `serve run conviction.ray.app:build` and for Serve's own files.

    Raises:
        InvalidSettingError: a setting is wrong, or others could come in without a key.
    """
    check_bound(settings.server.host, settings.server.keys)
    engines = engine_replicas(settings.engine, settings.engines)
    queueing = settings.server.queueing
    drivers = _serve.deployment(_serve.ingress()(Driver)).options(
        name="Driver",
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.server.drain_seconds + 5,
        # Those that wait are answered in good time, too, and so are signs of life.
        **settings.drivers.options(2 * (queueing.running + queueing.queued)),
    )
    most = max(settings.engines.min_replicas, settings.engines.max_replicas)
    takes = settings.engine.backend().traces_at_once
    return drivers.bind(settings.server, engines, most, takes)


def engine_replicas(settings: EngineSettings, scale: Scale) -> Any:
    """The engine replicas, to be bound to something in front of them.

    Raises:
        UsageError: there is no such model, or a setting does not fit it.
    """
    backend = settings.backend()
    takes = backend.traces_at_once
    deployment = _serve.deployment(EngineReplica).options(
        name="Engine",
        ray_actor_options=actor_options(settings.resources),
        request_router_config={
            "request_router_class": PrefixRouter,
            "request_router_kwargs": {"takes": takes},
        },
        health_check_period_s=10,
        graceful_shutdown_timeout_s=20,
        **scale.options(takes, beside=_BESIDE_TRACES),
    )
    return deployment.bind(backend, takes)


class EngineReplica:
    """One engine, and at most `takes` traces on it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, backend: Backend, takes: int
    ) -> None:
        self._takes = takes
        self._running = 0
        self._host = EngineHost(backend)
        self._started = await self._host.start()

    async def __del__(self) -> None:  # type: ignore[misc]  # Serve awaits it, too
        """End the engine; Serve calls this when the replica is to go, once its traces are over."""
        await self._host.stop()

    async def started(self) -> Started:
        """What it is."""
        return self._started

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Batch, None]:
        """Batches of one trace, or the word that it is one too many; cancelling ends the trace."""
        if self._running >= self._takes:
            yield Batch(full=True)
            return
        self._running += 1
        try:
            async with aclosing(batches(self._host.engine, request)) as found:
                async for batch in found:
                    yield batch
        finally:
            self._running -= 1

    async def check_health(self) -> None:
        """Raise if the engine is gone, so that Serve starts another replica."""
        await self._host.engine.check()


class Driver:
    """The API of `conviction serve`, in front of the engine replicas."""

    def __init__(self, settings: Settings, engines: Any, replicas: int, takes: int) -> None:
        self._settings = settings
        self._engine = RemoteEngine(engines, replicas, takes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._settings, self._engine)
