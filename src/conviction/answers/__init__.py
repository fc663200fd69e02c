"""Answers: asking for them, finding them in text, and telling equal ones apart."""

from conviction.answers.extraction import STRATEGIES, extract_answer
from conviction.answers.kinds import (
    KINDS,
    AnswerKind,
    Example,
    Grouping,
    PromptEnding,
    kind,
    kinds,
    kinds_help,
)

__all__ = [
    "KINDS",
    "STRATEGIES",
    "AnswerKind",
    "Example",
    "Grouping",
    "PromptEnding",
    "extract_answer",
    "kind",
    "kinds",
    "kinds_help",
]
