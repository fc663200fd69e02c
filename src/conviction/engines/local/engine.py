"""The embedded engine: a model file on this machine, run by llama.cpp.

A prompt is computed once: in one of the server's slots, from where it is saved and restored into
the others.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from conviction.core import Message, require, require_whole
from conviction.engines.base import (
    Capabilities,
    Chunk,
    Engine,
    TraceRequest,
    context_overflow,
    not_started,
)
from conviction.engines.local.server import (
    LlamaServer,
    ServerApi,
    check_memory,
    remove_leftovers,
    usable_cores,
)
from conviction.engines.openai.facts import FILTERS_OFF, Dialect, Route, ServerFacts
from conviction.engines.openai.http import HttpClient, Timeouts, check
from conviction.engines.openai.traces import open_trace
from conviction.errors import EngineError, EngineUnavailableError, MissingExtraError, StreamError
from conviction.gguf import check_chat_model

DEFAULT_SLOTS = 8
DEFAULT_CONTEXT = 4096
MOST_LOGPROBS = 1000
"""llama.cpp gives as many as the model has tokens; more than this would drown the trace."""

_STALL_SECONDS = 600.0
"""A long prompt on a slow machine takes minutes; a process that dies is noticed at once."""

_MOST_SAVED_BYTES = 512 << 20
_MOST_PROMPTS = 256
"""Saved prompts beyond these bounds are dropped, the longest unused first."""

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class _Running:
    server: LlamaServer
    http: HttpClient
    prompts: "SharedPrompts"
    slots: "SlotPool"
    stack: AsyncExitStack


class LocalEngine(Engine):
    """Generates traces with a GGUF model on this machine.

    Entering it checks the model file and the memory, then starts llama.cpp; leaving it ends
    llama.cpp and removes what it wrote. If llama.cpp ends by itself, it is started again, but not
    twice without a trace that came to its end between. The traces that it was generating break
    off, and may begin again.

    Args:
        model_path: The model file.
        slots: Traces generated at once, at least 1; further ones wait their turn.
        context: Tokens that prompt and trace may have together, at least 1, and never more than
            the model was made for.
        threads: Threads that compute, at least 1; None for one on each core we may use.
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
        dialect = Dialect(dict(FILTERS_OFF[0]), counts="timings")
        self._facts = ServerFacts(self._path.stem, dialect=dialect)
        self._running: _Running | None = None
        self._starting = anyio.Lock()
        self._may_start_again = True

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
        await anyio.to_thread.run_sync(remove_leftovers)
        await anyio.to_thread.run_sync(self._check_model)
        self._running = await self._launch()
        return self

    async def _launch(self) -> _Running:
        """Start llama.cpp; EngineStartError if it does not start."""
        timeouts = Timeouts(first_byte=_STALL_SECONDS, stall=_STALL_SECONDS)
        async with AsyncExitStack() as stack:
            server = LlamaServer(
                self._path,
                slots=self._slots,
                context=self._context,
                threads=self._threads,
                timeout=self._start_timeout,
            )
            await stack.enter_async_context(server)
            # At its root, llama.cpp's plain completions have a shape of their own.
            http = HttpClient(f"{server.url}/v1", api_key=server.api_key, timeouts=timeouts)
            await stack.enter_async_context(http)
            prompts = SharedPrompts(ServerApi(http, server.url), server.folder)
            slots = SlotPool(self._slots)
            return _Running(server, http, prompts, slots, stack.pop_all())

    async def _started_again(self, dead: _Running) -> bool:
        """Start llama.cpp anew in place of one that has ended, if that was not tried in vain."""
        async with self._starting:
            if self._running is not dead:
                return self._running is not None  # For another trace.
            if not self._may_start_again:
                return False
            self._may_start_again = False
            try:
                await dead.stack.aclose()
                self._running = await self._launch()
            except anyio.get_cancelled_exc_class():
                self._may_start_again = True
                raise
            return True

    async def __aexit__(self, *_: object) -> None:
        """End llama.cpp, also after an error or a cancellation."""
        running, self._running = self._running, None
        if running is not None:
            await running.stack.aclose()

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
            continues=True,
        )

    async def check(self) -> None:
        """Ask llama.cpp for a sign of life; EngineUnavailableError if it is not running."""
        running = self._started()
        try:
            await check(running.http)
        except EngineUnavailableError as error:
            raise await running.server.death() or error from error

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        """Generate one trace, as soon as a slot is free.

        Raises:
            ContextOverflowError: prompt and trace do not fit; nothing was generated.
            EngineUnavailableError: llama.cpp has ended by itself, and again after a new start.
            StreamError: the stream broke, or llama.cpp ended and was started again.
        """
        async with self._starting:
            running = self._started()
        try:
            async with AsyncExitStack() as stack:
                # A prompt that has its template already is not shared among slots.
                prompt = None
                if not request.templated:
                    prompt = await stack.enter_async_context(running.prompts.use(request.messages))
                    if request.prefix:
                        # As plain text: in a chat, llama.cpp takes only whole messages.
                        whole = (Message("user", prompt.text),)
                        request = replace(request, messages=whole, templated=True)
                if prompt is None or request.templated:
                    text = request.messages[0].content + request.prefix
                    tokens = await running.prompts.api.count_tokens(text)
                else:
                    tokens = prompt.tokens
                most = request.sampling.max_tokens
                if tokens + most > self._context:
                    larger = "start the engine with a larger context"
                    raise context_overflow(tokens, most, self._context, larger)
                slot = await stack.enter_async_context(running.slots.take(prompt))
                cached = await running.prompts.load(prompt, slot)
                own, http = {"id_slot": slot.number}, running.http
                trace = await open_trace(http, self._facts, request, route=Route.CHAT, extra=own)
                stack.callback(trace.close)
                chunks = await stack.enter_async_context(aclosing(trace.chunks()))
                async for chunk in chunks:
                    yield chunk if cached is None else replace(chunk, cached_tokens=cached)
                last = await trace.last()
                self._may_start_again = True
                yield last if cached is None else replace(last, cached_tokens=cached)
        except (EngineUnavailableError, StreamError) as error:
            death = await running.server.death()
            if death is None or not await self._started_again(running):
                raise death or error from error
            raise StreamError(
                tried=death.tried,
                found=f"{death.found}; it was started again",
                remedy="The trace can begin again.",
            ) from error

    def _check_model(self) -> None:
        """Check the file and the memory before anything is started."""
        header = check_chat_model(self._path)
        self._context = min(self._context, header.context_length or self._context)
        check_memory(self._path, header, slots=self._slots, context=self._context)

    def _started(self) -> _Running:
        if self._running is None:
            raise not_started(self.name)
        return self._running


