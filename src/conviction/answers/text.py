# ruff: noqa: RUF001  # signs of many scripts
"""Short texts as answers: names, words, phrases."""

import re
import unicodedata

from conviction.answers.finding.dress import EMPHASIS
from conviction.answers.finding.labels import without_latex
from conviction.answers.formulas.markup import fold
from conviction.answers.kinds import AnswerKind, PromptEnding

_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_COMPARED = str.maketrans({"≤": "<=", "≥": ">=", "≠": "!="})
_COMMANDS = {"le": "<=", "leq": "<=", "ge": ">=", "geq": ">=", "lt": "<"} | {
    "ne": "!=", "neq": "!=",
    "gt": ">", "times": "*", "cdot": "*", "div": "/", "pm": "±", "to": "→", "circ": "°",
    "rightarrow": "→", "degree": "°",
}  # fmt: skip
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
_FORMULA = re.compile(r"\$([^$]*)\$")
_ESCAPED = re.compile(r"\\([#%&$_])")
_LOWERED = re.compile(r"(?<=[A-Za-z])_(?=\{?\d)|\^(?=\{?[-+])")

# "U.S.", "J. R. R.", "Ph.D.": points after single letters, and between letters.
_INITIALS = re.compile(r"(?<![^\W_])(?:[^\W\d_]\.\s?){2,}(?:(?<=\.)[^\W\d_](?![\w.]))?")
_INNER_POINT = re.compile(r"(?<=[^\W\d_])\.(?=[^\W\d_])")
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_TOKEN = re.compile(
    r"""(?P<number> (?:(?<![\w)])[-+])? (?:(?<![\w)])\.)? \d+(?:[.,:/-]\d+)* )
      | (?P<word> [^\W\d_]+ ) | (?P<sign> [<>!=]= | [-=]> | [^\w\s] )""",
    re.VERBOSE,
)
_ARTICLES = frozenset({"a", "an", "the"})
_SAME = {"&": "and", "percent": "%"}
_MEANINGFUL_PUNCTUATION = frozenset({"%", "@", "!=", "->"})
_EMPTY_SYMBOLS = frozenset("`~|´¨™®©✓✔✅☑")


class TextAnswers(AnswerKind):
    """Short texts, compared without case, punctuation, articles and ways of typing.

    Signs that carry meaning stay: "C++" is not "C#", "AB-" not "AB+", "x<5" not "x>5", "-1"
    not "1".
    """

    name = "text"
    help = "a name, a word or a phrase"
    ending = PromptEnding(
        'Think step by step and finish with a line that reads "Answer: " and the answer.'
    )
    korean_ending = PromptEnding('차근차근 생각한 다음 마지막 줄에 "답: "과 함께 답을 쓰세요.')

    def canonical(self, answer: str) -> str:
        """Its words in lower case and its meaningful signs, one space between them."""
        plain = _plain(answer)
        return " ".join(_words(plain)) or "".join(plain.split()) or answer or "nothing"


def _plain(answer: str) -> str:
    """The answer without emphasis and LaTeX, in plain characters, abbreviations without points."""
    text = _RAISED.sub(lambda run: "^" + run.group().translate(_RAISED_DIGITS), answer)
    text = EMPHASIS.sub("", text.translate(_COMPARED))
    if "$" in text:
        text = _FORMULA.sub(r"\1", text)
    if any(sign in text for sign in "\\^_{"):
        text = _COMMAND.sub(lambda command: _COMMANDS[command[1]], text)
        text = without_latex(_LOWERED.sub("", _ESCAPED.sub(r"\1", text)))
    text = _INITIALS.sub(
        lambda run: "".join(run.group().split()).replace(".", "") + " ", fold(text)
    )
    text = _APOSTROPHE.sub("", _INNER_POINT.sub("", text))
    return _THOUSANDS.sub(lambda number: number.group().replace(",", ""), text).strip()


def _words(plain: str) -> list[str]:
    """The words, numbers and meaningful signs of a plain text; empty if it holds only signs."""
    tokens = list(_TOKEN.finditer(plain))
    last = max((at for at, token in enumerate(tokens) if token.lastgroup != "sign"), default=-1)
    kept: list[str] = []
    for at, token in enumerate(tokens if last >= 0 else ()):
        text = token.group()
        if token.lastgroup == "word" and text.lower() in _ARTICLES:
            # "vitamin A" and "A-Team" keep theirs.
            after = plain[token.end() : token.end() + 1]
            if at < last and after.isspace() and (not kept or text.islower()):
                continue
        if token.lastgroup != "sign" or _means_something(plain, token):
            folded = text.casefold()
            kept.append(_SAME.get(folded, folded))
    return kept


def _means_something(plain: str, token: re.Match[str]) -> bool:
    """Whether a sign among words is more than punctuation."""
    sign = token.group()
    before, after = plain[token.start() - 1 : token.start()], plain[token.end() : token.end() + 1]
    match sign:
        case "-":  # "AB-" and "-x", but not "ice-cream" or "Paris - France"
            return (before.isalnum() and not after.isalnum()) or (
                not before.strip() and after.isalnum()
            )
        case "#":  # "C#", but not "#1"
            return before.isalpha()
        case "*":  # "2*3"
            return before.isalnum() and after.isalnum()
        case "&":
            return True
        case _:
            category = unicodedata.category(sign[-1])
            symbol = category in {"Sm", "Sc"} or category[0] == "M" or sign in "^♭♯♮°"
            return sign in _MEANINGFUL_PUNCTUATION or (symbol and sign not in _EMPTY_SYMBOLS)
