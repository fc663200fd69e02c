"""Answers: finding them in text, and telling equal ones apart.

An answer kind is one class. A built-in kind has a line in `KINDS`, a kind of another package an
entry point under `conviction.answers`.
"""

from conviction.answers.base import AnswerKind
from conviction.answers.extraction import STRATEGIES, extract_answer
from conviction.answers.grouping import Grouping
from conviction.registry import Registry

__all__ = ["KINDS", "STRATEGIES", "AnswerKind", "Grouping", "extract_answer", "kind", "kinds"]

KINDS = Registry(
    "conviction.answers",
    "answer kind",
    {
        "math": "conviction.answers.mathematical:MathematicalAnswers",
        "choice": "conviction.answers.choice:ChoiceAnswers",
        "number": "conviction.answers.number:NumberAnswers",
        "text": "conviction.answers.text:TextAnswers",
        "json": "conviction.answers.json:JsonAnswers",
    },
)


def kinds() -> tuple[str, ...]:
    """Names of all answer kinds, sorted."""
    return KINDS.names()


def kind(name: str) -> AnswerKind:
    """A new answer kind by its registered name.

    Raises:
        UnknownNameError: no kind has this name.
        PluginError: a plug-in brings it and cannot be used.
    """
    return kind_class(name)()


def kind_class(name: str) -> type[AnswerKind]:
    """The class of an answer kind by its registered name; raises as `kind` does."""
    return KINDS.subclass(name, AnswerKind)
