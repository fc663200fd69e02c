"""The contract between the driver and what generates tokens.

An engine opens one stream per trace. Closing the stream, or cancelling the task that reads it,
frees the engine's compute at once. Engines know nothing of policies or votes.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.core import FinishReason, Message, Sampling
from conviction.errors import ContextOverflowError, EngineError, EngineUnavailableError
from conviction.gate import Gate


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine was found to be able to do; probed, never assumed.

    Attributes:
        top_k: The most log-probabilities per token that it gives; 0 if it gives none.
        concurrency: Traces that it generates at once; further ones wait.
        context: Tokens that prompt and trace may have together; None where unknown.
        seeds: Whether a seed reproduces a trace.
        top_k_reason: Why there are fewer log-probabilities than wanted, as the end of a sentence
            that begins with the engine; empty where nothing is amiss.
        notes: What a reader of a verdict should know about this engine; whole sentences.
        continues: Whether it goes on with a trace whose beginning is given (`TraceRequest.prefix`).
        gates: Whether it stops traces by their gate itself (`TraceRequest.gate`).
    """

    model: str
    top_k: int
    concurrency: int
    context: int | None = None
    seeds: bool = False
    top_k_reason: str = ""
    notes: tuple[str, ...] = ()
    continues: bool = False
    gates: bool = False


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One trace to generate.

    Attributes:
        messages: The chat to continue.
        trace: The trace's number within its run, from 0.
        seed: Seed of this trace, in [0, 2**31).
        top_k: Log-probabilities per token that the caller wants (k of eq. 2); 0 for none.
        logprobs: Whether the caller also wants the log-probability of each generated token.
            They come beside the `top_k` likeliest ones, so without these there are none.
        prefix: The beginning of the trace, which counts as prompt and does not come back. Empty
            for a trace from its start; else only for engines that can (`Capabilities.continues`).
        templated: Whether the only message has the model's template around it already.
        gate: When to stop the trace. An engine that can (`Capabilities.gates`) stops it where it
            generates, so that no token comes after the one that decided; the reader of the stream
            applies the gate as well, and stops at the same token.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    trace: int = 0
    seed: int = 0
    top_k: int = 0
    logprobs: bool = False
    prefix: str = ""
    templated: bool = False
    gate: Gate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some more tokens of a trace.

    Attributes:
        text: What they add to the text; may be empty, and never splits a character.
        confidences: Token confidence C_i (eq. 2) of each token generated since the last chunk,
            float32, contiguous, shape (tokens,), NaN where the engine gave none. Its length is
            the count of tokens: one without text or log-probabilities has its entry, too.
        finish: `STOP`, `LENGTH`, or `LOW_CONFIDENCE` from an engine that gates, in the last chunk
            of a stream, else None.
        prompt_tokens: Tokens of the prompt, where the engine tells (usually in the last chunk).
        cached_tokens: Prompt tokens that the engine did not have to compute again.
        notes: What a reader of the verdict should know about this trace; whole sentences.
        logprobs: Log-probability of each of these tokens, where the request wants them: natural
            log, at most 0, float32, shape (tokens,), NaN where unknown. None where the engine
            cannot give any. Of the same distribution as the confidences: raw, or the one after
            temperature and filters.
    """

    text: str = ""
    confidences: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    notes: tuple[str, ...] = ()
    logprobs: NDArray[np.float32] | None = None


class Engine(ABC):
    """Generates traces. Used as an asynchronous context manager: entering starts it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for people, as in "local Qwen2.5-Coder-0.5B-Instruct"."""

    @abstractmethod
    async def capabilities(self) -> Capabilities:
        """What it can do, probed at the first call.

        Raises:
            EngineError: it cannot be reached or does not work.
        """

    @abstractmethod
    def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace. Close the generator to stop it; that frees the compute at once.

        Raises:
            EngineError: the trace could not be generated, or broke off.
        """

    async def check(self) -> None:
        """See whether it lives, without generating anything; does nothing where it cannot tell.

        Raises:
            EngineError: it cannot be used just now.
        """

    @property
    def failure(self) -> EngineError | None:
        """What its requests fail with just now, also while it tries again; None if they do not."""
        return None

    async def __aenter__(self) -> Self:
        """Start what has to be started."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what was started, also after an error or a cancellation."""


def not_started(name: str) -> EngineUnavailableError:
    """The error for an engine that is used before it was entered."""
    return EngineUnavailableError(
        tried=f"use {name}", found="it is not started", remedy="Use it within `async with engine:`."
    )


def context_overflow(
    prompt: int, max_tokens: int, context: int, larger: str
) -> ContextOverflowError:
    """The error for a trace that does not fit; `larger` tells how to have a larger context."""
    return ContextOverflowError(
        tried=f"generate up to {max_tokens:,} tokens after a prompt of {prompt:,}",
        found=f"together that is {prompt + max_tokens:,}, and the context has {context:,}",
        remedy=f"Lower --max-tokens, shorten the question, or {larger}.",
    )


async def seeds_count(draw: Callable[[int], Awaitable[str]]) -> bool | None:
    """Whether a seed reproduces a trace, and another seed does not; None if all draws were alike.

    Also beside other traces: what is computed together may be rounded differently. `draw` gives the
    text of a short trace that is drawn with a seed; its errors come out.
    """
    seeds = (1, 2, 1, 3, 1)
    together = [""] * len(seeds)
    failures: list[EngineError] = []

    async def one(number: int, seed: int) -> None:
        try:
            together[number] = await draw(seed)
        except EngineError as error:
            failures.append(error)

    alone = await draw(1)
    async with anyio.create_task_group() as tasks:
        for number, seed in enumerate(seeds):
            tasks.start_soon(one, number, seed)
    if failures:
        raise failures[0]
    same = {alone, *(text for text, seed in zip(together, seeds, strict=True) if seed == 1)}
    if len(same) > 1:
        return False
    return None if set(together) == same else True
