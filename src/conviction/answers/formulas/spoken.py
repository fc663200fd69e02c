"""Numbers in words: "twenty-one", "one hundred and five", "three quarters", "열두"."""

import re
from fractions import Fraction
from itertools import pairwise

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: number for number, word in enumerate(_ONES.split())} | {
    word: 10 * number for number, word in enumerate(_TENS.split(), 2)
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
_MOST_WORDS = 24
_KOREAN_TENS = {
    "열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50, "예순": 60, "일흔": 70,
    "여든": 80, "아흔": 90,
}  # fmt: skip
_KOREAN_ONES = {
    "하나": 1, "한": 1, "둘": 2, "두": 2, "셋": 3, "세": 3, "넷": 4, "네": 4, "다섯": 5,
    "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9,
}  # fmt: skip
_KOREAN = re.compile(
    rf"({'|'.join(_KOREAN_TENS)})?({'|'.join(_KOREAN_ONES)})?"
    r"(?:\s?(?:개|명|살|마리|번|시간|권|장|대|송이|그루|병|잔|가지|사람|자루|켤레))?"
)
_OTHER_WORDS = "of or and to is was who that which can more less than by another point"
_NOT_COUNTED = frozenset(_OTHER_WORDS.split())
_MOST_COUNTED_WORDS = 2


def spoken_number(text: str) -> Fraction | None:
    """The number that a text in words is: 21 for "twenty-one"; None if it says anything else."""
    words = text.casefold().replace("-", " ").split()
    if not 0 < len(words) <= _MOST_WORDS:
        return None
    if words[0] in {"minus", "negative"}:
        rest = _unsigned(words[1:])
        return None if rest is None else -rest
    return _unsigned(words)


def spoken_amount(text: str) -> Fraction | None:
    """The number that a text starts with, in words, where only what is counted follows.

    "twelve", "열두" and "five apples"; but not "one of them".
    """
    words = text.casefold().replace("-", " ").strip(" .!").split()
    if not 0 < len(words) <= _MOST_WORDS:
        return None
    if korean := _KOREAN.fullmatch(" ".join(words)):
        tens, ones = korean.groups()
        number = _KOREAN_TENS.get(tens or "", 0) + _KOREAN_ONES.get(ones or "", 0)
        return Fraction(number) if number else None
    for counted in range(min(_MOST_COUNTED_WORDS, len(words) - 1) + 1):
        said = words[: len(words) - counted]
        if (number := spoken_number(" ".join(said))) is not None:
            rest = set(words[len(said) :])
            return None if rest & _NOT_COUNTED or (rest and said == ["one"]) else number
    return None


def _unsigned(words: list[str]) -> Fraction | None:
    if words and (part := _PARTS.get(words[-1]) or _PARTS.get(_one_of(words[-1]))):
        if words in (["half"], ["a", "half"]):
            return Fraction(1, 2)
        count = Fraction(1) if words[:-1] in (["a"], ["one"]) else _whole(words[:-1])
        return None if not count else count / part
    if words and words[-1] == "dozen":
        count = Fraction(1) if words[:-1] in ([], ["a"]) else _whole(words[:-1])
        return None if not count else 12 * count
    return _whole(words[1:], one=True) if words[:1] == ["a"] else _whole(words)


def _one_of(words: str) -> str:
    """The singular of "halves" and "thirds"."""
    return "half" if words == "halves" else words.removesuffix("s")


def _whole(words: list[str], *, one: bool = False) -> Fraction | None:
    """A whole number; with `one`, what follows the "a" of "a hundred"."""
    found = [word for word in words if word != "and"]
    numbers = {*_SMALL, *_LARGE, "hundred"}
    if not found or not set(found) <= numbers or words[0] == "and" or words[-1] == "and":
        return None
    if one and found[0] in _SMALL:
        return None
    scales = [_LARGE[word] for word in found if word in _LARGE]
    if any(low >= high for high, low in pairwise(scales)):
        return None
    total, section = 0, ["one"] if one else list[str]()
    for word in found:
        if word not in _LARGE:
            section.append(word)
            continue
        amount = _below_thousand(section)
        if not amount:
            return None
        total, section = total + amount * _LARGE[word], []
    amount = _below_thousand(section) if section else 0
    return None if amount is None else Fraction(total + amount)


def _below_thousand(words: list[str]) -> int | None:
    """The number that "one hundred five" is; None for "five six" and "hundred"."""
    total = 0
    if "hundred" in words:
        at = words.index("hundred")
        if at != 1 or not 0 < _SMALL.get(words[0], 0) < 20:
            return None
        total, words = 100 * _SMALL[words[0]], words[2:]
        if not words:
            return total
    match [_SMALL.get(word, -1) for word in words]:
        case [number] if number >= 0:
            return total + number
        case [tens, ones] if tens >= 20 and 0 < ones < 10:
            return total + tens + ones
        case _:
            return None
