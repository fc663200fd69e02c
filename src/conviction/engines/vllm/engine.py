"""An engine that runs vLLM inside this program: its core in a child process, no HTTP between."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
import numpy as np

from conviction.core import FinishReason, Message, Sampling
from conviction.engines.base import (
    Capabilities,
    Chunk,
    Engine,
    TraceRequest,
    context_overflow,
    not_started,
    seeds_count,
)
from conviction.engines.vllm.outputs import (
    OutputReader,
    core_died,
    failure_of,
    outputs_of,
    sampling_parameters,
)
from conviction.engines.vllm.starting import check_installed, check_model, start
from conviction.engines.vllm_gate import ABSURD, channel_for, gate_arguments, remove_leftovers
from conviction.errors import EngineError, EngineUnavailableError
from conviction_gate.names import DEFAULT_K, MOST_K, stop_token_of

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_COUNT = (Message("user", "Count from one to one hundred in words."),)
_DRAWN = 24
_MOST_PROMPTS = 64
"""Prompts that are remembered: all traces of a question have the same."""

NO_OPTIONS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Started:
    vllm: "AsyncLLM"
    prompts: "Prompts"
    stop_token: int | None
    context: int
    most_logprobs: int

    @classmethod
    def of(cls, vllm: "AsyncLLM") -> Self:
        config, tokenizer = vllm.model_config, vllm.get_tokenizer()
        most = config.get_vocab_size() if config.max_logprobs < 0 else config.max_logprobs
        stop_token = stop_token_of(config, tokenizer)
        return cls(vllm, Prompts(tokenizer), stop_token, config.max_model_len, most)


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
        self._running: _Started | None = None
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
        # Waited for also when cancelled, or a vLLM that starts later would hold the device.
        vllm = await anyio.to_thread.run_sync(start, self._model, self._options)
        try:
            self._running = await anyio.to_thread.run_sync(_Started.of, vllm)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(vllm.shutdown)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End vLLM and all its processes."""
        running, self._running = self._running, None
        self._capabilities = None
        if running is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(running.vllm.shutdown)

    async def capabilities(self) -> Capabilities:
        """What it can do: its settings, and what a few tokens show of the gate and the seeds."""
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
        """Ask vLLM for its health; EngineUnavailableError if its core does not run."""
        try:
            await self._started().vllm.check_health()
        except EngineError:
            raise
        except Exception as error:
            raise core_died(error, self.name) from error

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
        most = request.sampling.max_tokens
        if len(prompt) + most > running.context:
            larger = "give vLLM a greater max_model_len"
            raise context_overflow(len(prompt), most, running.context, larger)
        channel, notes = None, ()
        if gating.reports and request.top_k:
            channel, notes = channel_for(request, running.most_logprobs)
        # With a channel, the generated token's own value is all that is asked for, if any.
        top_k = 0 if channel is not None else min(request.top_k, running.most_logprobs)
        stop_token = running.stop_token if gating.gates and request.gate is not None else None
        arguments = gate_arguments(
            request.gate,
            top_k=request.top_k or DEFAULT_K,
            stop_token=stop_token,
            report=channel and channel.name,
        )
        logprobs = request.logprobs and request.top_k > 0
        wanted = top_k or (0 if logprobs else None)
        parameters = sampling_parameters(request, wanted, arguments, stop_token)
        reader = OutputReader(top_k, logprobs, channel, stop_token, notes)
        try:
            async with aclosing(outputs_of(running.vllm, prompt, parameters)) as outputs:
                async for output in outputs:
                    cached = output.num_cached_tokens or 0
                    yield await reader.read(output.outputs[0], len(prompt), cached)
        except EngineError:
            raise
        except Exception as error:
            raise failure_of(error, self.name) from error
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
        stopped = seen.finish is FinishReason.LOW_CONFIDENCE
        return _Gating(stopped, stopped and bool(np.isfinite(seen.confidences).any()))

    async def _draw(self, seed: int) -> str:
        sampling = Sampling(temperature=1.0, max_tokens=_DRAWN)
        trace = TraceRequest(_COUNT, sampling, seed=seed)
        async with aclosing(self._generate(trace, _Gating())) as chunks:
            return "".join([chunk.text async for chunk in chunks])

    def _started(self) -> _Started:
        if self._running is None:
            raise not_started(self.name)
        return self._running


class Prompts:
    """From the messages of a trace to the tokens of its prompt, by the model's own tokenizer.

    vLLM hands out one that several threads may use.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[tuple[object, str, bool], list[int]] = {}
        self._lock = anyio.Lock()

    async def tokens(self, request: TraceRequest) -> list[int]:
        """The prompt of a trace, prefix included; EngineError if no template takes the chat."""
        key = (request.messages, request.prefix, request.templated)
        if key in self._kept:
            return self._kept[key]
        async with self._lock:  # The traces of a question come together; one of them does it.
            if key not in self._kept:
                # A long prompt takes a while, in which other traces go on.
                self._kept[key] = await anyio.to_thread.run_sync(self._split, request)
                if len(self._kept) > _MOST_PROMPTS:
                    del self._kept[next(iter(self._kept))]
            return self._kept[key]

    def _split(self, request: TraceRequest) -> list[int]:
        if request.templated:
            text = request.messages[0].content + request.prefix
            begin = getattr(self._tokenizer, "bos_token", None)
            # A template that writes the mark of the beginning leaves none to be added.
            has_mark = bool(begin) and text.startswith(begin)
        else:
            text, has_mark = self._chat(request), True
        return list(self._tokenizer.encode(text, add_special_tokens=not has_mark))

    def _chat(self, request: TraceRequest) -> str:
        messages, going_on = request.messages, bool(request.prefix)
        if going_on:
            messages = (*messages, Message("assistant", request.prefix))
        try:
            return self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=not going_on,
                continue_final_message=going_on,
            )
        except Exception as error:  # a template is a program of the model's, and may raise anything
            raise EngineError(
                tried="put the model's chat template around the messages",
                found=f"{type(error).__name__}: {error}",
                remedy="Use a model with a chat template, or messages that its template takes; "
                "a question that has its template already goes as it is (templated).",
            ) from error
