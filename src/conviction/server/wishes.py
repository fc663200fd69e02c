"""What a request may wish for beyond OpenAI's fields: the `conviction` object."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from conviction.answers import kinds_help
from conviction.core import GREATEST_WHOLE
from conviction.server.settings import Content

MOST_NAME: Final = 1000
"""Characters of a model's name or a policy's, settings included: it is repeated in each event."""


def whole(value: object) -> object:
    """JSON does not tell 8.0 from 8."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(whole)]
"""A whole number of JSON, however it is written."""
Positive = Annotated[int, Field(ge=1, le=GREATEST_WHOLE), BeforeValidator(whole)]
"""The same, at least 1, and no greater than any setting may be."""


class Wishes(BaseModel):
    """The `conviction` object of a request; what it leaves out is as the server was told."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    policy: Annotated[
        str | None,
        Field(
            description="Name of a policy, with settings if wanted, as in `esc:window=5`.",
            min_length=1,
            max_length=MOST_NAME,
        ),
    ] = None
    budget: Annotated[Positive | None, Field(description="The most traces to start.")] = None
    answers: Annotated[
        str | None,
        Field(description=kinds_help()),
    ] = None
    prompt_style: Annotated[
        Literal["plain", "step-by-step", "worked-examples"] | None,
        Field(description="What is added to the question."),
    ] = None
    content: Annotated[
        Content | None,
        Field(description="What the message holds: the best trace's text, or only the answer."),
    ] = None
    time_limit: Annotated[
        float | None,
        Field(
            description="Seconds, once its turn has come, after which the votes so far decide.",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = None
    concurrency: Annotated[
        Positive | None, Field(description="The most traces of this request at once.")
    ] = None
    total_tokens: Annotated[
        Positive | None,
        Field(description="Tokens of all traces together, after which the votes so far decide."),
    ] = None


class Generation(BaseModel):
    """How tokens are drawn, as far as a request says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
