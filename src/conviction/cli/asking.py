"""From a data set and the options of a command to questions in the words that the model gets."""

from collections.abc import Callable, Sequence
from functools import partial

from conviction.api import check_question
from conviction.backends import Backend
from conviction.core import Question
from conviction.errors import InvalidSettingError
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import PromptedQuestion
from conviction.models import ModelFile
from conviction.prompts import PromptStyle, compose


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
    model: Backend | ModelFile,
    templated: bool,
) -> tuple[PromptedQuestion, ...]:
    """The questions in the words that the model gets.

    Args:
        questions: The data set.
        answers: Name of the kind of answer.
        style: What to add; None for what suits the model.
        model: What generates the traces.
        templated: Whether they are sent as they stand in the file.
    """
    if templated:
        return tuple(map(PromptedQuestion.as_it_is, questions))
    chosen = style or model.prompt_style
    return tuple(PromptedQuestion.of(item, answers=answers, style=chosen) for item in questions)


def prompt_of(
    *, answers: str, style: PromptStyle | None, model: Backend | ModelFile, templated: bool
) -> Callable[[str], Question]:
    """What puts the same prompt around the words of any question.

    Args:
        answers: Name of the kind of answer.
        style: What to add; None for what suits the model.
        model: What generates the traces.
        templated: Whether questions are sent as they stand.
    """
    if templated:
        return Question.ask
    return partial(compose, kind=answers, style=style or model.prompt_style)
