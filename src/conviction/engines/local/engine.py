"""The embedded engine: a model file on this machine, run by llama.cpp."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio.to_thread

from conviction.core import require, require_whole
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.engines.local.machine import check_memory, usable_cores
from conviction.engines.local.prompts import SharedPrompts
from conviction.engines.local.server import LlamaServer, ServerSettings
from conviction.engines.local.server_api import ServerApi
from conviction.engines.local.slots import SlotPool
from conviction.engines.openai import OpenAIEngine, Timeouts
from conviction.errors import (
    ContextOverflowError,
    EngineUnavailableError,
    MissingExtraError,
    StreamError,
)
from conviction.gguf import check_chat_model

DEFAULT_SLOTS = 8
DEFAULT_CONTEXT = 4096
MOST_LOGPROBS = 1000
"""llama.cpp gives as many as the model has tokens; more than this would drown the trace."""

_STALL_SECONDS = 600.0
"""A long prompt on a slow machine takes minutes; a process that dies is noticed at once."""


@dataclass(frozen=True, slots=True)
class _Running:
    server: LlamaServer
    http: OpenAIEngine
    plain: OpenAIEngine
    api: ServerApi
    prompts: SharedPrompts
    slots: SlotPool


class LocalEngine(Engine):
    """Generates traces with a GGUF model on this machine.

    Entering it checks the model file and the memory, then starts llama.cpp; leaving it ends
    llama.cpp and removes what it wrote.

    Args:
        model_path: The model file.
        slots: Traces generated at once, at least 1; further ones wait their turn. Default: 8.
        context: Tokens that prompt and trace may have together, at least 1, and never more than
            the model was made for. Default: 4096.
        threads: Threads that compute, at least 1. Default: one for each core we may use.
        start_timeout: Seconds that starting may take.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        slots: int = DEFAULT_SLOTS,
        context: int = DEFAULT_CONTEXT,
        threads: int | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        require_whole("slots", slots, low=1)
        require_whole("context", context, low=1)
        if threads is not None:
            require_whole("threads", threads, low=1)
        require("start_timeout", start_timeout, low=1e-3)
        self._path = Path(model_path)
        self._slots = slots
        self._context = context
        self._threads = threads or usable_cores()
        self._start_timeout = start_timeout
        self._running: _Running | None = None
        self._stack = AsyncExitStack()

    @property
    def name(self) -> str:
        """The model's file name, as in "local qwen2.5-coder-0.5b-instruct-q4_k_m"."""
        return f"local {self._path.stem}"

    async def __aenter__(self) -> Self:
        """Check everything that can be checked, then start llama.cpp.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            ModelError: the model file is missing, broken, or not of a chat model.
            EngineStartError: there is too little memory, or llama.cpp did not start.
        """
        if find_spec("xllamacpp") is None:
            raise MissingExtraError(
                tried="start the embedded engine",
                found="the package xllamacpp is not installed",
                remedy='Install it: pip install "conviction[local]".',
            )
        settings = await anyio.to_thread.run_sync(self._settings)
        async with AsyncExitStack() as stack:
            server = await LlamaServer.start(settings, self._start_timeout)
            stack.push_async_callback(server.stop)
            http = await stack.enter_async_context(self._http(server, server.url))
            # At its root, llama.cpp's plain completions are of a shape of its own.
            plain = await stack.enter_async_context(self._http(server, f"{server.url}/v1"))
            api = ServerApi(http)
            prompts = SharedPrompts(api, server.folder)
            self._running = _Running(server, http, plain, api, prompts, SlotPool(self._slots))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End llama.cpp, also after an error or a cancellation."""
        self._running = None
        await self._stack.aclose()

    async def capabilities(self) -> Capabilities:
        """What llama.cpp is known to do; it gives as many log-probabilities as it has tokens."""
        self._started()
        return Capabilities(
            model=self._path.stem,
            top_k=MOST_LOGPROBS,
            concurrency=self._slots,
            context=self._context,
            # Traces computed together round differently than alone, so their draws may part.
            seeds=self._slots == 1,
        )

    async def check(self) -> None:
        """Ask llama.cpp for a sign of life.

        Raises:
            EngineUnavailableError: it is not started, or has ended by itself.
        """
        running = self._started()
        try:
            await running.http.check()
        except EngineUnavailableError as error:
            raise await running.server.death() or error from error

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace, as soon as a slot is free.

        Raises:
            ContextOverflowError: prompt and trace do not fit; nothing was generated.
            EngineUnavailableError: llama.cpp has ended by itself.
            StreamError: the stream broke.
        """
        running = self._started()
        if request.templated:
            async with aclosing(self._stream_plain(running, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        try:
            async with running.prompts.use(request.messages) as prompt:
                self._check_context(prompt.tokens, request.sampling.max_tokens)
                async with running.slots.take(prompt) as slot:
                    cached = await running.prompts.load(prompt, slot)
                    extra = {"id_slot": slot.number, "timings_per_token": True}
                    async with aclosing(running.http.stream(request, extra=extra)) as chunks:
                        async for chunk in chunks:
                            yield chunk if cached is None else replace(chunk, cached_tokens=cached)
        except (EngineUnavailableError, StreamError) as error:
            raise await running.server.death() or error from error

    async def _stream_plain(
        self, running: _Running, request: TraceRequest
    ) -> AsyncGenerator[Chunk, None]:
        """Generate a trace after a prompt that has its template; it is not shared among slots."""
        try:
            tokens = await running.api.count_tokens_of(request.messages[0].content)
            self._check_context(tokens, request.sampling.max_tokens)
            async with running.slots.take(request.messages) as slot:
                slot.holds = None
                extra = {"id_slot": slot.number, "timings_per_token": True}
                async with aclosing(running.plain.stream(request, extra=extra)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except (EngineUnavailableError, StreamError) as error:
            raise await running.server.death() or error from error

    def _settings(self) -> ServerSettings:
        """Check the file and the memory before anything is started."""
        header = check_chat_model(self._path)
        self._context = min(self._context, header.context_length or self._context)
        check_memory(self._path, header, slots=self._slots, context=self._context)
        return ServerSettings(str(self._path), self._slots, self._context, self._threads)

    def _http(self, server: LlamaServer, url: str) -> OpenAIEngine:
        return OpenAIEngine(
            url,
            model=self._path.stem,
            api_key=server.api_key,
            concurrency=self._slots,
            timeouts=Timeouts(first_byte=_STALL_SECONDS, stall=_STALL_SECONDS),
            # Its process is watched: if it does not answer it has ended.
            retries=0,
            patience=0,
        )

    def _started(self) -> _Running:
        if self._running is None:
            raise EngineUnavailableError(
                tried=f"use {self.name}",
                found="it is not started",
                remedy="Use it within `async with engine:`.",
            )
        return self._running

    def _check_context(self, prompt: int, max_tokens: int) -> None:
        if prompt + max_tokens > self._context:
            raise ContextOverflowError(
                tried=f"generate up to {max_tokens:,} tokens after a prompt of {prompt:,}",
                found=f"together that is {prompt + max_tokens:,}, and the context has "
                f"{self._context:,}",
                remedy="Lower --max-tokens, shorten the question, or start the engine with a "
                "larger context.",
            )
