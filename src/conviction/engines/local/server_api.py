"""What llama.cpp's server offers beside completions: counting tokens, saving and restoring."""

from typing import TypeVar

import msgspec

from conviction.core import Message
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import quoted
from conviction.engines.openai.requests import Json, chat
from conviction.engines.openai.streamed_events import TokenUsage
from conviction.errors import EngineError

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class _Templated(msgspec.Struct):
    prompt: str


class _Tokenised(msgspec.Struct):
    tokens: list[int]


class _Completed(msgspec.Struct):
    usage: TokenUsage


class _Saved(msgspec.Struct):
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int


class ServerApi:
    """Requests to llama.cpp's server.

    Args:
        http: Speaks to the server, at its root.
    """

    def __init__(self, http: OpenAIEngine) -> None:
        self._http = http

    async def count_tokens(self, messages: tuple[Message, ...]) -> int:
        """Tokens of the prompt that a chat becomes."""
        templated = await self._post(_Templated, "/apply-template", {"messages": chat(messages)})
        return await self.count_tokens_of(templated.prompt)

    async def count_tokens_of(self, prompt: str) -> int:
        """Tokens of a prompt that has its template."""
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return len((await self._post(_Tokenised, "/tokenize", body)).tokens)

    async def prefill(self, slot: int, messages: tuple[Message, ...]) -> int:
        """Compute a prompt in a slot; gives how many of its tokens the slot had already.

        The server does not stop short of the first token, so it draws one, which is dropped.
        """
        body = {"messages": chat(messages), "max_tokens": 1, "id_slot": slot}
        completed = await self._post(_Completed, "/chat/completions", body)
        details = completed.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0

    async def save(self, slot: int, file: str) -> int:
        """Save what a slot has computed; gives the bytes written."""
        saved = await self._post(_Saved, f"/slots/{slot}?action=save", {"filename": file})
        return saved.n_written

    async def restore(self, slot: int, file: str) -> None:
        """Load into a slot what was saved."""
        await self._post(_Restored, f"/slots/{slot}?action=restore", {"filename": file})

    async def _post(self, kind: type[AnswerT], path: str, body: Json) -> AnswerT:
        answer = await self._http.post(path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise EngineError(
                tried=f"ask llama.cpp for {path}",
                found=f"an unknown answer: {quoted(answer)}",
                remedy="Install the version of xllamacpp that conviction names in its extra.",
            ) from error
