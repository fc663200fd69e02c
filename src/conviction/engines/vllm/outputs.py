"""The outputs of one request to vLLM: read to its end, or aborted where nobody reads on."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from math import inf, nan
from secrets import token_hex

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidence
from conviction.core import FinishReason
from conviction.engines.vllm.inside import AsyncEngine, Completion, Logprob, Output
from conviction.errors import EngineError, StreamError

_ABORT_SECONDS = 10.0
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


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


def finish_of(completion: Completion, stop_token: int | None) -> FinishReason:
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


def confidences_of(completion: Completion, top_k: int) -> NDArray[np.float32]:
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


def logprobs_of(completion: Completion) -> NDArray[np.float32]:
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
