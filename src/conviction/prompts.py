"""From a question to the messages that a model gets: how to think, and how to end.

Styles:
    plain             the question as it is
    step-by-step      the question, then how to think and where to put the answer
    worked-examples   the same after solved examples, where the answer kind has any; small models
                      then write short traces that end where they should
"""

import re
from enum import StrEnum

from conviction.answers import AnswerKind
from conviction.answers import kind as named_kind
from conviction.core import Message, Question


class PromptStyle(StrEnum):
    """How much a prompt adds to the question."""

    PLAIN = "plain"
    STEP_BY_STEP = "step-by-step"
    WORKED_EXAMPLES = "worked-examples"


_HANGUL = re.compile("[\uac00-\ud7a3]")


def compose(text: str, *, kind: AnswerKind | str, style: PromptStyle, id: str = "") -> Question:  # noqa: A002
    """The question to send for a user's words; its id is derived from them if none is given.

    The answer kind, or the one of that name, decides how a trace is asked to end.

    Raises:
        UnknownNameError: no answer kind has this name.
    """
    plain = Question.ask(text, id=id)
    if style is PromptStyle.PLAIN:
        return plain
    answers = named_kind(kind) if isinstance(kind, str) else kind
    ending = answers.prompt_ending(korean=bool(_HANGUL.search(text)))
    messages: list[Message] = []
    for example in ending.examples if style is PromptStyle.WORKED_EXAMPLES else ():
        messages.append(Message("user", f"{example.question}\n\n{ending.text}"))
        messages.append(Message("assistant", example.solution))
    messages.append(Message("user", f"{text}\n\n{ending.text}"))
    return Question(tuple(messages), plain.id)
