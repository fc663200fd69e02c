"""Requests in OpenAI's format, and the `conviction` object that they may carry.

A field that would change the answer and is not supported has a type that only its neutral value
fits; `UNSUPPORTED` says what to do instead of any other value.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from conviction.answers import kinds_help
from conviction.api import MOST_CHARACTERS
from conviction.core import GREATEST_WHOLE, Message
from conviction.server.settings import Content

MOST_NAME: Final = 1000
"""Characters of a model's name or a policy's, settings included: it is repeated in each event."""

MOST_FIELDS: Final = 100
"""Fields of one object: more than twice as many as any has."""

UNSUPPORTED: Final = {
    "audio": "Only text is written here.",
    "best_of": "The best of several is what the policy is for: set conviction.budget.",
    "echo": "The prompt is not repeated here.",
    "frequency_penalty": "Penalties are not passed on: leave it at 0.",
    "function_call": "Functions are not called here.",
    "functions": "Functions are not called here.",
    "logit_bias": "Log-probabilities are left as they are: leave logit_bias out.",
    "logprobs": "An answer that was voted for has no log-probabilities of its own.",
    "modalities": "Only text is written here.",
    "n": "There is one answer to a vote: n has to be 1. For more traces set conviction.budget.",
    "presence_penalty": "Penalties are not passed on: leave it at 0.",
    "reasoning": "How much is thought is set by conviction.budget and max_tokens.",
    "reasoning_effort": "How much is thought is set by conviction.budget and max_tokens.",
    "response_format": "Only text is written here. For JSON that is voted on, set "
    'conviction.answers = "json" and conviction.content = "answer".',
    "stop": "Traces end where the model ends them: leave stop out.",
    "suffix": "Text is not inserted here.",
    "tool_calls": "Tools are not called here.",
    "tool_choice": "Tools are not called here.",
    "tools": "Tools are not called here.",
    "top_logprobs": "An answer that was voted for has no log-probabilities of its own.",
    "verbosity": "How long a trace may be is set by max_tokens.",
    "web_search_options": "Nothing is fetched from the web here.",
}
"""Why a field is refused, where its value is not neutral."""


def _whole(value: object) -> object:
    """JSON does not distinguish 8.0 from 8."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, le=GREATEST_WHOLE), BeforeValidator(_whole)]
One = Annotated[int, Field(ge=1, le=1), BeforeValidator(_whole)] | None
Zero = Annotated[float | None, Field(ge=0, le=0)]
EmptyList = Annotated[list[Any] | None, Field(max_length=0)]
EmptyObject = Annotated[dict[str, Any] | None, Field(max_length=0)]
Name = Annotated[str, Field(max_length=MOST_NAME)]
Text = Annotated[str, Field(pattern=r"^[^\u0000]*$", max_length=MOST_CHARACTERS)]
Words = Annotated[
    str, Field(pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$", max_length=MOST_CHARACTERS)
]


def _few_fields(value: object) -> object:
    """Each unknown field would make an error of its own: of thousands, only one is reported."""
    if isinstance(value, dict) and len(cast("dict[str, object]", value)) > MOST_FIELDS:
        raise PydanticCustomError("too_many_fields", "There are too many fields here")
    return cast("object", value)


class Strict(BaseModel):
    """Nothing is converted, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    _bounded = model_validator(mode="before")(_few_fields)


class ConvictionOptions(Strict):
    """The `conviction` object of a request; the server's defaults hold for what it leaves out."""

    policy: str | None = Field(
        default=None,
        description="Name of a policy, with settings if wanted, as in `esc:window=5`.",
        min_length=1,
        max_length=MOST_NAME,
    )
    budget: Positive | None = Field(default=None, description="The most traces to start.")
    answers: str | None = Field(default=None, description=kinds_help())
    prompt_style: Literal["plain", "step-by-step", "worked-examples"] | None = Field(
        default=None, description="What is added to the question."
    )
    content: Content | None = Field(
        default=None,
        description="What the message holds: the best trace's text, or only the answer.",
    )
    time_limit: float | None = Field(
        default=None,
        description="Seconds, once its turn has come, after which the votes so far decide.",
        gt=0,
        allow_inf_nan=False,
    )
    concurrency: Positive | None = Field(
        default=None, description="The most traces of this request at once."
    )
    total_tokens: Positive | None = Field(
        default=None,
        description="Tokens of all traces together, after which the votes so far decide.",
    )


class SamplingOptions(Strict):
    """How tokens are drawn; the server's defaults hold for what is left out."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class RunRequest:
    """What a request says of its run, apart from the question.

    Attributes:
        model: A name from /v1/models, perhaps with @policy behind it.
        client: Name of the client's key; "" where there are no keys.
        address: Address that it came from.
    """

    model: str
    conviction: ConvictionOptions = field(default_factory=ConvictionOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    client: str = ""
    address: str = ""


class TextPart(Strict):
    """A part of a message; images, sound and files are refused."""

    type: Literal["text"]
    text: Text
    cache_control: dict[str, Any] | None = None


class ChatMessage(Strict):
    """One message of a chat. Answers may be sent back with all their fields."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True)]
    name: str | None = None
    refusal: Annotated[str | None, Field(max_length=0)] = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: EmptyList = None
    audio: None = None
    function_call: None = None
    tool_calls: EmptyList = None

    @property
    def message(self) -> Message:
        """The message as models get it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(Strict):
    """Only plain text."""

    type: Literal["text"]


class _CompletionBase(Strict):
    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=1e-6, le=1)] = None
    top_k: Positive | None = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Integer | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    conviction: ConvictionOptions | None = None
    n: One = None
    stop: EmptyList = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: EmptyObject = None

    @property
    def stream_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def longest_trace(self) -> int | None:
        """The most tokens of a trace."""
        return self.max_tokens

    def run_request(self, client: str, address: str) -> RunRequest:
        """What it says of its run, apart from the question."""
        sampling = SamplingOptions(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_tokens=self.longest_trace,
            seed=self.seed,
        )
        conviction = self.conviction or ConvictionOptions()
        return RunRequest(self.model, conviction, sampling, client, address)


class ChatRequest(_CompletionBase):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000, fail_fast=True)]
    max_completion_tokens: Positive | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: EmptyList = None
    logprobs: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]] | None, Field(max_length=1)] = None
    reasoning: None = None
    reasoning_effort: None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: EmptyList = None
    top_logprobs: None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def longest_trace(self) -> int | None:
        """The most tokens of a trace; the newer name of the field wins."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_CompletionBase):
    """`POST /v1/completions`."""

    prompt: Words | Annotated[list[Words], Field(min_length=1, max_length=1)]
    best_of: One = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]
