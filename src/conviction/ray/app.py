"""A Ray Serve application with the API of `conviction serve`.

Driver replicas hold no state between requests and scale with them; engine replicas hold one engine
each and scale with traces. To be named in Serve's own files as `conviction.ray.app:build`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from importlib import import_module
from typing import Annotated, Any, Literal, cast

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from conviction.core import InvalidSettingError
from conviction.engines.base import Engine, TraceRequest
from conviction.ray.cluster import actor_options
from conviction.ray.engines import EndpointFactory, EngineFactory, LocalFactory, VLLMFactory
from conviction.ray.host import EngineHost, Started
from conviction.ray.remote import RemoteEngine
from conviction.ray.routing import PrefixRouter
from conviction.ray.streams import Batch, batches
from conviction.server.access import check_bound
from conviction.server.app import create_app
from conviction.server.demonstration import demonstration
from conviction.server.settings import Count, Settings

_BESIDE_TRACES = 16
"""Calls that an engine replica answers beside its traces: what it is, and whether it lives."""

_serve = cast("Any", serve)  # Its types are not those that pyright wants to see.


class EngineSettings(BaseModel):
    """What an engine replica holds.

    Attributes:
        kind: A server of completions, the embedded engine, vLLM in the replica, made-up traces, or
            what a function of your own makes.
        base_url: Address of the server (endpoint).
        model: Name of the model; for the embedded engine as in `conviction models`, for vLLM a
            folder or a name on the Hugging Face hub.
        api_key: Key of the server (endpoint).
        slots: Traces that one replica runs at once; None for 8 of the embedded engine and of
            made-up traces, else 64. vLLM has its own bound, too (`max_num_seqs`).
        context: Tokens that prompt and trace may have together (local).
        delay: Seconds between two pieces of a made-up trace (scripted).
        vllm: vLLM's own settings by name.
        factory: That function, as package.module:function (custom).
        resources: What a replica needs on its node, as in {"GPU": 1}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["endpoint", "local", "vllm", "scripted", "custom"] = "local"
    base_url: str | None = None
    model: str | None = None
    api_key: Annotated[str | None, Field(repr=False)] = None
    slots: Count | None = None
    context: Count = 4096
    delay: Annotated[float, Field(ge=0)] = 0.05
    vllm: dict[str, Any] = {}
    factory: Annotated[str | None, Field(pattern=r"^[\w.]+:\w+$")] = None
    resources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    @property
    def takes(self) -> int:
        """Traces that one replica runs at once."""
        return self.slots or (8 if self.kind in ("local", "scripted") else 64)

    def maker(self) -> EngineFactory:
        """What makes the engine.

        Raises:
            InvalidSettingError: address, model or function is missing.
        """
        if self.kind == "endpoint":
            if not self.base_url:
                raise InvalidSettingError(
                    tried="make an engine of an endpoint",
                    found="it has no base_url",
                    remedy="Name the server, as in http://10.0.0.2:8000/v1.",
                )
            return EndpointFactory(self.base_url, self.model, self.api_key, concurrency=self.takes)
        if self.kind == "local":
            threads = int(self.resources.get("CPU", 0)) or None
            return LocalFactory(self.model, self.takes, self.context, threads)
        if self.kind == "vllm":
            if self.model is None:
                raise InvalidSettingError(
                    tried="make vLLM in a replica",
                    found="it has no model",
                    remedy="Name a folder, or a model on the Hugging Face hub.",
                )
            return VLLMFactory(self.model, self.vllm, gpus=int(self.resources.get("GPU", 0)))
        if self.kind == "scripted":
            return partial(demonstration, delay=self.delay, concurrency=self.takes)
        if self.factory is None:
            raise InvalidSettingError(
                tried="make an engine of your own",
                found="there is no factory",
                remedy="Name the function that makes it, as in my.package:make_engine.",
            )
        return partial(_made_by, self.factory)


class Scale(BaseModel):
    """How many replicas, and when there are more of them.

    Attributes:
        least: Replicas that there always are.
        most: Replicas that there may be.
        load: Share of what a replica takes at once, at which another one is wanted, in (0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: Count = 1
    most: Count = 1
    load: Annotated[float, Field(gt=0, le=1)] = 0.7

    def options(self, takes: int, *, beside: int = 0) -> dict[str, Any]:
        """Serve's options for replicas that take so many requests, and small ones beside them."""
        return {
            "max_ongoing_requests": takes + beside,
            "autoscaling_config": {
                "min_replicas": self.least,
                "max_replicas": max(self.least, self.most),
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
    most = max(settings.engines.least, settings.engines.most)
    return drivers.bind(settings.server, engines, most, settings.engine.takes)


def engine_replicas(settings: EngineSettings, scale: Scale) -> Any:
    """The engine replicas, to be bound to something in front of them.

    Raises:
        InvalidSettingError: address, model or function of the engine is missing.
    """
    takes = settings.takes
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
    return deployment.bind(settings.maker(), takes)


class EngineReplica:
    """One engine, and at most `takes` traces on it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, make: EngineFactory, takes: int
    ) -> None:
        self._takes = takes
        self._running = 0
        self._host = EngineHost(make)
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


def _made_by(place: str) -> Engine:
    module, _, function = place.partition(":")
    return cast("EngineFactory", getattr(import_module(module), function))()
