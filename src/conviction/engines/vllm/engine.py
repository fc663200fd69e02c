"""An engine that runs vLLM inside this program: its core in a child process, no HTTP between."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import numpy as np

from conviction.core import Message, Sampling
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.engines.channel import Channel, channel_for, remove_leftovers
from conviction.engines.gates import ABSURD, gate_arguments
from conviction.engines.seeds import seeds_count
from conviction.engines.vllm.inside import AsyncEngine, Completion
from conviction.engines.vllm.outputs import (
    confidences_of,
    failure_of,
    finish_of,
    logprobs_of,
    outputs_of,
)
from conviction.engines.vllm.prompts import Prompts
from conviction.engines.vllm.starting import check_installed, check_model, start
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineUnavailableError,
)
from conviction_gate.names import DEFAULT_K, MOST_K, stop_token_of

_COUNT = (Message("user", "Count from one to one hundred in words."),)
_DRAWN = 24

NO_OPTIONS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Running:
    vllm: AsyncEngine
    prompts: Prompts
    stop_token: int | None
    context: int
    most_logprobs: int


@dataclass(frozen=True, slots=True)
class _Gating:
    """What the gate was found to do here: `gates` stops traces, `reports` tells confidences."""

    gates: bool = False
    reports: bool = False
    note: str = ""


class VLLMEngine(Engine):
    """Generates traces with vLLM in this program, on whatever device vLLM runs.

    With the plugin `conviction_gate` loaded, which is so where both packages are installed, traces
    are stopped inside vLLM, and confidences come without log-probabilities.

    Args:
        model: A folder with the model, or its name on the Hugging Face hub.
        options: Settings of vLLM's own engine by name, as in {"max_model_len": 8192}.
        templated: Whether all prompts have the model's template around them already.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        options: Mapping[str, object] = NO_OPTIONS,
        templated: bool = False,
    ) -> None:
        self._model = str(model)
        folder = Path(model).expanduser()
        self._label = folder.resolve().name if folder.is_dir() else self._model
        self._options = dict(options)
        self._templated = templated
        self._running: _Running | None = None
        self._gating = _Gating()
        self._probing = anyio.Lock()
        self._capabilities: Capabilities | None = None

    @property
    def name(self) -> str:
        """The model's name, as in "vLLM Qwen/Qwen2.5-7B-Instruct"; of a folder, its last part."""
        return f"vLLM {self._label}"

    async def __aenter__(self) -> Self:
        """Check what can be checked, then start vLLM.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelError: the model's folder is none.
            InvalidSettingError: vLLM has no such setting.
            EngineStartError: vLLM did not start.
        """
        check_installed()
        check_model(self._model)
        await anyio.to_thread.run_sync(remove_leftovers)
        # Not left alone when cancelled: it would hold the device, and nobody would end it.
        vllm = await anyio.to_thread.run_sync(start, self._model, self._options)
        try:
            self._running = await anyio.to_thread.run_sync(_running, vllm)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(vllm.shutdown)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End vLLM and all its processes."""
        running, self._running = self._running, None
        self._capabilities = None
        if running is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(running.vllm.shutdown)

    async def capabilities(self) -> Capabilities:
        """What it can do: its settings, and the gate and the seeds as a few tokens show them.

        Raises:
            EngineError: it is not started, or generates nothing.
        """
        running = self._started()
        async with self._probing:
            if self._capabilities is None:
                self._gating = await self._find_gate()
                self._capabilities = Capabilities(
                    model=self._label,
                    top_k=MOST_K if self._gating.reports else running.most_logprobs,
                    top_k_reason="started with max_logprobs 0",
                    concurrency=running.vllm.vllm_config.scheduler_config.max_num_seqs,
                    context=running.context,
                    seeds=bool(await seeds_count(self._draw)),
                    continues=True,
                    gates=self._gating.gates,
                    notes=(self._gating.note,) if self._gating.note else (),
                )
            return self._capabilities

    async def check(self) -> None:
        """Ask vLLM whether its core lives.

        Raises:
            EngineUnavailableError: it is not started, or its core has died.
        """
        try:
            await self._started().vllm.check_health()
        except EngineError:
            raise
        except Exception as error:
            raise self._dead(error) from error

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace.

        Raises:
            ContextOverflowError: prompt and trace do not fit; nothing was generated.
            EngineUnavailableError: vLLM's core has died.
            StreamError: vLLM broke off the trace.
            EngineError: vLLM refuses the request.
        """
        if self._capabilities is None and self._running is not None:
            await self.capabilities()
        if self._templated:
            request = replace(request, templated=True)
        async with aclosing(self._generate(request, self._gating)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _generate(
        self, request: TraceRequest, gating: _Gating
    ) -> AsyncGenerator[Chunk, None]:
        running = self._started()
        prompt = await running.prompts.tokens(request)
        self._check_context(running, len(prompt), request.sampling.max_tokens)
        channel, notes = None, ()
        if gating.reports and request.top_k:
            channel, notes = channel_for(request, running.most_logprobs)
        # With a channel, the generated token's own value is all that is asked for, if any.
        top_k = 0 if channel is not None else min(request.top_k, running.most_logprobs)
        stop_token = running.stop_token if gating.gates and request.gate is not None else None
        parameters = _parameters(
            request,
            logprobs=top_k or (0 if request.logprobs and request.top_k else None),
            arguments=gate_arguments(
                request.gate,
                top_k=request.top_k or DEFAULT_K,
                stop_token=stop_token,
                report=channel and channel.name,
            ),
            stop_token=stop_token,
        )
        reader = _Reader(request, top_k, channel, stop_token, notes)
        try:
            async with aclosing(outputs_of(running.vllm, prompt, parameters)) as outputs:
                async for output in outputs:
                    cached = output.num_cached_tokens or 0
                    yield await reader.read(output.outputs[0], len(prompt), cached)
        except EngineError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        finally:
            if channel is not None:
                channel.close()

    async def _find_gate(self) -> _Gating:
        """Whether a gate stops traces here, and whether its channel brings confidences."""
        if self._started().stop_token is None:
            return _Gating(note="The model has no token to spare that could stand for a gate.")
        trace = TraceRequest(_COUNT, Sampling(max_tokens=2), top_k=DEFAULT_K, gate=ABSURD)
        seen = Chunk()
        try:
            async with aclosing(self._generate(trace, _Gating(gates=True, reports=True))) as chunks:
                async for chunk in chunks:
                    seen = chunk
        except EngineUnavailableError:
            raise
        except EngineError as error:
            return _Gating(note=f"vLLM refuses gates, so traces are stopped from outside: {error}")
        stopped = seen.finish is not None and seen.finish.name == "LOW_CONFIDENCE"
        return _Gating(stopped, stopped and bool(np.isfinite(seen.confidences).any()))

    async def _draw(self, seed: int) -> str:
        sampling = Sampling(temperature=1.0, max_tokens=_DRAWN)
        trace = TraceRequest(_COUNT, sampling, seed=seed)
        async with aclosing(self._generate(trace, _Gating())) as chunks:
            return "".join([chunk.text async for chunk in chunks])

    def _started(self) -> _Running:
        if self._running is None:
            raise EngineUnavailableError(
                tried=f"use {self.name}",
                found="it is not started",
                remedy="Use it within `async with engine:`.",
            )
        return self._running

    def _failure(self, error: Exception) -> EngineError:
        if type(error).__name__ == "EngineDeadError":
            return self._dead(error)
        return failure_of(error, self.name)

    def _dead(self, error: Exception) -> EngineUnavailableError:
        return EngineUnavailableError(
            tried=f"use {self.name}",
            found=f"its core has died ({error})",
            remedy="What vLLM wrote above tells why: out of memory, most often. Lower "
            "gpu_memory_utilization, max_num_seqs or max_model_len, and start it again.",
        )

    def _check_context(self, running: _Running, prompt: int, max_tokens: int) -> None:
        if prompt + max_tokens <= running.context:
            return
        raise ContextOverflowError(
            tried=f"generate up to {max_tokens:,} tokens after a prompt of {prompt:,}",
            found=f"together that is {prompt + max_tokens:,}, and the context has "
            f"{running.context:,}",
            remedy="Lower --max-tokens, shorten the question, or give vLLM a greater "
            "max_model_len.",
        )


class _Reader:
    """From vLLM's outputs to the chunks of a trace."""

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
            confidences = confidences_of(completion, self._top_k)
        else:
            confidences = await self._channel.take(len(completion.token_ids))
        chunk = Chunk(
            completion.text,
            confidences,
            prompt_tokens=prompt,
            cached_tokens=cached,
            notes=self._notes,
            logprobs=logprobs_of(completion) if self._wants_logprobs else None,
        )
        self._notes = ()
        if completion.finish_reason is None:
            return chunk
        missing = self._channel.notes if self._channel else ()
        finish = finish_of(completion, self._stop_token)
        return replace(chunk, finish=finish, notes=(*chunk.notes, *missing))


def _running(vllm: AsyncEngine) -> _Running:
    """What is known of vLLM once it runs."""
    config = vllm.model_config
    return _Running(
        vllm=vllm,
        prompts=Prompts(vllm.get_tokenizer()),
        stop_token=stop_token_of(vllm.model_config, vllm.get_tokenizer()),
        context=config.max_model_len,
        most_logprobs=config.get_vocab_size() if config.max_logprobs < 0 else config.max_logprobs,
    )


def _parameters(
    request: TraceRequest,
    *,
    logprobs: int | None,
    arguments: Mapping[str, str | int | float],
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
