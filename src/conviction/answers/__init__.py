"""Answers: finding them in text, and telling equal ones apart.

An answer kind is a file with one class and one line in the entry points of its package, under
`conviction.answers`.
"""

from conviction.answers.base import AnswerKind
from conviction.answers.extraction import STRATEGIES, extract_answer
from conviction.answers.grouping import Grouping
from conviction.errors import InvalidSettingError
from conviction.registry import load, names

__all__ = ["STRATEGIES", "AnswerKind", "Grouping", "extract_answer", "kind", "kinds"]

_GROUP = "conviction.answers"


def kinds() -> tuple[str, ...]:
    """Names of all answer kinds, sorted."""
    return names(_GROUP)


def kind(name: str) -> AnswerKind:
    """A new answer kind by its registered name.

    Raises:
        UnknownNameError: there is none of that name.
        InvalidSettingError: what is registered under that name is no answer kind.
    """
    found = load(_GROUP, name)
    if isinstance(found, type) and issubclass(found, AnswerKind):
        return found()
    raise InvalidSettingError(
        tried=f"use {name!r} as a kind of answer",
        found=f"{found!r} is not a subclass of conviction.answers.AnswerKind",
        remedy=f"Correct its entry point under {_GROUP!r}, or use one of: {', '.join(kinds())}.",
    )
