"""An engine in an actor: built from its backend, held in a task of its own, and ended."""

import asyncio
import pickle
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio.to_thread

from conviction.backends import Backend
from conviction.engines.base import Capabilities, Engine
from conviction.errors import ConvictionError, EngineError

HEARTBEAT_SECONDS = 2.0
"""After so long without news an actor says so."""


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that runs.

    Attributes:
        engine: Its name.
        capabilities: What it can do.
    """

    engine: str
    capabilities: Capabilities


class EngineHost:
    """Starts an engine and holds it.

    Engines must be entered and left in the same task, and calls of an actor are tasks of their own.

    Args:
        backend: Which engine.

    Attributes:
        engine: The engine, once it is started.
    """

    engine: Engine

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._holding: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> Started:
        """Start the engine.

        Raises:
            ConvictionError: as the engine raises it.
        """
        started: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._holding = asyncio.create_task(self._hold(started))
        await asyncio.wait({started, self._holding}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await self._holding  # Raises why.
        return started.result()

    async def stop(self) -> None:
        """End the engine."""
        if self._holding is not None:
            self._stopping.set()
            await asyncio.wait({self._holding})

    async def _hold(self, started: "asyncio.Future[Started]") -> None:
        async with AsyncExitStack() as stack:
            # It may fetch a model first.
            self.engine = await anyio.to_thread.run_sync(self._backend.build)
            await stack.enter_async_context(self.engine)
            started.set_result(Started(self.engine.name, await self.engine.capabilities()))
            await self._stopping.wait()


def portable(error: Exception) -> Exception:
    """An error that comes over as it is, or what can be told of it."""
    if isinstance(error, ConvictionError):
        return error
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301  # our own bytes
    except Exception:  # noqa: BLE001  # whatever an error's own code raises
        same = False
    if same:
        return error
    return EngineError(
        tried="think in an actor",
        found=f"{type(error).__name__}: {error}",
        remedy="This is a defect of the engine or of conviction; report it.",
    )
