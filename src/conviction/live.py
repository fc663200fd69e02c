"""A trace while it is being generated: what it wrote so far, and its gate."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import BytesIO

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.gate import Gate

_FLOAT32 = np.dtype(np.float32)
_MOST_UNSEEN = 100_000
"""Tokens between two looks at a trace that has no gate."""


@dataclass(eq=False)
class LiveTrace:
    """A trace that is being generated.

    With `wants_logprobs`, the log-probabilities of its tokens are kept as well. With `continues`,
    it goes on with `prefix`, the beginning of that trace, of about `kept` tokens.
    """

    id: int
    seed: int
    gate: Gate | None
    started: float
    wants_logprobs: bool = False
    continues: int | None = None
    prefix: str = ""
    kept: int = 0
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    cancel_reason: FinishReason = FinishReason.CANCELLED
    finish: FinishReason | None = None
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    restarts: int = 0
    lost_tokens: int = 0
    notes: list[str] = field(default_factory=list[str])
    # UTF-8: a StringIO keeps every piece as an object of its own, 60 bytes a token.
    _text: BytesIO = field(default_factory=BytesIO)
    # float32 values as bytes: four a token, without a Python object per number.
    _raw: BytesIO = field(default_factory=BytesIO)
    _raw_logprobs: BytesIO = field(default_factory=BytesIO)

    async def read(
        self, chunks: AsyncIterator[Chunk], watch: Callable[[Chunk], None] | None = None
    ) -> None:
        """Read a stream until the trace ends or its gate stops it; `watch` hears every chunk.

        The gate is looked at only when it could say stop whatever came since the last look,
        which costs a fraction of looking at every token and stops at the same one.

        Raises:
            TypeError: the chunks' confidences are not float32.
            ValueError: their log-probabilities, if wanted, cannot be such.
        """
        monitor = self.gate.monitor() if self.gate else None
        write_text = self._text.write
        # Arrays are buffers, though numpy's stubs do not say so.
        write: Callable[[NDArray[np.float32]], int] = self._raw.write  # type: ignore[assignment]
        keep = self._keep_logprobs if self.wants_logprobs else None
        seen = left = 0
        async for chunk in chunks:
            if keep is not None:
                keep(chunk)
            left -= write(chunk.confidences)
            write_text(chunk.text.encode("utf-8", "surrogatepass"))
            if watch is not None:
                watch(chunk)
            if chunk.prompt_tokens:
                self.prompt_tokens, self.cached_tokens = chunk.prompt_tokens, chunk.cached_tokens
            if chunk.notes:
                self.notes += chunk.notes
            if chunk.finish is not None or left <= 0:
                self._check_type(chunk)
                self.finish = chunk.finish
                if chunk.finish is None and monitor and monitor.push(self.confidences(seen)):
                    self.finish = FinishReason.LOW_CONFIDENCE
                if self.finish is not None:
                    return
                seen = self._raw.tell() // _FLOAT32.itemsize
                left = _FLOAT32.itemsize * (monitor.safe_tokens() + 1 if monitor else _MOST_UNSEEN)

    def begin_again(self) -> int:
        """Drop the tokens of an attempt that broke off, which still count; how many these were."""
        lost = self._raw.tell() // _FLOAT32.itemsize
        self.restarts += 1
        self.lost_tokens += lost
        self._text, self._raw, self._raw_logprobs = BytesIO(), BytesIO(), BytesIO()
        return lost

    @property
    def text(self) -> str:
        """Everything it wrote so far, and before it what it was given to begin with."""
        return self.prefix + self._text.getvalue().decode("utf-8", "surrogatepass")

    def confidences(self, first: int = 0) -> NDArray[np.float32]:
        """Token confidences so far, from token number `first` on; shape (tokens - first,)."""
        with self._raw.getbuffer() as values:
            return np.frombuffer(bytes(values[_FLOAT32.itemsize * first :]), np.float32)

    def logprobs(self) -> NDArray[np.float32] | None:
        """Log-probability of each token so far, shape (tokens,); None if not one is known."""
        values = np.frombuffer(self._raw_logprobs.getvalue(), np.float32)
        return None if np.isnan(values).all() else values

    def _keep_logprobs(self, chunk: Chunk) -> None:
        tokens = chunk.confidences.size
        values = np.full(tokens, np.nan) if chunk.logprobs is None else chunk.logprobs
        if values.shape != (tokens,):
            raise ValueError(f"a chunk has {tokens} tokens and {values.size} log-probabilities")
        if (values > 0).any():
            raise ValueError(f"a log-probability is {np.nanmax(values):g}, above 0")
        self._raw_logprobs.write(values.astype(np.float32).tobytes())

    def _check_type(self, chunk: Chunk) -> None:
        if chunk.confidences.dtype != _FLOAT32:
            self._raw.truncate(0)
            self._raw_logprobs.truncate(0)
            found = chunk.confidences.dtype
            raise TypeError(f"the confidences of a chunk must be float32, not {found}")


def beginning(text: str, share: float) -> str:
    """The first part of what a trace wrote, at most `share` of its characters, in (0, 1).

    It is cut where a word ends, without the space behind: models' tokens begin with it. If the
    first word is too long, as in writings without spaces, it is cut within that.
    """
    most = int(share * len(text))
    ends = (match.end() for match in re.finditer(r"\S+", text))
    return text[: max((end for end in ends if end <= most), default=most)]
