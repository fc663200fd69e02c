"""What the events of a streamed completion mean: text, token confidences, the end.

Both routes are read, chat completions and plain completions, as is everything that servers do
differently: names of the thinking, shapes of log-probabilities, where the counts stand. Nothing
here does any I/O, so recorded streams can be read as well as live ones.
"""

import json
from collections.abc import Iterable
from math import isfinite, nan
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidence
from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.engines.openai.streamed_events import Choice, Delta, Event, Timings, TokenUsage
from conviction.errors import EngineError, StreamError

DONE = b"[DONE]"
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_REFUSED = ("content_filter", "tool_calls", "function_call")
"""Finish reasons that would come again if the trace were started again."""

_MOST_QUOTED = 300
_SPARE_TOKENS = 16
"""Tokens beyond the limit that are let pass: servers count the last one differently."""

_MOST_TOKENS = 1 << 24

StructT = TypeVar("StructT", bound=msgspec.Struct)

_DECODER = msgspec.json.Decoder(Event)


def decode(data: bytes, decoder: msgspec.json.Decoder[StructT]) -> StructT:
    """Decode what a server sent.

    Raises:
        ValueError: it is no JSON, or not of this shape.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            # Some servers write -Infinity and NaN, which are no JSON, or half a character.
            return msgspec.convert(json.loads(data, object_hook=_mended), decoder.type)
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from error


def _mended(content: dict[str, object]) -> dict[str, object]:
    """A JSON object whose texts hold no halves of characters, which cannot be written anywhere."""
    return {
        name: value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, str)
        else value
        for name, value in content.items()
    }


class TraceReader:
    """Reads the events of one trace.

    Args:
        top_k: The k of token confidence (eq. 2); 0 if no log-probabilities were asked for.
            Then every event with text counts as one token, unless the server tells the number.
        max_tokens: The most tokens that were asked for.
        logprobs: Whether chunks hold the log-probability of each token, too; not without `top_k`.
        secret: What no message may show: the key that was sent, if any.
        stop_token: The token that a trace ends with where its gate stopped it.

    Attributes:
        done: Whether the server said that nothing more will come.
        tokens: Tokens read so far.
        informed: Whether any of them had a known confidence.
    """

    def __init__(
        self,
        top_k: int,
        max_tokens: int = _MOST_TOKENS,
        *,
        logprobs: bool = False,
        secret: str | None = None,
        stop_token: int | None = None,
    ) -> None:
        self._top_k = top_k
        # Those of the tokens since the last chunk; None if they are not wanted.
        self._logprobs: list[float] | None = [] if logprobs and top_k else None
        self._most = max_tokens + _SPARE_TOKENS
        self._secret = secret
        self._stop_token = stop_token
        self._finish: FinishReason | None = None
        self._usage: TokenUsage | None = None
        self._timings: Timings | None = None
        self._thinking = False
        self._failure: EngineError | None = None
        self.tokens = 0
        self.done = False
        self.informed = False

    @property
    def ended(self) -> bool:
        """Whether the trace is whole; counts of its tokens may still come."""
        return self._finish is not None

    def read(self, events: Iterable[bytes]) -> Chunk | None:
        """What some events add, as one chunk; None if that is nothing.

        If one of them is at fault, what came before it is given first: its tokens count. Then
        `check` raises.

        Raises:
            StreamError: an event is malformed, reports an error, or the server generates more
                than it was asked to.
            EngineError: the server ended the trace for a reason that would come again.
        """
        texts: list[str] = []
        confidences: list[float] = []
        try:
            for data in events:
                self._read(data, texts, confidences)
        except EngineError as error:
            self._failure = error
        if not confidences and not any(texts):
            self.check()
            return None
        return self._chunk("".join(texts), confidences)

    def check(self) -> None:
        """Raise what is at fault with the events so far; the same errors as `read`."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> Chunk:
        """The last chunk, once the stream has ended.

        Raises:
            StreamError: the stream ended before the trace did.
        """
        self.check()
        if self._finish is None:
            raise _broken(
                f"the stream ended in the middle of the trace, after {self.tokens} tokens"
            )
        # The token that ends a trace has no text, and on some servers no log-probabilities.
        silent = max(0, self._told() - self.tokens)
        self.tokens += silent
        return self._chunk("", [nan] * silent, self._finish)

    def _read(self, data: bytes, texts: list[str], confidences: list[float]) -> None:
        if data == DONE:
            self.done = True
            return
        try:
            event = decode(data, _DECODER)
        except ValueError as error:
            found = quoted(data, self._secret)
            raise _broken(f"malformed data came: {found}") from error
        if event.error:
            said = _said(event.error, self._secret)
            raise _broken(f"the server reported an error: {said}")
        if event.usage is not None or event.timings is not None:
            self._count(event)
        if event.choices:
            self._read_choice(event.choices[0], texts, confidences)
        if self.tokens > self._most:
            raise _broken(f"{self.tokens:,} tokens came, more than were asked for")

    def _count(self, event: Event) -> None:
        self._usage = event.usage or self._usage
        self._timings = event.timings or self._timings
        if (told := self._told()) > self._most:
            # Found before room is made for so many tokens: the number may be anything.
            raise _broken(f"the server counts {told:,} tokens, more than were asked for")

    def _read_choice(self, choice: Choice, texts: list[str], confidences: list[float]) -> None:
        if choice.finish_reason:
            self._finish = _finish(choice.finish_reason, self._secret)
            if self._stop_token is not None and choice.stop_reason == self._stop_token:
                self._finish = FinishReason.LOW_CONFIDENCE
        text = choice.text or (self._text(choice.delta) if choice.delta else "")
        texts.append(text)
        if self._top_k == 0:
            told = self._told()
            count = max(0, told - self.tokens) if told else int(bool(text))
            known = [nan] * count
        elif choice.logprobs is None:
            # Tokens without any come to light with the next ones that have some, or at the end.
            return
        else:
            k = self._top_k
            known = [token_confidence(c, k) for c in choice.logprobs.candidates(k)]
            # llama.cpp keeps the pieces of a character to itself until it is whole, vLLM what
            # its parser has not understood yet; both then tell the last token's numbers only.
            silent = self._told() - self.tokens - len(known) if known else 0
            if silent > 0:
                known = [nan] * silent + known
            if self._logprobs is not None:
                generated = list(choice.logprobs.generated())
                self._logprobs += [nan] * (len(known) - len(generated)) + generated
            self.informed = self.informed or any(map(isfinite, known))
        confidences += known
        self.tokens += len(known)

    def _text(self, delta: Delta) -> str:
        """The text of one event, what a model thinks between the tags that stand for it."""
        thought = delta.reasoning_content or delta.reasoning
        if thought is None and not self._thinking:
            return delta.content or ""
        text = ""
        if thought:
            text = thought if self._thinking else f"<think>{thought}"
            self._thinking = True
        if delta.content:
            text += f"</think>{delta.content}" if self._thinking else delta.content
            self._thinking = False
        return text

    def _told(self) -> int:
        """Tokens of the trace, as far as the server tells."""
        usage, timings = self._usage, self._timings
        return max((usage and usage.completion_tokens) or 0, timings.predicted_n if timings else 0)

    def _chunk(
        self, text: str, confidences: list[float], finish: FinishReason | None = None
    ) -> Chunk:
        values: NDArray[np.float32] = np.array(confidences, np.float32)
        logprobs = None if self._logprobs is None else self._taken(len(confidences))
        usage, timings = self._usage, self._timings
        if usage is None and timings is None:
            return Chunk(text, values, finish, logprobs=logprobs)
        details = usage and usage.prompt_tokens_details
        return Chunk(
            text,
            values,
            finish,
            prompt_tokens=(usage and usage.prompt_tokens)
            or (timings.prompt_n + timings.cache_n if timings else 0),
            cached_tokens=(details and details.cached_tokens)
            or (timings.cache_n if timings else 0),
            logprobs=logprobs,
        )

    def _taken(self, tokens: int) -> NDArray[np.float32]:
        """The log-probabilities since the last chunk; silent tokens at the end have none."""
        gathered, self._logprobs = self._logprobs or [], []
        return np.array(gathered + [nan] * (tokens - len(gathered)), np.float32)


