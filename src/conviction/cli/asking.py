"""From a data set and the options of a command to questions, and an engine that holds them."""

from collections.abc import Callable, Sequence
from functools import partial

from conviction.api import check_question
from conviction.core import Question, Sampling
from conviction.engines.base import Engine
from conviction.engines.local import LocalEngine
from conviction.errors import InvalidSettingError
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import PromptedQuestion
from conviction.models import ModelFile
from conviction.prompts import PromptStyle, compose

_TEMPLATE = 64
"""Room for what a chat template puts around each message, in tokens."""


def check_texts(questions: Sequence[DatasetQuestion]) -> None:
    """Check that every question of a data set can be asked.

    Raises:
        InvalidSettingError: naming the row.
    """
    for question in questions:
        try:
            check_question(question.text)
        except InvalidSettingError as error:
            raise InvalidSettingError(
                tried=f"ask the question in {question.place}",
                found=error.found,
                remedy="Correct the row, or leave it out.",
            ) from None


def with_prompts(
    questions: Sequence[DatasetQuestion],
    *,
    answers: str,
    style: PromptStyle | None,
    model: ModelFile | None,
    templated: bool,
) -> tuple[PromptedQuestion, ...]:
    """The questions in the words that the model gets.

    Args:
        questions: The data set.
        answers: Name of the kind of answer.
        style: What to add; None for what suits the model.
        model: The embedded model; None for a server.
        templated: Whether they are sent as they stand in the file.
    """
    if templated:
        return tuple(map(PromptedQuestion.as_it_is, questions))
    chosen = _style(style, model)
    return tuple(PromptedQuestion.of(item, answers=answers, style=chosen) for item in questions)


def prompt_of(
    *, answers: str, style: PromptStyle | None, model: ModelFile | None, templated: bool
) -> Callable[[str], Question]:
    """What puts the same prompt around the words of any question.

    Args:
        answers: Name of the kind of answer.
        style: What to add; None for what suits the model.
        model: The embedded model; None for a server.
        templated: Whether questions are sent as they stand.
    """
    if templated:
        return Question.ask
    return partial(compose, kind=answers, style=_style(style, model))


def _style(style: PromptStyle | None, model: ModelFile | None) -> PromptStyle:
    return style or (model.prompt_style if model else PromptStyle.STEP_BY_STEP)


def embedded(
    model: ModelFile | None, asked: Sequence[PromptedQuestion], sampling: Sampling
) -> Engine:
    """The embedded engine with room for the longest question and its traces."""
    assert model is not None  # noqa: S101  # there is a model where there is no server
    return LocalEngine(model.path, context=context_for(asked, sampling))


def context_for(asked: Sequence[PromptedQuestion], sampling: Sampling) -> int:
    """Tokens that hold the longest question and its traces."""
    # No tokenizer is at hand yet, but no token is shorter than a byte.
    longest = max(
        sum(len(message.content.encode()) + _TEMPLATE for message in one.question.messages)
        for one in asked
    )
    return longest + sampling.max_tokens
