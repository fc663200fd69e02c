"""What a streamed completion means: bytes to events, events to text and token confidences.

Both routes are read, chat completions and plain completions, as is everything that servers do
differently: names of the thinking, shapes of log-probabilities, where the counts stand. Nothing
here does any I/O, so recorded streams can be read as well as live ones.
"""

import json
from collections.abc import Iterable, Sequence
from math import isfinite, nan
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import FILLER, token_confidence
from conviction.core import FinishReason
from conviction.display import quoted
from conviction.engines.base import Chunk
from conviction.engines.openai.failures import OTHERS_GO_ON, error_message
from conviction.engines.openai.shapes import (
    Delta,
    Event,
    EventChoice,
    Logprobs,
    Timings,
    TokenUsage,
)
from conviction.errors import EngineError, StreamError

MOST_EVENT_BYTES = 1 << 24
"""A longer event is a fault: the largest honest ones have some hundred kilobytes."""

_DONE = b"[DONE]"
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_REFUSED = ("content_filter", "tool_calls", "function_call")
"""Finish reasons that would come again if the trace were started again."""

_SPARE_TOKENS = 16
"""Tokens allowed beyond the limit: servers count the last one differently."""

_LETTERS = 1 << 16
_TOKEN_LETTERS = 1 << 9
"""A trace may have `_LETTERS`, and `_TOKEN_LETTERS` more for each token: the longest tokens, of
white space and of lines drawn with dashes, have some 100 characters."""

_MOST_TOKENS = 1 << 24

StructT = TypeVar("StructT", bound=msgspec.Struct)

_EVENT = msgspec.json.Decoder(Event)
_NO_USAGE, _NO_TIMINGS = TokenUsage(), Timings()


class EventParser:
    """Takes a stream of server-sent events in pieces of any size, gives the data of each event.

    Works on bytes and leaves decoding to the JSON parser: a third of the cost of decoding text
    and splitting it into lines first, and a character cut in two between reads does no harm.

    Source: the event stream format of the HTML standard, section 9.2. Names, ids and retry times
    of events are skipped, as no server of completions gives them a meaning.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._carriage_return = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes; StreamError for one that is too large."""
        if self._carriage_return:
            piece, self._carriage_return = b"\r" + piece, False
        if b"\r" in piece:
            if piece.endswith(b"\r"):
                # Perhaps half of a line end: the next piece tells.
                piece, self._carriage_return = piece[:-1], True
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        self._line += rest
        events = self._read(lines)
        if len(self._line) + self._data_bytes > self._most_bytes:
            raise StreamError(
                tried="read the server's stream",
                found=f"one event has more than {self._most_bytes:,} bytes, the most that is read",
                remedy="Check that the address is that of a server of completions.",
            )
        return events

    def finish(self) -> list[bytes]:
        """What the end of the stream completes; some servers leave out the last empty line."""
        lines = [bytes(self._line), b""]
        self._line.clear()
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[bytes]:
        """The data of the events that whole lines complete."""
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(line)
            elif not line and data:
                events.append(b"\n".join(data))
                data.clear()
                self._data_bytes = 0
        return events


