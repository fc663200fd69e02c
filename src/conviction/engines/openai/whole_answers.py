"""The shapes of answers that were not streamed, as far as they show what a server does."""

import msgspec

_FILLED = -1000.0
"""Servers stand in values below this for minus infinity."""


class Meta(msgspec.Struct):
    """What llama.cpp adds to a model."""

    n_ctx: int | None = None


class Model(msgspec.Struct):
    """A model in a server's list."""

    id: str
    owned_by: str | None = None
    meta: Meta | None = None
    max_model_len: int | None = None


class Models(msgspec.Struct):
    """A server's list of models."""

    data: list[Model]


class Candidate(msgspec.Struct):
    """One of the likeliest tokens at a place."""

    token: str = ""
    logprob: float | None = None


class Token(msgspec.Struct):
    """A token and the likeliest ones at its place."""

    token: str = ""
    top_logprobs: list[Candidate] | None = None


class Logprobs(msgspec.Struct):
    """Log-probabilities of a whole answer, in the shape of either route."""

    content: list[Token] | None = None
    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None

    def places(self) -> list[list[tuple[str, float]]]:
        """For each token the likeliest ones at its place; two may have the same name."""
        pairs = [
            *([(c.token, c.logprob) for c in t.top_logprobs or ()] for t in self.content or ()),
            *(list((mapping or {}).items()) for mapping in self.top_logprobs or ()),
        ]
        return [
            [(name, value) for name, value in place if value is not None and _FILLED < value <= 0]
            for place in pairs
        ]

    def names(self) -> list[str]:
        """How the tokens are called."""
        return [*(token.token for token in self.content or ()), *(self.tokens or ())]


class Message(msgspec.Struct):
    """What a chat was answered."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    """One answer."""

    text: str | None = None
    message: Message | None = None
    logprobs: Logprobs | None = None
    stop_reason: int | str | None = None


class Answer(msgspec.Struct):
    """The answers to one request."""

    choices: list[Choice]


class Reason(msgspec.Struct):
    """Whether an event is the last of its trace."""

    finish_reason: str | None = None


class Counted(msgspec.Struct):
    """What an event tells beside its text."""

    choices: list[Reason] | None = None
    usage: object = None
    timings: object = None


MODELS = msgspec.json.Decoder(Models)
ANSWER = msgspec.json.Decoder(Answer)
COUNTED = msgspec.json.Decoder(Counted)
