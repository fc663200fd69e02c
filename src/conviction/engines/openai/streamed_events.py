"""The shapes of streamed events, as far as they are read, and the numbers in them.

Servers shape them differently; an event with 20 log-probabilities a token has about 2 kB, of
which only these fields are decoded.
"""

from collections.abc import Iterable, Sequence
from math import nan

import msgspec

from conviction.confidence import FILLER


class Candidate(msgspec.Struct, gc=False):
    """One of the likeliest next tokens."""

    logprob: float | None = None


class Token(msgspec.Struct, gc=False):
    """The token at one place of the trace, and the likeliest ones there."""

    logprob: float | None = None
    top_logprobs: list[Candidate] | None = None


class Logprobs(msgspec.Struct, gc=False):
    """The log-probabilities of the tokens of one event.

    Chat completions have `content`; plain ones have `token_logprobs`, a value per token, and
    `top_logprobs`, a mapping per token from the candidate to its value. llama.cpp's plain
    completions have `content`, too.
    """

    content: list[Token] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None

    def candidates(self, top_k: int) -> Iterable[Sequence[float]]:
        """For each token the log-probabilities of the likeliest ones at its place.

        Args:
            top_k: How many were asked for.
        """
        for token in self.content or ():
            values = [
                value
                for candidate in token.top_logprobs or ()
                if (value := candidate.logprob) is not None
            ]
            if len(values) == top_k > 2 and values[0] < values[-1]:
                _replace_sampled(values)
            yield values
        for mapping in self.top_logprobs or ():
            yield [value for value in (mapping or {}).values() if value is not None]

    def generated(self) -> Iterable[float]:
        """For each token that `candidates` tells of its own log-probability, NaN if unknown."""
        for token in self.content or ():
            yield _usable(token.logprob)
        values = self.token_logprobs or ()
        for place in range(len(self.top_logprobs or ())):
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


class Delta(msgspec.Struct, gc=False):
    """What one event adds to a chat. Servers name a model's thinking in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """One event of one trace. vLLM tells by the `stop_reason` which token or text ended it."""

    delta: Delta | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class PromptDetails(msgspec.Struct, gc=False):
    """How much of the prompt came from a cache."""

    cached_tokens: int | None = None


class TokenUsage(msgspec.Struct, gc=False):
    """Tokens of the prompt and of the trace so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Timings(msgspec.Struct, gc=False):
    """What llama.cpp tells with every event if asked to: tokens computed so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class Event(msgspec.Struct, gc=False):
    """One event of a stream; whatever else it holds is skipped."""

    choices: list[Choice] | None = None
    usage: TokenUsage | None = None
    timings: Timings | None = None
    error: object = None
