"""An engine that plays prepared traces: for tests, demonstrations and replays."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason, require, require_whole
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.errors import InvalidSettingError


@dataclass(frozen=True, eq=False)
class Script:
    """One trace to play.

    Attributes:
        text: All that it writes, spread evenly over its tokens.
        confidences: Token confidence of each of its tokens, shape (tokens,).
        finish: How it ends.
        fault: Raised after `fault_after` tokens, in place of what would have followed.
        fault_after: Tokens before the fault.
        prompt_tokens: Tokens of the prompt, as reported at the end.
        logprobs: Log-probability of each of its tokens, shape (tokens,), played to requests that
            want them; None for an engine that cannot give any.

    Raises:
        InvalidSettingError: there are not as many log-probabilities as confidences.
    """

    text: str
    confidences: NDArray[np.float32]
    finish: FinishReason = FinishReason.STOP
    fault: Exception | None = None
    fault_after: int = 0
    prompt_tokens: int = 0
    logprobs: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.confidences, np.float32)
        object.__setattr__(self, "confidences", values)
        if self.logprobs is None:
            return
        logprobs = np.ascontiguousarray(self.logprobs, np.float32)
        if logprobs.shape != values.shape:
            raise InvalidSettingError(
                tried="make a script",
                found=f"it has {values.size} confidences and {logprobs.size} log-probabilities",
                remedy="Give one of each per token.",
            )
        object.__setattr__(self, "logprobs", logprobs)

    @classmethod
    def even(cls, text: str, *, tokens: int = 20, confidence: float = 10.0) -> "Script":
        """A trace whose tokens are all equally sure."""
        return cls(text, np.full(tokens, confidence, np.float32))


Pace = Callable[[TraceRequest], Awaitable[None]]


class ScriptedEngine(Engine):
    """Plays scripts: trace n of every run plays script n, starting over when they run out.

    A trace whose beginning is given plays its script after that.

    Args:
        scripts: What to play, at least one; or a function that gives the script of a request.
        concurrency: Traces that it admits at once, at least 1.
        top_k: Log-probabilities that it claims to give; 0 plays unknown confidences, and no
            log-probabilities.
        continues: Whether it claims to go on with a trace whose beginning is given.
        chunk_tokens: Tokens per chunk, at least 1.
        delay: Seconds before each chunk.
        pace: Awaited before each chunk instead of `delay`, for full control over the order.
        remembered: The most streams whose tokens are remembered, the newest; None for all.

    Attributes:
        running: Streams that are open now.
    """

    def __init__(
        self,
        scripts: Sequence[Script] | Callable[[TraceRequest], Script],
        *,
        concurrency: int = 64,
        top_k: int = 20,
        continues: bool = True,
        chunk_tokens: int = 1,
        delay: float = 0.0,
        pace: Pace | None = None,
        remembered: int | None = None,
    ) -> None:
        if not callable(scripts):
            require("the number of scripts", len(scripts), low=1)
        require_whole("concurrency", concurrency, low=1)
        require_whole("chunk_tokens", chunk_tokens, low=1)
        require("delay", delay, low=0)
        self._scripts = scripts
        self._concurrency = concurrency
        self._top_k = top_k
        self._continues = continues
        self._chunk_tokens = chunk_tokens
        self._pace: Pace = pace or (lambda _: anyio.sleep(delay))
        # The tokens of each stream so far.
        self._streams: deque[list[int]] = deque(maxlen=remembered)
        self.running = 0

    @property
    def generated(self) -> list[int]:
        """Tokens that each stream generated, in order of opening, also if they were not read."""
        return [tokens for [tokens] in self._streams]

    @property
    def name(self) -> str:
        """Always "scripted"."""
        return "scripted"

    async def capabilities(self) -> Capabilities:
        """What the constructor was told."""
        return Capabilities(
            "scripted", self._top_k, self._concurrency, seeds=True, continues=self._continues
        )

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Play one script."""
        scripts = self._scripts
        script = scripts(request) if callable(scripts) else scripts[request.trace % len(scripts)]
        logprobs = script.logprobs if request.logprobs and self._top_k else None
        generated = [0]
        self._streams.append(generated)
        self.running += 1
        try:
            size, letters = script.confidences.size, len(script.text)
            total = min(size, request.sampling.max_tokens)
            last = min(script.fault_after, total) if script.fault else total
            for begin in range(0, last, self._chunk_tokens):
                await self._pace(request)
                end = min(begin + self._chunk_tokens, last)
                generated[0] = end
                text = script.text[begin * letters // size : end * letters // size]
                if self._top_k:
                    values = script.confidences[begin:end]
                else:
                    values = np.full(end - begin, np.nan, np.float32)
                known = None if logprobs is None else logprobs[begin:end]
                yield Chunk(text, values, logprobs=known)
            await self._pace(request)
            if script.fault:
                raise script.fault
            yield Chunk(
                finish=FinishReason.LENGTH if total < size else script.finish,
                prompt_tokens=script.prompt_tokens,
            )
        finally:
            self.running -= 1