@dataclass(eq=False)
class Slot:
    """A place for one trace in llama.cpp's server, by the server's number.

    `holds` is the prompt whose tokens lie in its cache; None if that is not known.
    """

    number: int
    holds: object = None


class SlotPool:
    """Hands out slots, first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = [Slot(number) for number in range(count)]
        # Its waiters queue in order, and one that is cancelled leaves the queue.
        self._places = anyio.Semaphore(count)

    @property
    def free(self) -> int:
        """Slots that are not in use."""
        return len(self._free)

    @asynccontextmanager
    async def take(self, prompt: object) -> AsyncGenerator[Slot, None]:
        """A slot for the duration of the context: one that holds `prompt`, if there is one."""
        async with self._places:
            slot = next((slot for slot in self._free if slot.holds is prompt), self._free[0])
            self._free.remove(slot)
            try:
                yield slot
            finally:
                self._free.append(slot)


@dataclass(eq=False)
class Prompt:
    """A prompt that traces are started from.

    Attributes:
        file: Name of the file that its tokens' cache is saved in.
        text: The chat with the model's template around it, empty until it was asked for.
        saved_bytes: Size of the file; 0 while there is none.
        shareable: False once saving or restoring it failed.
        users: Traces that have it in use.
        lock: Held while it is counted, computed or saved, so that this happens once.
    """

    messages: Messages
    file: str
    text: str = ""
    tokens: int = 0
    saved_bytes: int = 0
    shareable: bool = True
    users: int = 0
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class SharedPrompts:
    """The prompts that an engine knows, most recently used last.

    The server saves them in `folder`, up to `most_bytes` of those that no trace uses.
    """

    def __init__(self, api: ServerApi, folder: Path, most_bytes: int = _MOST_SAVED_BYTES) -> None:
        self.api = api
        self._folder = folder
        self._most_bytes = most_bytes
        self._prompts: dict[Messages, Prompt] = {}
        self._numbered = 0

    @asynccontextmanager
    async def use(self, messages: Messages) -> AsyncGenerator[Prompt, None]:
        """The prompt of a chat, its tokens counted; kept at least as long as the context."""
        prompt = self._prompts.pop(messages, None)
        if prompt is None:
            self._numbered += 1
            prompt = Prompt(messages, f"prompt-{self._numbered}.bin")
        self._prompts[messages] = prompt
        prompt.users += 1
        try:
            async with prompt.lock:
                if not prompt.tokens:
                    prompt.text = await self.api.templated(messages)
                    prompt.tokens = await self.api.count_tokens(prompt.text)
            yield prompt
        finally:
            prompt.users -= 1
            self._trim()

    async def load(self, prompt: Prompt | None, slot: Slot) -> int | None:
        """Put a prompt into a slot, as cheaply as it goes; None stands for one that is not shared.

        Where sharing fails, the server computes the prompt with the trace; that costs time and
        nothing else, so it is not an error.

        Returns:
            Where this call computed the prompt: how many of its tokens the server had cached.
            Otherwise None, and the trace's own count is true.
        """
        if prompt is not None and slot.holds is prompt:
            return None
        slot.holds = None
        if prompt is None:
            return None
        async with prompt.lock:
            if prompt.shareable and not prompt.saved_bytes:
                cached = await self.api.prefill(slot.number, prompt.messages)
                slot.holds = prompt
                try:
                    prompt.saved_bytes = await self.api.save(slot.number, prompt.file)
                except EngineError:
                    prompt.shareable = False
                return cached
        if prompt.shareable:
            try:
                await self.api.restore(slot.number, prompt.file)
            except EngineError:
                prompt.shareable = False
            else:
                slot.holds = prompt
        return None

    def _trim(self) -> None:
        excess = sum(prompt.saved_bytes for prompt in self._prompts.values()) - self._most_bytes
        # Prompts without a file cost little, but a long evaluation has many.
        surplus = len(self._prompts) - _MOST_PROMPTS
        for prompt in [prompt for prompt in self._prompts.values() if not prompt.users]:
            if excess <= 0 and surplus <= 0:
                break
            (self._folder / prompt.file).unlink(missing_ok=True)
            del self._prompts[prompt.messages]
            excess -= prompt.saved_bytes
            surplus -= 1
