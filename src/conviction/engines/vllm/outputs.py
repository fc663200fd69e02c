"""Requests to vLLM: what they are told, and their outputs as chunks of a trace.

vLLM itself is imported only where it is started; protocols say what is used of it.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib import import_module
from math import inf, nan
from secrets import token_hex
from typing import Any, Protocol

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidence
from conviction.core import FinishReason
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.vllm_gate import Arguments, Channel
from conviction.errors import EngineError, StreamError

_ABORT_SECONDS = 10.0
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class Logprob(Protocol):
    """One of the likeliest tokens at a place, or the generated one."""

    @property
    def logprob(self) -> float:
        """Natural log of its probability."""
        ...

    @property
    def rank(self) -> int | None:
        """Its place among all tokens, from 1."""
        ...


class Completion(Protocol):
    """What a step, or several, added to a trace."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


class Output(Protocol):
    """What vLLM says of one request at a time."""

    outputs: Sequence[Completion]
    prompt_token_ids: Sequence[int] | None
    num_cached_tokens: int | None


class AsyncEngine(Protocol):
    """vLLM's asynchronous engine. Its core runs in a process of its own."""

    model_config: Any
    vllm_config: Any

    def generate(
        self, prompt: Mapping[str, object], sampling_params: object, request_id: str
    ) -> AsyncGenerator[Output, None]:
        """Add a request, and give its outputs."""
        ...

    async def abort(self, request_id: str) -> None:
        """End a request at once; nothing happens if it has ended."""
        ...

    async def check_health(self) -> None:
        """Raise if the core has died."""
        ...

    def get_tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def shutdown(self) -> None:
        """End all its processes."""
        ...


def sampling_parameters(
    request: TraceRequest,
    *,
    logprobs: int | None,
    arguments: Arguments,
    stop_token: int | None,
) -> object:
    """What vLLM is told of a trace, filters that are off spelled out."""
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
    engine: AsyncEngine, prompt: Sequence[int], sampling: object
) -> AsyncGenerator[Output, None]:
    """The outputs of one request.

    vLLM tells its core of an abort while it is being cancelled, and may have to wait for that.
    So it works in a task of its own, which is cancelled only once: whoever reads here may be in a
    scope that cancels again and again.

    Args:
        engine: vLLM.
        prompt: Tokens.
        sampling: vLLM's parameters.

    Raises:
        Exception: whatever vLLM raises.
    """
    identity = f"conviction-{token_hex(8)}"
    # Never holds more than the trace has tokens.
    sender, arrivals = anyio.create_memory_object_stream[Output](inf)

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
                await _end(engine, identity, task)
        if task.done() and not task.cancelled():
            task.exception()  # Looked at, or the loop complains of it.


async def _end(engine: AsyncEngine, identity: str, task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task], timeout=_ABORT_SECONDS)
    with anyio.move_on_after(_ABORT_SECONDS):
        try:
            # Where it was cancelled before vLLM itself knew of the request as one of its own.
            await engine.abort(identity)
        except Exception:  # noqa: BLE001  # a core that died runs nothing any more
            return


class OutputReader:
    """From vLLM's outputs to the chunks of one trace."""

    def __init__(
        self,
        request: TraceRequest,
        top_k: int,
        channel: Channel | None,
        stop_token: int | None,
        notes: tuple[str, ...],
    ) -> None:
        self._wants_logprobs = request.logprobs and request.top_k > 0
        self._top_k = top_k
        self._channel = channel
        self._stop_token = stop_token
        self._notes = notes

    async def read(self, completion: Completion, prompt: int, cached: int) -> Chunk:
        """The chunk for one output."""
        if self._channel is None:
            confidences = _confidences(completion, self._top_k)
        else:
            confidences = await self._channel.take(len(completion.token_ids))
        chunk = Chunk(
            completion.text,
            confidences,
            prompt_tokens=prompt,
            cached_tokens=cached,
            notes=self._notes,
            logprobs=_logprobs(completion) if self._wants_logprobs else None,
        )
        self._notes = ()
        if completion.finish_reason is None:
            return chunk
        missing = self._channel.notes if self._channel else ()
        finish = _finish(completion, self._stop_token)
        return replace(chunk, finish=finish, notes=(*chunk.notes, *missing))


def _finish(completion: Completion, stop_token: int | None) -> FinishReason:
    """Why a trace ended.

    Args:
        completion: Its last output.
        stop_token: The token that stands for its gate, if it has one.

    Raises:
        StreamError: vLLM ended it for a reason of its own.
    """
    reason = completion.finish_reason or ""
    if reason == "stop" and stop_token is not None and completion.stop_reason == stop_token:
        return FinishReason.LOW_CONFIDENCE
    if reason in _FINISHES:
        return _FINISHES[reason]
    raise StreamError(
        tried="read the trace",
        found=f"vLLM ended it with {reason!r}",
        remedy="Other traces go on; if all fail, look at what vLLM wrote.",
    )


def _confidences(completion: Completion, top_k: int) -> NDArray[np.float32]:
    """Token confidences by the log-probabilities that came with the tokens.

    Args:
        completion: An output.
        top_k: The k of eq. 2; 0 if no log-probabilities were asked for.

    Returns:
        Shape (tokens,), NaN where unknown.
    """
    places = completion.logprobs or ()
    values = [token_confidence(_likeliest(place, top_k), top_k) for place in places if top_k]
    return _padded(values, len(completion.token_ids))


def _logprobs(completion: Completion) -> NDArray[np.float32]:
    """The log-probabilities of the generated tokens, shape (tokens,), NaN where unknown."""
    pairs = zip(completion.logprobs or (), completion.token_ids, strict=False)
    values = [
        min(place[token].logprob, 0.0) if token in place and place[token].logprob > -inf else nan
        for place, token in pairs
    ]
    return _padded(values, len(completion.token_ids))


def _likeliest(place: Mapping[int, Logprob], top_k: int) -> list[float]:
    """The k largest; the generated token comes along, also where it is not one of them."""
    return [value.logprob for value in place.values() if value.rank is None or value.rank <= top_k]


def _padded(values: list[float], tokens: int) -> NDArray[np.float32]:
    return np.array(values[:tokens] + [nan] * (tokens - len(values)), np.float32)


def failure_of(error: Exception, name: str) -> EngineError:
    """An error of vLLM's as one of ours."""
    kind = type(error).__name__
    if kind == "EngineGenerateError":
        return StreamError(
            tried=f"generate a trace on {name}",
            found=str(error.__cause__ or error) or kind,
            remedy="Other traces go on; if all fail, look at what vLLM wrote.",
        )
    return EngineError(
        tried=f"generate a trace on {name}",
        found=f"{kind}: {error}",
        remedy="vLLM refuses this request: change the setting that it names.",
    )
