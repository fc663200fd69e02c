"""One prefill per prompt: computed in one slot, saved, and restored into the other slots."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from conviction.core import Message
from conviction.engines.local.server_api import ServerApi
from conviction.engines.local.slots import Slot
from conviction.errors import EngineError

Messages = tuple[Message, ...]

_MOST_BYTES = 512 << 20
_MOST_PROMPTS = 256
"""Prompts beyond these bounds are dropped, the longest unused first."""


@dataclass(eq=False)
class Prompt:
    """A prompt that traces are started from.

    Attributes:
        messages: The chat.
        text: What the chat becomes, the model's template around it; empty until it was asked for.
        file: Name of the file that its tokens' cache is saved in.
        tokens: Tokens that the chat becomes; 0 until they were counted.
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

    Args:
        api: The server.
        folder: Where the server saves them.
        most_bytes: The most bytes to keep of prompts that no trace uses.
    """

    def __init__(self, api: ServerApi, folder: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._api = api
        self._folder = folder
        self._most_bytes = most_bytes
        self._prompts: dict[Messages, Prompt] = {}
        self._numbered = 0

    @asynccontextmanager
    async def use(self, messages: Messages) -> AsyncGenerator[Prompt, None]:
        """The prompt of a chat, its tokens counted; kept at least as long as the context.

        Raises:
            EngineError: the server cannot tell its tokens.
        """
        prompt = self._prompts.pop(messages, None) or self._new(messages)
        self._prompts[messages] = prompt
        prompt.users += 1
        try:
            async with prompt.lock:
                if not prompt.tokens:
                    prompt.text = await self._api.templated(messages)
                    prompt.tokens = await self._api.count_tokens(prompt.text)
            yield prompt
        finally:
            prompt.users -= 1
            self._trim()

    async def load(self, prompt: Prompt, slot: Slot) -> int | None:
        """Put a prompt into a slot, as cheaply as it goes.

        Where sharing fails, the server computes the prompt with the trace; that costs time and
        nothing else, so it is no error.

        Returns:
            Where this call computed the prompt: how many of its tokens the server had cached.
            Otherwise None, and the trace's own count is true.

        Raises:
            EngineError: the server cannot compute the prompt.
        """
        if slot.holds is prompt:
            return None
        slot.holds = None
        async with prompt.lock:
            if prompt.shareable and not prompt.saved_bytes:
                cached = await self._api.prefill(slot.number, prompt.messages)
                slot.holds = prompt
                await self._save(prompt, slot)
                return cached
        if prompt.shareable:
            await self._restore(prompt, slot)
        return None

    async def _save(self, prompt: Prompt, slot: Slot) -> None:
        try:
            prompt.saved_bytes = await self._api.save(slot.number, prompt.file)
        except EngineError:
            prompt.shareable = False

    async def _restore(self, prompt: Prompt, slot: Slot) -> None:
        try:
            await self._api.restore(slot.number, prompt.file)
        except EngineError:
            prompt.shareable = False
        else:
            slot.holds = prompt

    def _new(self, messages: Messages) -> Prompt:
        self._numbered += 1
        return Prompt(messages, f"prompt-{self._numbered}.bin")

    def _trim(self) -> None:
        excess = sum(prompt.saved_bytes for prompt in self._prompts.values()) - self._most_bytes
        idle = [prompt for prompt in self._prompts.values() if not prompt.users]
        # Prompts without a file cost little, but a long evaluation has many.
        surplus = len(self._prompts) - _MOST_PROMPTS
        for prompt in idle:
            if excess <= 0 and surplus <= 0:
                break
            (self._folder / prompt.file).unlink(missing_ok=True)
            del self._prompts[prompt.messages]
            excess -= prompt.saved_bytes
            surplus -= 1
