"""A trace while it is being generated: what has come of it so far, and its gate."""

from dataclasses import dataclass, field
from io import StringIO

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.gate import Gate

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
    text: StringIO = field(default_factory=StringIO)
    # float32 values as bytes: four a token, appended without a Python object per number.
    _raw: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.monitor = self.gate.monitor() if self.gate else None

    def take(self, chunk: Chunk) -> bool:
        """Add a chunk; True if the trace has ended or its gate says stop."""
        confidences = chunk.confidences
        if confidences.dtype is not _FLOAT32:
            confidences = confidences.astype(np.float32)
        self._raw += confidences.data
        if chunk.text:
            self.text.write(chunk.text)
        if chunk.finish is not None:
            self.finish = chunk.finish
        if chunk.prompt_tokens:
            self.prompt_tokens, self.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
        if self.finish is not None:
            return True
        if self.monitor is not None and self.monitor.push(confidences):
            self.finish = FinishReason.LOW_CONFIDENCE
            return True
        return False

    def confidences(self) -> NDArray[np.float32]:
        """Token confidences so far, shape (tokens,)."""
        return np.frombuffer(bytes(self._raw), np.float32)
