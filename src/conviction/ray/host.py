"""An engine in another process, and its streams; knows no Ray.

The engine is built from its backend and held in a task of its own. What a trace brought meanwhile
shares a trip. A gate is looked at here, so that a trace which is to be stopped generates nothing
while the news travel.
"""

import asyncio
import pickle
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread

from conviction.backends import Backend
from conviction.core import FinishReason
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.errors import ConvictionError, EngineError

HEARTBEAT_SECONDS = 2.0
"""After so long without news an actor says so."""
_GATHER_SECONDS = 0.02


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


@dataclass(frozen=True, slots=True)
class Batch:
    """What came of a trace since the last batch; empty as a sign of life.

    Attributes:
        chunks: In order.
        error: Why the stream broke, after these chunks.
        full: Whether the engine has as many traces as it takes, so this one has not begun.
    """

    chunks: tuple[Chunk, ...] = ()
    error: Exception | None = None
    full: bool = False


async def batches(engine: Engine, request: TraceRequest) -> AsyncGenerator[Batch, None]:
    """Generate one trace. Closing the generator, or cancelling its reader, ends the trace."""
    reading = _Reading()
    task = asyncio.create_task(reading.run(engine, request))
    try:
        while not reading.over.is_set():
            yield await reading.batch()
    finally:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})


class _Reading:
    """Reads a stream ahead of whoever takes its batches."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._chunks: list[Chunk] = []
        self._error: Exception | None = None

    async def run(self, engine: Engine, request: TraceRequest) -> None:
        """Read to the end, or until the gate says stop; never raises."""
        monitor = request.gate.monitor() if request.gate else None
        try:
            async with aclosing(engine.stream(request)) as chunks:
                async for chunk in chunks:
                    stops = monitor is not None and monitor.push(chunk.confidences)
                    if stops and chunk.finish is None:
                        chunk = replace(chunk, finish=FinishReason.LOW_CONFIDENCE)  # noqa: PLW2901
                    self._chunks.append(chunk)
                    self._news.set()
                    if chunk.finish is not None:
                        break
        except Exception as error:  # noqa: BLE001  # raised again at the other end
            self._error = portable(error)
        self._ended.set()
        self._news.set()

    async def batch(self) -> Batch:
        """What came since the last; sets `over` with the last one."""
        with anyio.move_on_after(HEARTBEAT_SECONDS):
            await self._news.wait()
            with anyio.move_on_after(_GATHER_SECONDS):
                await self._ended.wait()
        self._news.clear()
        chunks, self._chunks = tuple(self._chunks), []
        if not self._ended.is_set():
            return Batch(chunks)
        self.over.set()
        return Batch(chunks, self._error)
