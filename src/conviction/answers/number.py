"""Numbers as answers, compared exactly."""

import re

from conviction.answers.extraction import NUMBER
from conviction.answers.formulas.markup import clean, fold, fold_words
from conviction.answers.formulas.shapes import (
    Form,
    Shape,
    certainly_differ,
    leaf,
    stand_for_the_same,
)
from conviction.answers.kinds import AnswerKind

_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d,])")
_POINTS_AND_COMMA = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d,])")
_SPACED = re.compile(r"(?<=\d)[ '](?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_HAS_NUMBER = re.compile(r"\d|\\frac")
_NUMBER = re.compile(rf"-?\s*\\frac\s*\{{?\d+\}}?\s*\{{?\d+\}}?|{NUMBER.pattern}")


class NumberAnswers(AnswerKind):
    r"""One number: "1,234.50" is 1234.5, "\$5" and "12 apples" lose their unit, "1/2" is 0.5.

    Where an answer holds several numbers, the first after the last "=" counts. "50%" may stand
    for 0.5 or for 50.
    """

    name = "number"
    help = "one number, with or without a unit"
    strategies = ("boxed", "tag", "marker", "hashes", "last-number")

    def accepts(self, answer: str) -> bool:
        """Whether it holds a number."""
        return bool(_HAS_NUMBER.search(fold(answer)))

    def canonical(self, answer: str) -> str:
        """An exact fraction such as "5" or "1/2", a percentage, or words where there is none."""
        return _read(answer).text

    def decided(self, first: str, second: str) -> bool:
        """True but for percentages, which may stand for two numbers."""
        return "%" not in first + second or certainly_differ(_read(first), _read(second))

    def equivalent(self, first: str, second: str) -> bool:
        """Whether a percentage stands for a number."""
        return stand_for_the_same(_read(first), _read(second))


def _read(answer: str) -> Form:
    # Digits without thousands separators, and with a point before the decimals.
    text = _POINTS_AND_COMMA.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}", fold(answer))
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = clean(_SPACED.sub("", _DECIMAL_COMMA.sub(r"\1.\2", text)))
    result = text.rpartition("=")[2].strip() or text
    found = _NUMBER.search(result)
    for candidate in (result, found.group() if found else ""):
        form = leaf(candidate)
        if form.shape in {Shape.NUMBER, Shape.PERCENT}:
            return form
        if form.shape is Shape.WORDS and candidate[:1].isdigit():
            return form  # "8:30", or a number too large to write down
    return Form(Shape.WORDS, fold_words(text) or answer or "nothing")
