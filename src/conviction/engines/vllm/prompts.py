"""From the messages of a trace to the tokens of its prompt, by the model's own tokenizer."""

from typing import Any

import anyio
import anyio.to_thread

from conviction.engines.base import TraceRequest
from conviction.errors import EngineError

_MOST_KEPT = 64
"""Prompts that are remembered: all traces of a question have the same."""

Key = tuple[object, str, bool]


class Prompts:
    """Puts the chat template around messages, and splits the text into tokens.

    Args:
        tokenizer: The model's; vLLM hands out one that several threads may use.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[Key, list[int]] = {}
        self._lock = anyio.Lock()

    async def tokens(self, request: TraceRequest) -> list[int]:
        """The prompt of a trace, with what it begins with.

        Raises:
            EngineError: the model has no template for such a chat.
        """
        key = (request.messages, request.prefix, request.templated)
        if key in self._kept:
            return self._kept[key]
        async with self._lock:  # The traces of a question come together; one of them does it.
            if key not in self._kept:
                # A long prompt takes a while, in which other traces go on.
                self._kept[key] = await anyio.to_thread.run_sync(self._split, request)
                if len(self._kept) > _MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
            return self._kept[key]

    def _split(self, request: TraceRequest) -> list[int]:
        if request.templated:
            text = request.messages[0].content + request.prefix
            begin = getattr(self._tokenizer, "bos_token", None)
            # A template that writes the mark of the beginning leaves none to be added.
            has_mark = bool(begin) and text.startswith(begin)
            return self._encoded(text, special=not has_mark)
        return self._encoded(self._chat(request), special=False)

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def _chat(self, request: TraceRequest) -> str:
        messages = [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
        going_on = bool(request.prefix)
        if going_on:
            messages.append({"role": "assistant", "content": request.prefix})
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not going_on,
                continue_final_message=going_on,
            )
        except (
            Exception
        ) as error:  # a template is a program of the model's, and raises what it likes
            raise EngineError(
                tried="put the model's chat template around the messages",
                found=f"{type(error).__name__}: {error}",
                remedy="Use a model with a chat template, or messages that its template takes; "
                "a question that has its template already goes as it is (templated).",
            ) from error
