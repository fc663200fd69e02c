"""Evaluation of whole data sets, and their recording."""

from conviction.answers import AnswerKind
from conviction.core import Answer


def counted(number: int, noun: str) -> str:
    """A number and its noun, as in "1 trace" and "1,200 traces"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def is_correct(kind: AnswerKind, answer: Answer | str | None, gold: str | None) -> bool:
    """Whether an answer means the same as the gold answer; no answer is wrong.

    May take a while, and waits for another process, where canonical forms leave it open.

    Args:
        kind: Compares the answers.
        answer: What a trace or a verdict answered.
        gold: The right answer, as the data set writes it.
    """
    text = answer.text if isinstance(answer, Answer) else answer
    if text is None or gold is None:
        return False
    given, wanted = kind.canonical(text), kind.canonical(gold)
    if given == wanted:
        return True
    return not kind.decided(given, wanted) and kind.equivalent(given, wanted)
