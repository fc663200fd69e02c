"""What the events of a streamed chat completion mean: text, token confidences, the end.

Nothing here does any I/O, so recorded streams can be read as well as live ones.
"""

from math import nan

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from conviction.confidence import token_confidence
from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.errors import StreamError

DONE = b"[DONE]"
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_MOST_QUOTED = 300


class Candidate(BaseModel):
    """One of the likeliest next tokens."""

    logprob: float | None = None


class Token(BaseModel):
    """The likeliest tokens at one position of the trace."""

    top_logprobs: list[Candidate] | None = None


class Logprobs(BaseModel):
    """The log-probabilities of the tokens of one event."""

    content: list[Token] | None = None


class Delta(BaseModel):
    """What one event adds to the text. Servers name a model's thinking in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(BaseModel):
    """One event of one trace."""

    delta: Delta | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class PromptDetails(BaseModel):
    """How much of the prompt came from a cache."""

    cached_tokens: int | None = None


class TokenUsage(BaseModel):
    """Tokens of the prompt and of the whole trace."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Timings(BaseModel):
    """What llama.cpp tells with every event if asked to: tokens computed so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class Event(BaseModel):
    """One event of a stream; whatever else it holds is ignored."""

    choices: list[Choice] | None = None
    usage: TokenUsage | None = None
    timings: Timings | None = None
    error: object = None


class TraceReader:
    """Reads the events of one trace.

    Args:
        top_k: The k of token confidence (eq. 2); 0 if no log-probabilities were asked for.
            Then every event with text counts as one token, until the server tells the number.

    Attributes:
        done: Whether the server said that nothing more will come.
    """

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._tokens = 0
        self._finish: FinishReason | None = None
        self._usage = TokenUsage()
        self._timings = Timings()
        self.done = False

    def read(self, data: bytes) -> Chunk | None:
        """What the data of one event adds; None if that is nothing.

        Raises:
            StreamError: the event is malformed, reports an error, or ends the trace for a
                reason that no finished trace has.
        """
        if data == DONE:
            self.done = True
            return None
        try:
            event = Event.model_validate_json(data)
        except ValidationError as error:
            raise _broken(f"malformed data came: {quoted(data)}") from error
        if event.error:
            raise _broken(f"the server reported an error: {error_message(event.error)}")
        self._usage = event.usage or self._usage
        self._timings = event.timings or self._timings
        return self._read_choice(event.choices[0]) if event.choices else None

    def finish(self) -> Chunk:
        """The last chunk, once the stream has ended.

        Raises:
            StreamError: the stream ended before the trace did.
        """
        if self._finish is None:
            raise _broken(
                f"the stream ended in the middle of the trace, after {self._tokens} tokens"
            )
        told = max(self._usage.completion_tokens or 0, self._timings.predicted_n)
        # The token that ends a trace has no text, and on some servers no log-probabilities.
        confidences = self._confidences([], told)
        return self._chunk("", confidences, self._finish)

    def _read_choice(self, choice: Choice) -> Chunk | None:
        if choice.finish_reason is not None:
            if choice.finish_reason not in _FINISHES:
                raise _broken(f"the server ended the trace with {choice.finish_reason!r}")
            self._finish = _FINISHES[choice.finish_reason]
        delta = choice.delta or Delta()
        text = "".join(filter(None, (delta.reasoning_content or delta.reasoning, delta.content)))
        confidences = self._confidences(self._known(choice, text), self._timings.predicted_n)
        return self._chunk(text, confidences) if text or confidences.size else None

    def _known(self, choice: Choice, text: str) -> list[float]:
        if self._top_k == 0:
            return [nan] if text else []
        tokens = (choice.logprobs and choice.logprobs.content) or []
        return [_confidence(token, self._top_k) for token in tokens]

    def _confidences(self, known: list[float], told: int) -> NDArray[np.float32]:
        """`known`, after an unknown one for each token that the server generated in silence.

        llama.cpp keeps the pieces of a character to itself until it is whole, and then gives
        log-probabilities for the last piece only.
        """
        silent = max(0, told - self._tokens - len(known))
        self._tokens += silent + len(known)
        return np.array([nan] * silent + known, np.float32)

    def _chunk(
        self, text: str, confidences: NDArray[np.float32], finish: FinishReason | None = None
    ) -> Chunk:
        details = self._usage.prompt_tokens_details or PromptDetails()
        timings = self._timings
        return Chunk(
            text,
            confidences,
            finish,
            prompt_tokens=self._usage.prompt_tokens or timings.prompt_n + timings.cache_n,
            cached_tokens=details.cached_tokens or timings.cache_n,
        )


def _confidence(token: Token, top_k: int) -> float:
    candidates = token.top_logprobs or ()
    return token_confidence([c.logprob for c in candidates if c.logprob is not None], top_k)


def _broken(found: str) -> StreamError:
    return StreamError(
        tried="read the trace's stream",
        found=found,
        remedy="Other traces go on; if all fail, look into the server's log.",
    )


def error_message(error: object) -> str:
    """The words in an error object, however the server shapes it."""
    match error:
        case {"message": str(message)} | {"detail": str(message)} | {"error": str(message)}:
            return quoted(message)
        case {"error": object() as inner}:
            return error_message(inner)
        case _:
            return quoted(str(error))


def quoted(text: str | bytes) -> str:
    """The beginning of what a server sent, fit for a message."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = " ".join(text.split())
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"
