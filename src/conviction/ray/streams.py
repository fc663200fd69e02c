"""Streams of an engine that cross processes; knows no Ray.

What a trace brought meanwhile shares a trip. A gate is looked at here, so that a trace which is to
be stopped generates nothing while the news travel.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import anyio

from conviction.core import FinishReason
from conviction.engines.base import Chunk, Engine, TraceRequest
from conviction.ray.host import HEARTBEAT_SECONDS, portable

_GATHER_SECONDS = 0.02


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