def _finish(reason: str, secret: str | None) -> FinishReason:
    if reason in _FINISHES:
        return _FINISHES[reason]
    found = f"the server ended the trace with {quoted(reason, secret)!r}"
    if reason in _REFUSED:
        raise EngineError(
            tried="read the trace's stream",
            found=found,
            remedy="Ask in other words, or another server.",
        )
    raise _broken(found)


def _broken(found: str) -> StreamError:
    return StreamError(
        tried="read the trace's stream",
        found=found,
        remedy="Other traces go on; if all fail, look into the server's log.",
    )


def _said(error: object, secret: str | None) -> str:
    try:
        return error_message(error, secret)
    except RecursionError:
        return "one without end"


def error_message(error: object, secret: str | None) -> str:
    """The words in an error object, however the server shapes it."""
    match error:
        case {"message": str(message)} | {"detail": str(message)} | {"error": str(message)}:
            return quoted(message, secret)
        case {"error": object() as inner}:
            return error_message(inner, secret)
        case _:
            return quoted(str(error), secret)


def quoted(text: str | bytes, secret: str | None = None) -> str:
    """The beginning of what a server sent, fit for a message.

    Args:
        text: What it sent.
        secret: What must not be shown, one on each line; taken out first, as shortening would
            leave a part of it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    for hidden in (secret or "").splitlines():
        text = text.replace(hidden, "…")
    text = " ".join(text.split())
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"
