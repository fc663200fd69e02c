"""Requests in OpenAI's shape: what is done, what may be sent because it changes nothing, what not.

A field that would change the answer and is not done here has a type that only its neutral value
fits; `REFUSED` says what is the matter with any other.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from conviction.api import MOST_CHARACTERS
from conviction.server.wishes import MOST_NAME, Generation, Integer, Positive, Wishes, whole

REFUSED: Final = {
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

Nothing = Annotated[list[Any] | None, Field(max_length=0)]
NoEntries = Annotated[dict[str, Any] | None, Field(max_length=0)]
Zero = Annotated[float | None, Field(ge=0, le=0)]
Whole = Positive | None
One = Annotated[int, Field(ge=1, le=1), BeforeValidator(whole)] | None
Text = Annotated[str, Field(pattern=r"^[^\u0000]*$", max_length=MOST_CHARACTERS)]
Words = Annotated[
    str, Field(pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$", max_length=MOST_CHARACTERS)
]


Name = Annotated[str, Field(max_length=MOST_NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(_Strict):
    """A part of a message; images, sound and files are refused."""

    type: Literal["text"]
    text: Text
    cache_control: dict[str, Any] | None = None


class ChatMessage(_Strict):
    """One message of a chat. What answers have beside their text may be sent back with them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]
    name: str | None = None
    refusal: Annotated[str | None, Field(max_length=0)] = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None

    @property
    def text(self) -> str:
        """Its words, whatever parts they came in."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Strict):
    """Only plain text."""

    type: Literal["text"]


class _Request(_Strict):
    """What both kinds of completion have."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=1e-6, le=1)] = None
    top_k: Whole = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Integer | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    conviction: Wishes | None = None
    n: One = None
    stop: Nothing = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: NoEntries = None

    @property
    def wishes(self) -> Wishes:
        """The `conviction` object."""
        return self.conviction or Wishes()

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _generation(self, max_tokens: int | None) -> Generation:
        return Generation(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_tokens=max_tokens,
            seed=self.seed,
        )


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Whole = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: Nothing = None
    logprobs: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]] | None, Field(max_length=1)] = None
    reasoning: None = None
    reasoning_effort: None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Nothing = None
    top_logprobs: None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def generation(self) -> Generation:
        """How tokens are drawn; the newer name of the limit wins."""
        return self._generation(self.max_completion_tokens or self.max_tokens)


class CompletionRequest(_Request):
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

    @property
    def generation(self) -> Generation:
        """How tokens are drawn."""
        return self._generation(self.max_tokens)
