"""Uses the engine that runs vLLM in process, for real, and writes down what was seen as JSON.

Run with the python of the test environment, this package on its path:
run_vllm_engine.py MODEL_FOLDER OUTPUT_FILE
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from conviction.answers import kind
from conviction.core import FinishReason, Message, Question, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.vllm import VLLMEngine
from conviction.engines.vllm import engine as engine_module
from conviction.engines.vllm_gate import Channel, channel_folder, channel_for
from conviction.errors import ConvictionError
from conviction.gate import Gate
from conviction.policies import DeepConfLow
from conviction.thinking import deliberate
from conviction_gate.channel import HEADER, HEADER_BYTES

OPTIONS: dict[str, object] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_seqs": 32,
    "distributed_executor_backend": "uni",
}
LONG = " ".join(f"word{number}" for number in range(200))


MADE: list[str] = []
"""Names of our channels; other programs may have theirs in the same folder."""


def watched_channel(
    request: TraceRequest, most_top_k: int
) -> tuple[Channel | None, tuple[str, ...]]:
    channel, notes = channel_for(request, most_top_k)
    assert channel is not None
    MADE.append(channel.name)
    return channel, notes


class Watched(VLLMEngine):
    """Counts the traces whose last chunk says that the gate stopped them inside."""

    stopped_inside = 0

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                self.stopped_inside += chunk.finish is FinishReason.LOW_CONFIDENCE
                yield chunk


def trace(text: str = "Why is the sky blue?", **more: Any) -> TraceRequest:
    sampling = Sampling(temperature=1.0, max_tokens=64)
    return replace(
        TraceRequest((Message("user", text),), sampling, seed=3, top_k=20),
        **more,
    )


async def collect(engine: VLLMEngine, request: TraceRequest) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


def joined(chunks: list[Chunk]) -> dict[str, Any]:
    last = chunks[-1]
    return {
        "text": "".join(chunk.text for chunk in chunks),
        "confidences": np.concatenate([chunk.confidences for chunk in chunks]).tolist(),
        "logprobs": [v for c in chunks if c.logprobs is not None for v in c.logprobs.tolist()],
        "finish": last.finish,
        "prompt_tokens": last.prompt_tokens,
        "cached_tokens": last.cached_tokens,
    }


async def by_both_ways(engine: VLLMEngine) -> dict[str, Any]:
    """The same trace, its confidences by the channel and by log-probabilities."""
    channel = joined(await collect(engine, trace(logprobs=True)))
    found = engine._gating
    engine._gating = replace(found, reports=False)
    logprobs = joined(await collect(engine, trace(logprobs=True)))
    engine._gating = found
    return {"channel": channel, "logprobs": logprobs}


async def stopped(engine: VLLMEngine, confidences: list[float]) -> dict[str, Any]:
    """The same trace with a gate that half of its groups would not pass."""
    groups = np.convolve(np.array(confidences), np.ones(8) / 8, "valid")
    gate = Gate(8, float(np.median(groups)))
    position = gate.stop_position(np.array(confidences, np.float32))
    return joined(await collect(engine, trace(gate=gate))) | {"position": position}


async def cancelled(engine: VLLMEngine, *, by_scope: bool) -> dict[str, Any]:
    """How many tokens vLLM goes on to generate for somebody who has left."""
    request = trace(sampling=Sampling(temperature=1.0, max_tokens=1900))
    file = -1
    with anyio.CancelScope() as scope:
        async with aclosing(engine.stream(request)) as chunks:
            read = 0
            async for chunk in chunks:
                read += chunk.confidences.size
                if file < 0:
                    file = os.open(channel_folder() / MADE[-1], os.O_RDONLY)
                if read > 20 and by_scope:
                    scope.cancel()
                elif read > 20:
                    break
    at_once = _written(file)
    await anyio.sleep(0.3)
    later = _written(file)
    await anyio.sleep(0.3)
    seen = {"read": read, "at_once": at_once, "later": later, "at_last": _written(file)}
    os.close(file)
    return seen


def _written(file: int) -> int:
    return HEADER.unpack(os.pread(file, HEADER_BYTES, 0))[3]


async def policy(engine: Watched) -> dict[str, Any]:
    engine.stopped_inside = 0
    verdict = await deliberate(
        Question.ask("Why?"),
        engine=engine,
        policy=DeepConfLow(budget=12, warmup=4, window=16),
        answers=kind("text"),
        sampling=Sampling(temperature=1.0, max_tokens=120),
    )
    return {
        "inside": engine.stopped_inside,
        "finishes": [one.finish for one in verdict.traces],
        "tokens": [one.tokens for one in verdict.traces],
        "positions": [
            Gate(verdict.window or 1, verdict.threshold or 0.0).stop_position(one.confidences)
            for one in verdict.traces
        ],
        "unknown": sum(int(np.isnan(one.confidences).sum()) for one in verdict.traces),
    }


async def refusal(engine: VLLMEngine, request: TraceRequest) -> str:
    try:
        await collect(engine, request)
    except ConvictionError as error:
        return type(error).__name__
    return ""


async def main(model: str) -> dict[str, Any]:
    """Everything, with one engine."""
    began = time.perf_counter()
    async with Watched(model, options=OPTIONS) as engine:
        started = time.perf_counter() - began
        can = await engine.capabilities()
        ways = await by_both_ways(engine)
        seen = {
            "started": started,
            "gates": can.gates,
            "seeds": can.seeds,
            "top_k": can.top_k,
            "context": can.context,
            "concurrency": can.concurrency,
            "ways": ways,
            "stopped": await stopped(engine, ways["channel"]["confidences"]),
            "other_seed": joined(await collect(engine, trace(seed=4))),
            "begun": joined(await collect(engine, trace(prefix="Because the sun"))),
            "first": joined(await collect(engine, trace(LONG))),
            "second": joined(await collect(engine, trace(LONG, seed=9))),
            "closed": await cancelled(engine, by_scope=False),
            "cancelled": await cancelled(engine, by_scope=True),
            "overflow": await refusal(engine, trace(sampling=Sampling(max_tokens=2048))),
            "policy": await policy(engine),
            "health": await _healthy(engine),
        }
    assert MADE
    seen["left"] = [name for name in MADE if (channel_folder() / name).exists()]
    return seen


async def _healthy(engine: VLLMEngine) -> bool:
    with contextlib.suppress(ConvictionError):
        await engine.check()
        return True
    return False


if __name__ == "__main__":
    engine_module.channel_for = watched_channel
    Path(sys.argv[2]).write_text(json.dumps(anyio.run(main, sys.argv[1])), encoding="utf-8")
