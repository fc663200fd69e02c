"""A trace while it is being generated: what has come of it so far, and its gate."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import StringIO
from math import inf

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.gate import Gate, GateMonitor

_FLOAT32 = np.dtype(np.float32)

@dataclass(eq=False)
class LiveTrace:
    """A trace that is being generated."""

    id: int
    seed: int
    gate: Gate | None
    started: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    cancel_reason: FinishReason = FinishReason.CANCELLED
    finish: FinishReason | None = None
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    _text: StringIO = field(default_factory=StringIO)
    # float32 values as bytes: four a token, without a Python object per number.
    _raw: bytearray = field(default_factory=bytearray)

    async def read(
        self, chunks: AsyncIterator[Chunk], watch: Callable[[Chunk], None] | None = None
    ) -> None:
        """Read a stream until the trace ends or its gate says stop.

        The gate is looked at only when it could say stop whatever the tokens since then were,
        which costs a fraction of looking at every token and stops at the same one.

        Args:
            chunks: The stream.
            watch: Called with every chunk as it comes.
        """
        monitor = self.gate.monitor() if self.gate else None
        raw, float32 = self._raw, _FLOAT32
        read, due = 0, _bytes_to_next_look(monitor)
        async for chunk in chunks:
            confidences = chunk.confidences
            if confidences.dtype is not float32:
                confidences = confidences.astype(np.float32)
            raw += confidences.tobytes()
            if chunk.text:
                self._text.write(chunk.text)
            if watch is not None:
                watch(chunk)
            if chunk.prompt_tokens:
                self.prompt_tokens, self.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
            if chunk.finish is not None:
                self.finish = chunk.finish
                return
            if len(raw) >= due:
                if monitor and monitor.push(np.frombuffer(raw[read:], np.float32)):
                    self.finish = FinishReason.LOW_CONFIDENCE
                    return
                read = len(raw)
                due = read + _bytes_to_next_look(monitor)

    @property
    def text(self) -> str:
        """Everything it wrote so far."""
        return self._text.getvalue()

    def confidences(self) -> NDArray[np.float32]:
        """Token confidences so far, shape (tokens,)."""
        return np.frombuffer(bytes(self._raw), np.float32)


def _bytes_to_next_look(monitor: GateMonitor | None) -> float:
    return _FLOAT32.itemsize * (monitor.safe_tokens() + 1) if monitor else inf
