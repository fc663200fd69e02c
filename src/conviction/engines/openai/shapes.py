"""The shapes of what servers send, as far as it is read; the rest of each message is skipped.

An event with 20 log-probabilities a token has about 2 kB, so the shapes of a stream leave out the
names of tokens, which only probes read.
"""

import msgspec


class LikelyToken(msgspec.Struct, gc=False):
    """One of the likeliest tokens at a place."""

    logprob: float | None = None


class Token(msgspec.Struct, gc=False):
    """The token at one place of the trace, and the likeliest ones there."""

    logprob: float | None = None
    top_logprobs: list[LikelyToken] | None = None


class Logprobs(msgspec.Struct, gc=False):
    """The log-probabilities of the tokens of one event.

    Chat completions have `content`; plain ones have `token_logprobs`, a value per token, and
    `top_logprobs`, a mapping per token from the candidate to its value. llama.cpp's plain
    completions have `content`, too.
    """

    content: list[Token] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Delta(msgspec.Struct, gc=False):
    """What one event adds to a chat, or a whole message. A model's thinking has two names."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class EventChoice(msgspec.Struct, gc=False):
    """One event of one trace; vLLM's `stop_reason` is the token or the text that ended it."""

    delta: Delta | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class CachedPrompt(msgspec.Struct, gc=False):
    """How much of the prompt came from a cache."""

    cached_tokens: int | None = None


class TokenUsage(msgspec.Struct, gc=False):
    """Tokens of the prompt and of the trace so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedPrompt | None = None


class Timings(msgspec.Struct, gc=False):
    """Tokens computed so far, which llama.cpp adds to every event if asked to."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class Event(msgspec.Struct, gc=False):
    """One event of a stream."""

    choices: list[EventChoice] | None = None
    usage: TokenUsage | None = None
    timings: Timings | None = None
    error: object = None


class NamedLikelyToken(LikelyToken, gc=False):
    """A candidate with its text."""

    token: str = ""


class NamedToken(msgspec.Struct):
    """A token with its text, and the likeliest ones at its place."""

    token: str = ""
    top_logprobs: list[NamedLikelyToken] | None = None


class NamedLogprobs(msgspec.Struct):
    """Log-probabilities of a whole answer, on either route."""

    content: list[NamedToken] | None = None
    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class WholeChoice(msgspec.Struct):
    """An answer that was not streamed."""

    text: str | None = None
    message: Delta | None = None
    logprobs: NamedLogprobs | None = None
    stop_reason: int | str | None = None


class WholeAnswer(msgspec.Struct):
    """The answers to one request that was not streamed."""

    choices: list[WholeChoice]


class ModelMeta(msgspec.Struct):
    """What llama.cpp adds to a model."""

    n_ctx: int | None = None


class Model(msgspec.Struct):
    """A model in a server's list."""

    id: str
    owned_by: str | None = None
    meta: ModelMeta | None = None
    max_model_len: int | None = None


class Models(msgspec.Struct):
    """A server's list of models."""

    data: list[Model]