def decode(data: bytes, decoder: msgspec.json.Decoder[StructT]) -> StructT:
    """Decode what a server sent; ValueError if it is not JSON, or not of this shape."""
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
            An event with text counts as one token at least, unless the server tells the number.
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
        self._most_letters = _LETTERS + _TOKEN_LETTERS * max_tokens
        self._secret = secret
        self._stop_token = stop_token
        self._finish: FinishReason | None = None
        self._usage, self._timings = _NO_USAGE, _NO_TIMINGS
        # Tokens of the trace as far as the server tells, and what came.
        self._told = self._texts = self._letters = 0
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
            StreamError: an event is malformed, reports an error, or there are too many tokens.
            EngineError: the server ended the trace for a reason that would come again.
        """
        texts: list[str] = []
        confidences: list[float] = []
        try:
            for data in events:
                self._read(data, texts, confidences)
        except EngineError as error:
            self._failure = error
            confidences += self._silent()
        if not confidences and not any(texts):
            self.check()
            return None
        return self._chunk("".join(texts), confidences)

    def check(self) -> None:
        """Raise what is at fault with the events so far; the same errors as `read`."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> Chunk:
        """The last chunk, once the stream has ended; StreamError if the trace has not."""
        self.check()
        if self._finish is None:
            raise _broken(
                f"the stream ended in the middle of the trace, after {self.tokens} tokens"
            )
        # The token that ends a trace has no text, and on some servers no log-probabilities.
        return self._chunk("", self._silent(), self._finish)

    def rest(self) -> Chunk | None:
        """The tokens that had come, but not their numbers, when the stream broke."""
        silent = self._silent()
        return self._chunk("", silent) if silent else None

    def _silent(self) -> list[float]:
        """Confidences of the tokens whose numbers will not come any more."""
        silent = [nan] * self._unnamed
        self.tokens += len(silent)
        return silent

    def _read(self, data: bytes, texts: list[str], confidences: list[float]) -> None:
        if self.done or data == _DONE:
            self.done = True
            return
        try:
            event = decode(data, _EVENT)
        except ValueError as error:
            raise _broken(f"malformed data came: {quoted(data, self._secret)}") from error
        if event.error:
            said = error_message(event.error, self._secret)
            raise _broken(f"the server reported an error: {said}")
        if event.usage is not None or event.timings is not None:
            usage, timings = event.usage or self._usage, event.timings or self._timings
            told = max(usage.completion_tokens or 0, timings.predicted_n)
            if told > self._most:
                # Found before room is made for so many tokens: the number may be anything.
                raise _broken(f"the server counts {told:,} tokens, more than were asked for")
            self._usage, self._timings, self._told = usage, timings, told
        if event.choices:
            self._read_choice(event.choices[0], texts, confidences)
        if self.tokens > self._most:
            raise _broken(f"{self.tokens:,} tokens came, more than were asked for")

    def _read_choice(self, choice: EventChoice, texts: list[str], confidences: list[float]) -> None:
        if choice.finish_reason:
            self._finish = _finish(choice.finish_reason, self._secret)
            if self._stop_token is not None and choice.stop_reason == self._stop_token:
                self._finish = FinishReason.LOW_CONFIDENCE
        text = choice.text or (self._text(choice.delta) if choice.delta else "")
        self._texts += bool(text)
        self._letters += len(text)
        if self._letters > self._most_letters:
            raise _broken(
                f"{self._letters:,} characters came, and {self._most_letters:,} are the most that "
                f"are read of a trace of {self._most - _SPARE_TOKENS:,} tokens"
            )
        texts.append(text)
        if self._top_k == 0:
            known = [nan] * self._unnamed
        else:
            k = self._top_k
            found = _candidates(choice.logprobs, k) if choice.logprobs else ()
            known = [token_confidence(c, k) for c in found]
            # llama.cpp keeps the pieces of a character to itself until it is whole, vLLM what
            # its parser has not understood yet; both then tell the last token's numbers only.
            # The numbers of the newest token may also come in an event after its text.
            known = [nan] * (self._unnamed - (len(known) or 1)) + known
            if self._logprobs is not None:
                generated = list(_generated(choice.logprobs)) if choice.logprobs else []
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

    @property
    def _unnamed(self) -> int:
        """Tokens that came beyond those read.

        Where the server does not tell their number, an event with text is one token at least.
        """
        return max(0, (self._told or self._texts) - self.tokens)

    def _chunk(
        self, text: str, confidences: list[float], finish: FinishReason | None = None
    ) -> Chunk:
        values: NDArray[np.float32] = np.array(confidences, np.float32)
        logprobs = None
        if (gathered := self._logprobs) is not None:
            # Silent tokens at the end have none.
            logprobs = np.array(gathered + [nan] * (values.size - len(gathered)), np.float32)
            self._logprobs = []
        usage, timings = self._usage, self._timings
        details = usage.prompt_tokens_details
        prompt = usage.prompt_tokens or timings.prompt_n + timings.cache_n
        cached = (details and details.cached_tokens) or timings.cache_n
        return Chunk(text, values, finish, prompt, cached, logprobs=logprobs)


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
    return StreamError(tried="read the trace's stream", found=found, remedy=OTHERS_GO_ON)


def _candidates(logprobs: Logprobs, top_k: int) -> Iterable[Sequence[float]]:
    """For each token the log-probabilities of the `top_k` likeliest ones at its place."""
    for token in logprobs.content or ():
        likely = token.top_logprobs or ()
        values = [value for one in likely if (value := one.logprob) is not None]
        if len(values) == top_k > 2 and values[0] < values[-1]:
            _replace_sampled(values)
        yield values
    for mapping in logprobs.top_logprobs or ():
        yield [value for value in (mapping or {}).values() if value is not None]


def _generated(logprobs: Logprobs) -> Iterable[float]:
    """For each token that has candidates its own log-probability, NaN if unknown."""
    for token in logprobs.content or ():
        yield _usable(token.logprob)
    values = logprobs.token_logprobs or ()
    for place in range(len(logprobs.top_logprobs or ())):
        yield _usable(values[place] if place < len(values) else None)


def _usable(logprob: float | None) -> float:
    return logprob if logprob is not None and FILLER < logprob <= 0.0 else nan


def _replace_sampled(values: list[float]) -> None:
    """Undo that vLLM gives the sampled token the place of the k-th best.

    A sampled token that is not among the k best stands before them in chats, and the list is cut
    at k. What was cut off is at most the last of the others, and hardly less: that stands in for
    it. An unlikely sample would else make the model look surer than it is.
    """
    others = values[1:]
    usable = all(FILLER < value <= 0.0 for value in values)
    if usable and values[0] < others[-1] and others == sorted(others, reverse=True):
        values[0] = others[-1]
