"""Answers in words, and what is said around formulas: conditions, and texts that are none."""

import re

from conviction.answers.formulas.forms import UNREAD, Form, Shape, expression, words
from conviction.answers.formulas.markup import fold_words
from conviction.answers.formulas.parsing import known_word
from conviction.answers.formulas.reals import LINE, form_of
from conviction.answers.formulas.spoken import spoken_number

_LETTERS = re.compile(r"[^\W\d_]+(?:(?:\s|[-'.&]|\. )[^\W\d_]+)*")
_CAPITALS = re.compile(r"[A-Z]{2,}")
# "xy" and "pqr", but neither "no" nor "dry".
_PRODUCT = re.compile(
    r"[^\Waeiou_]{1,2}|[^\Waeiouy_]{3}|ab|abc|ac|a[xyz]|[xyz]a|abx|xyz|abcd",
    re.ASCII | re.IGNORECASE,
)
_CONDITION = re.compile(
    r'(?:\s|,|"|\()+((?:for|where|if|\\forall|with|단,)(?![A-Za-z]).*)$'
    r"|[\s,(]+([a-z]\s*\\in\s*\\[RZNQC]\s*\)?|\w\s+(?:is|are)\s[^()]*\))$"
)
_DOMAIN_WORDS = (
    "for all any every each some real reals integer integers natural rational complex number "
    "numbers constant constants value values arbitrary fixed is are in of the and where be "
    "positive a an nonnegative with forall "
    "은 는 이 가 단 상수 실수 정수 임의의 상수이다 실수이다 정수이다 상수입니다"
)
_DOMAIN = frozenset(_DOMAIN_WORDS.split())
_PROSE = re.compile(r"(?:[^\W_]|[\s.,;'\"&]|(?<=[^\W\d_])[-:](?=[^\W\d_\s]))*")
_WORD = re.compile(r"[가-힣]+(?=[은는이가]\b)|[A-Za-z](?=[은는이가])|\w+|[^\w\s\"\\(){},]+")


def without_condition(text: str) -> tuple[str, str]:
    """Text without a condition at its end, and the condition unless it only says "for all"."""
    found = _CONDITION.search(text)
    if found is None or not text[: found.start()].strip(' "'):
        return text, ""
    said = found[1] or found[2]
    rest = text[: found.start()].rstrip(' ,"(')
    if rest.count('"') % 2:
        rest += '"'
    if all(
        word in _DOMAIN or (len(word) == 1 and word.isalpha())
        for word in _WORD.findall(said.lower())
    ):
        return rest, ""
    return rest, " ".join(said.replace('"', " ").casefold().split()).strip(" )")


def read_words(text: str) -> Form | None:  # noqa: PLR0911  # one for each case
    """Words: a quoted text, or letters that are not the name of anything in a formula."""
    unquoted = text.replace('"', " ").strip("() '")
    if _CAPITALS.fullmatch(unquoted) and not known_word(unquoted):
        return words(unquoted.casefold())  # "HTH" is a sequence
    plain = _LETTERS.fullmatch(unquoted) and re.search(r"[^\W\d_]{2}", unquoted)
    wholly_quoted = text[:1] == '"' and text.count('"') == 2 and text.endswith('"')
    if not plain and not (wholly_quoted and len(unquoted) > 1 and not re.search(r"[=\d]", text)):
        return None
    pieces = unquoted.split()
    if '"' not in text and (all(map(known_word, pieces)) or _PRODUCT.fullmatch(unquoted)):
        return None
    if (number := spoken_number(unquoted)) is not None:
        return expression(number)
    folded = fold_words(unquoted)
    separators = {"and", "or", "또는", "그리고"}
    if '"' not in text and separators & set(folded.split()) and all(len(p) < 4 for p in pieces):
        return None  # "x or y", "A and B"
    if folded in {"empty set", "no solution", "no solutions", "없음", "해가 없다", "공집합"}:
        return form_of(())
    if folded in {"all real numbers", "all reals", "모든 실수", "real numbers"}:
        return form_of(LINE)
    return words(folded) if folded else None


def unread(text: str) -> Form:
    """Plain words, or what may be a formula and cannot be read."""
    if _PROSE.fullmatch(text):
        return words(fold_words(text))
    return Form(Shape.OTHER, UNREAD + re.sub(r"\s+(?=\W)|(?<=[^\w\s])\s+", "", text))
