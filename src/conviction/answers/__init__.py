"""Answers: asking for them, finding them in text, and telling equal ones apart."""

from conviction.answers.extraction import STRATEGIES, extract_answer
from conviction.answers.grouping import Grouping, broken_rules, compared, is_correct
from conviction.answers.kinds import (
    KINDS,
    AnswerKind,
    Example,
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
    "broken_rules",
    "compared",
    "extract_answer",
    "is_correct",
    "kind",
    "kinds",
    "kinds_help",
]
