"""Numbers as answers, compared exactly."""

import re
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

from conviction.answers.finding.values import NUMBER
from conviction.answers.formulas.forms import Form, Shape, expression, words
from conviction.answers.formulas.markup import clean, fold, fold_words, raised
from conviction.answers.formulas.numerals import (
    abbreviated,
    amount_in_short,
    joined_thousands,
    written_out,
)
from conviction.answers.formulas.parsing import MOST_CHARACTERS
from conviction.answers.formulas.quantities import read_quantity
from conviction.answers.formulas.shapes import leaf, read_based
from conviction.answers.formulas.spoken import spoken_amount
from conviction.answers.kinds import AnswerKind

_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d,])")
_POINTS_AND_COMMA = re.compile(
    r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+|\d{1,3}(?: \d{3})+),(\d+)(?![\d,])"
)
_HAS_NUMBER = re.compile(r"\d|\\frac")
_NUMBER = re.compile(rf"-?\s*\\frac\s*\{{?\d+\}}?\s*\{{?\d+\}}?|{NUMBER.pattern}")
_ASIDE = re.compile(r"(?<=\S)\s+\([^()]*\)$")
_PERCENT = re.compile(r"\d\s*\\?%")
_AND_A_PART = re.compile(r"(?<![\d.,/])(\d{1,9}) and (?:a )?(\d{1,9}/\d)")
_IRRATIONAL = re.compile(r"\\(?:sqrt|root|pi)|[a-z]\s?\^")
_NUMBERS = re.compile(r"-?\d{1,2}(?:(?:,\s?|;\s?)-?\d{1,2}){2,40}")
_PART = re.compile(r"(\d[\d,]*) (?:out )?of (\d[\d,]*)(?: [^\W\d_]+){0,2}")
_ONE = r" ?([$€£¥₩]? ?[-+]?\d[\d,]{0,30}(?:\.\d{1,30})?%?(?: ?(?!e[-+]?\d)[^\W\d_]{1,15})??) ?"
_ANY_OF = re.compile(rf"(?:either)?{_ONE}(?:,? ?\b(?:or|and|또는)\b|, |;){_ONE}")
_RANGE = re.compile(
    rf"(?:(?:from|between)\b)?{_ONE}(?:-|~|\bto\b|(?<=\d) and\b){_ONE}(?:사이)?", re.IGNORECASE
)
_BOUND = re.compile(r"(?:[<>]=?|\\[lg]e?\b) ?(?=[-\d$.])")


class NumberAnswers(AnswerKind):
    r"""One number: "1,234.50" is 1234.5, "\$5" and "12 apples" lose their unit, "1/2" is 0.5.

    Where an answer holds several numbers, the first after the last "=" counts; "2 hours 30
    minutes", "12:30" and "5 feet 6 inches" are one quantity each. "50%" is 50, and not 0.5.
    """

    name = "number"
    help = "one number, with or without a unit"
    strategies = ("boxed", "tag", "marker", "hashes", "last-number")

    def accepts(self, answer: str) -> bool:
        """Whether it holds a number."""
        plain = fold(answer)
        return bool(_HAS_NUMBER.search(plain)) or spoken_amount(plain) is not None

    def canonical(self, answer: str) -> str:
        """An exact fraction such as "5" or "1/2", a quantity, or words where there is none."""
        return _read(answer).key

    def shown(self, answer: str) -> str:
        r"""Its number alone: "5" for "\$5" and "12" for "12 apples"; a percent sign stays."""
        form = _read(answer)
        if form.shape is not Shape.NUMBER or form.number is None:
            return answer
        plain = _decimal(form.number) if re.search(r"[.,]", answer) else str(form.number)
        return f"{plain}%" if _PERCENT.search(answer) else plain


def _decimal(number: Fraction) -> str:
    """A number as a decimal, if it has an end within twelve places."""
    scaled = number * 10**12
    if number.denominator == 1 or scaled.denominator != 1:
        return str(number)
    whole, places = divmod(abs(scaled.numerator), 10**12)
    return f"{'-' if number < 0 else ''}{whole}.{f'{places:012}'.rstrip('0')}"


def _several(text: str) -> str | None:
    """Words for "30 or 31", "30 to 40" and "> 5", which are no single number."""
    if _BOUND.match(text):
        return "".join(text.split())
    if _NUMBERS.fullmatch(text):
        return " or ".join(sorted(re.split(r"[,;]\s?", text)))
    if part := _PART.fullmatch(text):
        return f"{part[1]} of {part[2]}"
    found = _ANY_OF.fullmatch(text)
    between = None if found and "between" not in text else _RANGE.fullmatch(text)
    match = between or found
    if match is None:
        return None
    parts = [_read(part.strip()).key for part in match.groups()]
    return " to ".join(parts) if between else " or ".join(sorted(parts))


@lru_cache(4096)
def _read(answer: str) -> Form:
    if len(answer) <= MOST_CHARACTERS:
        with suppress(ArithmeticError, ValueError, RecursionError):
            return _number(answer)
    return words(" ".join(answer.split()) or "nothing")


def _number(answer: str) -> Form:
    # Digits without thousands separators, and with a point before the decimals.
    text = fold(raised(answer)).strip()
    text = amount_in_short(abbreviated(text).strip("$"))
    text = _POINTS_AND_COMMA.sub(lambda m: f"{re.sub('[ .]', '', m[1])}.{m[2]}", text)
    text = _DECIMAL_COMMA.sub(r"\1.\2", joined_thousands(text, everywhere=True))
    text = written_out(clean(text)).rstrip("!? ")  # "42!" is said, not calculated
    text = _AND_A_PART.sub(r"\1 \2", text)
    if key := read_quantity(text) or _several(text):
        return words(key)
    result = _ASIDE.sub("", text)
    if (said := spoken_amount(result.replace('"', " "))) is not None:
        return expression(said)
    result = result.rpartition("=")[2].strip() or result
    return read_based(text) or _irrational(result) or _first(result) or _no_number(text, answer)


def _irrational(text: str) -> Form | None:
    """Such as a root: its number is not that below the root sign."""
    form = leaf(text) if _IRRATIONAL.search(text) else None
    return form if form and form.shape is Shape.EXPRESSION else None


def _no_number(text: str, answer: str) -> Form:
    return words(fold_words(text) or answer or "nothing")


def _first(result: str) -> Form | None:
    """The first number that stands there."""
    found = _NUMBER.search(result)
    for candidate in (result.strip("()[] "), found.group() if found else ""):
        form = leaf(candidate) if candidate else words("")
        if form.shape is Shape.NUMBER:
            return form
        if (
            form.shape is Shape.OTHER
            and candidate[:1].isdigit()
            and found
            and candidate == found[0]
        ):
            return words(candidate)  # a number too large to write down
    return None
