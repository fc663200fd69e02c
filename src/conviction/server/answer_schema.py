"""Answers in OpenAI's format, for the documentation of the API."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """Why there is no answer."""

    error: ErrorDetail


class PromptTokens(BaseModel):
    """Prompt tokens that the engine took from its cache."""

    cached_tokens: int


class CompletionTokens(BaseModel):
    """Generated tokens by the fate of their traces; those that are not shown are reasoning."""

    reasoning_tokens: int
    voted_tokens: int
    unvoted_tokens: int
    stopped_tokens: int
    cancelled_tokens: int
    failed_tokens: int


class UsageAnswer(BaseModel):
    """All tokens of all traces."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class TallyAnswer(BaseModel):
    """The votes for one answer."""

    answer: str
    weight: float
    count: int
    traces: list[int]


class VerdictAnswer(BaseModel):
    """The verdict behind an answer: `Verdict.to_dict()` without the texts of its traces."""

    run: str
    content: Literal["trace", "answer"]
    trace: int
    schema_version: int
    answer: str | None
    share: float
    lead: float | None
    tied: list[str]
    tally: list[TallyAnswer]
    ended: str
    policy: dict[str, Any]
    budget: int
    threshold: float | None
    window: int | None
    top_k: int
    usage: dict[str, Any]
    seconds: float
    engine: str
    seed: int
    warnings: list[str]
    traces: dict[str, int]


class AssistantMessage(BaseModel):
    """The answer."""

    model_config = ConfigDict(extra="allow")

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _ChoiceBase(BaseModel):
    index: Literal[0]
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatChoice(_ChoiceBase):
    """The only choice."""

    message: AssistantMessage


class TextChoice(_ChoiceBase):
    """The only choice."""

    text: str


class _AnswerBase(BaseModel):
    id: str
    created: int
    model: str
    usage: UsageAnswer
    conviction: VerdictAnswer


class ChatAnswer(_AnswerBase):
    """Answer of `POST /v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(_AnswerBase):
    """Answer of `POST /v1/completions`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelAnswer(BaseModel):
    """A name that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "conviction"


class ModelsAnswer(BaseModel):
    """All names that can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class HealthAnswer(BaseModel):
    """Whether the server can think just now."""

    status: Literal["ok", "closing", "unwell"]
    model: str
    running: int
    queued: int


METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Answers = dict[int | str, dict[str, Any]]
"""Descriptions of responses by HTTP status."""

_FAILURES: Final = {
    400: "Something in the request is unknown, out of range, or not done here.",
    401: "The key is missing or wrong.",
    403: "The request comes from a web page that may not use this server.",
    404: "There is no such model.",
    408: "The request did not come whole.",
    413: "The request is too large.",
    421: "The server is not called that.",
    429: "Too many requests of this client wait; Retry-After tells how long to wait.",
    500: "The server failed.",
    502: "The engine failed.",
    503: "Too many requests wait, or the server is about to end; see Retry-After.",
    504: "The time limit came before the first token.",
}


def _failures(*statuses: int) -> Answers:
    return {one: {"model": Failure, "description": _FAILURES[one]} for one in statuses}


def _completions(model: type[BaseModel]) -> Answers:
    data = {"type": "string", "description": "A chunk as JSON, an error as JSON, or [DONE]."}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    events = {"schema": {**event, "description": "With `stream`: each server-sent event."}}
    content = {"text/event-stream": events}
    whole = {"model": model, "description": "The answer.", "content": content}
    return {200: whole, **_failures(*_FAILURES)}


CHAT_ANSWERS: Final = _completions(ChatAnswer)
COMPLETION_ANSWERS: Final = _completions(CompletionAnswer)
MODELS_ANSWERS: Final = _failures(401, 421)
MODEL_ANSWERS: Final = _failures(400, 404, 401, 421)
METRICS_ANSWERS: Final[Answers] = {
    200: {"content": {METRICS_TYPE: {"schema": {"type": "string"}}}},
    **_failures(401, 421),
}
HEALTH_ANSWERS: Final[Answers] = {
    503: {"model": HealthAnswer, "description": "It cannot."},
    **_failures(421),
}
