"""A trace while it is being generated: what has come of it so far, and its gate."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import StringIO

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.gate import Gate

_MOST_ASIDE = 128
"""Tokens that are set aside at most: some 30 kB a trace."""


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
    _aside: list[Chunk] = field(default_factory=list[Chunk])
    _text: StringIO = field(default_factory=StringIO)
    # float32 values as bytes: four a token, without a Python object per number.
    _raw: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._monitor = self.gate.monitor() if self.gate else None

    async def read(
        self, chunks: AsyncIterator[Chunk], watch: Callable[[Chunk], None] | None = None
    ) -> None:
        """Read a stream until the trace ends or its gate says stop.

        Chunks are set aside while the gate cannot fire whatever they hold, and then read
        together, which costs a fraction of reading each. The trace stops at the same token.

        Args:
            chunks: The stream.
            watch: Called with every chunk as it comes.
        """
        aside, tokens, safe = self._aside, 0, self._safe_tokens()
        try:
            async for chunk in chunks:
                aside.append(chunk)
                if watch is not None:
                    watch(chunk)
                tokens += chunk.confidences.size
                if tokens > safe or chunk.finish is not None:
                    self._take_in()
                    if self.finish is not None:
                        return
                    tokens, safe = 0, self._safe_tokens()
        finally:
            self._take_in()

    def _safe_tokens(self) -> int:
        return min(self._monitor.safe_tokens(), _MOST_ASIDE) if self._monitor else _MOST_ASIDE

    def _take_in(self) -> None:
        """Add what was set aside to what there is."""
        if not self._aside:
            return
        chunks = self._aside.copy()
        self._aside.clear()
        confidences = np.concatenate([chunk.confidences for chunk in chunks], dtype=np.float32)
        self._raw += confidences.data
        self._text.write("".join([chunk.text for chunk in chunks]))
        for chunk in [chunk for chunk in chunks if chunk.prompt_tokens]:
            self.prompt_tokens, self.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
        self.finish = chunks[-1].finish
        if self.finish is None and self._monitor and self._monitor.push(confidences):
            self.finish = FinishReason.LOW_CONFIDENCE

    @property
    def text(self) -> str:
        """Everything it wrote so far."""
        self._take_in()
        return self._text.getvalue()

    def confidences(self) -> NDArray[np.float32]:
        """Token confidences so far, shape (tokens,)."""
        self._take_in()
        return np.frombuffer(bytes(self._raw), np.float32)
