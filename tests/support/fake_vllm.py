"""A stand-in for the package vllm: one asynchronous engine that writes a given text.

It has just the parts that the engine uses, in the places where vLLM has them, and vLLM's manners:
deltas in steps of several tokens, aborts on cancellation, errors by their names.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conviction.gate import Gate
from conviction_gate.channel import Writer
from conviction_gate.names import REPORT, STOP_TOKEN, THRESHOLD, WINDOW


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    logprobs: int | None
    stop_token_ids: list[int] | None
    extra_args: dict[str, Any] | None
    output_kind: str


@dataclass
class AsyncEngineArgs:
    model: str
    enable_prefix_caching: bool = False
    disable_log_stats: bool = False
    max_model_len: int = 200
    max_num_seqs: int = 7


@dataclass
class AddedToken:
    text: str
    special: bool = True

    def __str__(self) -> str:
        return self.text


class Tokenizer:
    """Every word is a token; those in angle brackets are special."""

    eos_token_id, bos_token, bos_token_id = 2, "<s>", 1
    all_special_ids, all_special_tokens = (1, 2), ("<s>", "</s>")
    chat_template: str | None = "<user> <assistant>"

    def __init__(self) -> None:
        self.words = {"<s>": 1, "</s>": 2, "<user>": 3, "<assistant>": 4, "<spare>": 5}
        self.split = 0
        self.added_tokens_decoder = {token: AddedToken(text) for text, token in self.words.items()}

    def get_vocab(self) -> dict[str, int]:
        return self.words

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.split += 1
        words = (["<s>"] if add_special_tokens else []) + text.split()
        return [self.words.setdefault(word, 10 + len(self.words)) for word in words]

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        assert not tokenize
        assert add_generation_prompt is not continue_final_message
        if self.chat_template is None:
            raise ValueError("there is no chat template")
        said = " ".join(f"<{one['role']}> {one['content']}" for one in messages)
        return f"<s> {said} <assistant>" if add_generation_prompt else f"<s> {said}"


@dataclass
class FakeVLLM:
    """How the stand-in behaves, and what it was asked for.

    Attributes:
        words: The trace, a token each; it ends after them, if it is not cut before.
        step: Tokens of one output.
        gate: Whether the plugin is loaded.
        refusal: Raised for every request that names a gate.
        error: Raised in the middle of a trace.
        folder: Where channels lie.
        vocabulary: Logits of the model.
        max_logprobs: As vLLM's setting.
        start_error: Raised in place of starting.
        varies: Whether a seed gives another trace each time.
        seeded_text: Whether the text tells its seed.
        asked: All requests, as (tokens of the prompt, parameters).
        running: Requests that are computed now.
        aborted: Requests that were cancelled.
        started: Arguments it was started with.
        stopped: Whether it was shut down.
    """

    words: tuple[str, ...] = tuple(f"w{n} " for n in range(12))
    step: int = 3
    gate: bool = True
    refusal: Exception | None = None
    error: Exception | None = None
    folder: Path = Path()
    vocabulary: int = 6
    max_logprobs: int = 20
    start_error: Exception | None = None
    varies: bool = False
    seeded_text: bool = True
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list[Any])
    running: int = 0
    generated: int = 0
    aborted: int = 0
    started: AsyncEngineArgs | None = None
    stopped: bool = False
    dead: bool = False

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer()
        self.model_config = SimpleNamespace(
            max_model_len=200,
            max_logprobs=self.max_logprobs,
            get_vocab_size=lambda: self.vocabulary,
            try_get_generation_config=lambda: {"eos_token_id": [2]},
            hf_config=SimpleNamespace(eos_token_id=2),
        )
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=7))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make `import vllm` find it."""
        parts: dict[str, dict[str, object]] = {
            "vllm": {},
            "vllm.sampling_params": {
                "SamplingParams": SamplingParams,
                "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            },
            "vllm.engine": {},
            "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
            "vllm.v1": {},
            "vllm.v1.engine": {},
            "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=self.start)},
        }
        for name, content in parts.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)

    def start(self, arguments: AsyncEngineArgs) -> "FakeVLLM":
        if self.start_error is not None:
            raise self.start_error
        self.started = arguments
        return self

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def shutdown(self) -> None:
        self.stopped = True

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError("the core is gone")

    async def abort(self, request_id: str) -> None:
        assert request_id.startswith("conviction-")
        await asyncio.sleep(0)

    def confidence(self, place: int) -> float:
        return 10.0 - place / 2

    async def generate(
        self, prompt: Mapping[str, Any], sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Any, None]:
        assert request_id.startswith("conviction-")
        arguments = sampling_params.extra_args or {}
        self.asked.append((prompt["prompt_token_ids"], sampling_params))
        if self.dead:
            raise EngineDeadError("the core is gone")
        if self.refusal is not None and WINDOW in arguments:
            raise self.refusal
        self.running += 1
        try:
            async for output in self._outputs(prompt["prompt_token_ids"], sampling_params):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.sleep(0.01)  # As long as it takes to tell the core.
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _outputs(
        self, prompt: list[int], params: SamplingParams
    ) -> AsyncGenerator[Any, None]:
        arguments = (params.extra_args or {}) if self.gate else {}
        writer: Writer | None = None
        if REPORT in arguments:
            with suppress(OSError):
                writer = Writer(arguments[REPORT], self.folder)
        total = min(params.max_tokens, len(self.words))
        stop = None
        if WINDOW in arguments:
            values = np.array([self.confidence(place) for place in range(total)], np.float32)
            stop = Gate(arguments[WINDOW], arguments[THRESHOLD]).stop_position(values)
        last = stop or total
        for begin in range(0, last, self.step):
            await asyncio.sleep(0.001)
            if self.error is not None and begin:
                raise self.error
            end = min(begin + self.step, last)
            self.generated += end - begin
            for place in range(begin, end):
                if writer is not None:
                    writer.put(place, self.confidence(place))
            step = (begin, end, end == last)
            yield self._output(prompt, params, step, arguments if stop else None)

    def _output(
        self,
        prompt: list[int],
        params: SamplingParams,
        step: tuple[int, int, bool],
        stopped_by: Mapping[str, Any] | None,
    ) -> object:
        begin, end, ended = step
        words = list(self.words[begin:end])
        reason: str | None = None
        token: int | None = None
        if ended and stopped_by is not None:
            words[-1], reason, token = "", "stop", stopped_by[STOP_TOKEN]
        elif ended:
            reason = "stop" if end == len(self.words) else "length"
        seed = f"{params.seed}." if self.seeded_text else ""
        draw = f"{len(self.asked)}." if self.varies else ""
        text = "".join(f"{seed}{draw}{word}" if word else "" for word in words)
        completion = SimpleNamespace(
            text=text,
            token_ids=[1000 + place for place in range(begin, end)],
            logprobs=self._logprobs(params, begin, end),
            finish_reason=reason,
            stop_reason=token,
        )
        return SimpleNamespace(
            outputs=[completion], prompt_token_ids=prompt, num_cached_tokens=len(prompt) - 1
        )

    def _logprobs(self, params: SamplingParams, begin: int, end: int) -> object:
        k = params.logprobs
        if k is None:
            return None
        assert k <= self.max_logprobs
        places: list[dict[int, Any]] = []
        for place in range(begin, end):
            # The generated token is none of the likeliest.
            values = {1000 + place: SimpleNamespace(logprob=-50.0 - place, rank=99)}
            for rank in range(k):
                value = -self.confidence(place)
                values[rank] = SimpleNamespace(logprob=value, rank=rank + 1)
            places.append(values)
        return places
