"""Requests to vLLM: what they are told, and their outputs as chunks of a trace.

vLLM itself is imported only where it is started; stubs in `typings` say what is used of it.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from math import inf, nan
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidence
from conviction.core import FinishReason
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.vllm_gate import Arguments, Channel
from conviction.errors import EngineError, EngineUnavailableError, StreamError

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

_ABORT_SECONDS = 10.0
_OTHERS_GO_ON = "Other traces go on; if all fail, look at what vLLM wrote."
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def sampling_parameters(
    request: TraceRequest, logprobs: int | None, arguments: Arguments, stop_token: int | None
) -> object:
    """A trace in vLLM's parameters, filters that are off spelled out."""
    vllm: Any = import_module("vllm.sampling_params")
    sampling = request.sampling
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p or 0.0,
        seed=request.seed,
        max_tokens=sampling.max_tokens,
        logprobs=logprobs,
        stop_token_ids=None if stop_token is None else [stop_token],
        extra_args=dict(arguments) or None,
        # Each output brings what is new, not all so far: that would be quadratic in the tokens.
        output_kind=vllm.RequestOutputKind.DELTA,
    )


async def outputs_of(
    engine: "AsyncLLM", prompt: Sequence[int], sampling: object
) -> AsyncGenerator["RequestOutput", None]:
    """The outputs of one request.

    vLLM tells its core of an abort while it is being cancelled, and may have to wait for that.
    So it works in a task of its own, which is cancelled only once: the reader may be in a scope
    that cancels again and again. Errors are those of vLLM.
    """
    identity = f"conviction-{token_hex(8)}"
    # Never holds more than the trace has tokens.
    sender, arrivals = anyio.create_memory_object_stream["RequestOutput"](inf)

    async def work() -> None:
        generating = engine.generate({"prompt_token_ids": list(prompt)}, sampling, identity)
        with sender:
            async with aclosing(generating) as outputs:
                async for output in outputs:
                    sender.send_nowait(output)

    task = asyncio.create_task(work())
    try:
        with arrivals:
            async for output in arrivals:
                yield output
        await task
    finally:
        if not task.done():
            with anyio.CancelScope(shield=True):
                task.cancel()
                await asyncio.wait([task], timeout=_ABORT_SECONDS)
                # A core that died raises, and runs nothing any more.
                with anyio.move_on_after(_ABORT_SECONDS), suppress(Exception):
                    # Where it was cancelled before vLLM itself knew of the request as its own.
                    await engine.abort(identity)
        if task.done() and not task.cancelled():
            task.exception()  # Looked at, or the loop complains of it.


@dataclass(slots=True)
class OutputReader:
    """From vLLM's outputs to the chunks of one trace.

    Attributes:
        top_k: Log-probabilities per token that were asked for; 0 for none.
        channel: Where confidences come from in place of log-probabilities, if there is one.
        stop_token: The token that stands for the trace's gate, if it has one.
        notes: What a reader of the verdict should know; given with the first chunk.
    """

    top_k: int
    logprobs: bool
    channel: Channel | None
    stop_token: int | None
    notes: tuple[str, ...]

    async def read(self, completion: "CompletionOutput", prompt: int, cached: int) -> Chunk:
        """The chunk for one output."""
        if self.channel is None:
            confidences = _confidences(completion, self.top_k)
        else:
            confidences = await self.channel.take(len(completion.token_ids))
        chunk = Chunk(
            completion.text,
            confidences,
            prompt_tokens=prompt,
            cached_tokens=cached,
            notes=self.notes,
            logprobs=_logprobs(completion) if self.logprobs else None,
        )
        self.notes = ()
        if completion.finish_reason is None:
            return chunk
        missing = self.channel.notes if self.channel else ()
        finish = _finish(completion, self.stop_token)
        return replace(chunk, finish=finish, notes=(*chunk.notes, *missing))


def _finish(completion: "CompletionOutput", stop_token: int | None) -> FinishReason:
    reason = completion.finish_reason or ""
    if reason == "stop" and stop_token is not None and completion.stop_reason == stop_token:
        return FinishReason.LOW_CONFIDENCE
    if reason in _FINISHES:
        return _FINISHES[reason]
    found = f"vLLM ended it with {reason!r}"
    raise StreamError(tried="read the trace", found=found, remedy=_OTHERS_GO_ON)


def _confidences(completion: "CompletionOutput", top_k: int) -> NDArray[np.float32]:
    """Token confidences by the log-probabilities that came with the tokens, NaN where unknown."""
    places = completion.logprobs or ()
    values = [token_confidence(_likeliest(place, top_k), top_k) for place in places if top_k]
    return _padded(values, len(completion.token_ids))


def _logprobs(completion: "CompletionOutput") -> NDArray[np.float32]:
    """The log-probabilities of the generated tokens, shape (tokens,), NaN where unknown."""
    pairs = zip(completion.logprobs or (), completion.token_ids, strict=False)
    values = [
        min(place[token].logprob, 0.0) if token in place and place[token].logprob > -inf else nan
        for place, token in pairs
    ]
    return _padded(values, len(completion.token_ids))


def _likeliest(place: "Mapping[int, Logprob]", top_k: int) -> list[float]:
    """The k largest; the generated token comes along, also where it is not one of them."""
    return [value.logprob for value in place.values() if value.rank is None or value.rank <= top_k]


def _padded(values: list[float], tokens: int) -> NDArray[np.float32]:
    return np.array(values[:tokens] + [nan] * (tokens - len(values)), np.float32)


def failure_of(error: Exception, name: str) -> EngineError:
    """An error of vLLM's as one of ours."""
    kind, tried = type(error).__name__, f"generate a trace on {name}"
    if kind == "EngineDeadError":
        return core_died(error, name)
    if kind == "EngineGenerateError":
        found = str(error.__cause__ or error) or kind
        return StreamError(tried=tried, found=found, remedy=_OTHERS_GO_ON)
    return EngineError(
        tried=tried,
        found=f"{kind}: {error}",
        remedy="vLLM refuses this request: change the setting that it names.",
    )


def core_died(error: Exception, name: str) -> EngineUnavailableError:
    """The error for an engine whose core has died."""
    return EngineUnavailableError(
        tried=f"use {name}",
        found=f"its core has died ({error})",
        remedy="What vLLM wrote above tells why: out of memory, most often. Lower "
        "gpu_memory_utilization, max_num_seqs or max_model_len, and start it again.",
    )
