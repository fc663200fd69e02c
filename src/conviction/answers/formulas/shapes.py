r"""The shapes that answers come in, and how to read them.

What is read generously, since all traces answer the same question:

- a unit, a currency and a degree sign are left out: "15 cm^2" and "\$15" are 15;
- "x = 5" is 5, "x \in (0, 1)" is (0, 1), and a chain "a = b = 5" is its last part;
- a list is a set: "1, -2" is {-2, 1}; a pair in parentheses keeps its order;
- "50%" may stand for 0.5 or for 50, and "52_8" for "52" where the base went without saying.

Everything else is exact: 0.333 is not 1/3.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from conviction.answers.formulas.algebra import differ_clearly, render, value_of
from conviction.answers.formulas.markup import clean, enclosed, fold_words, split
from conviction.answers.formulas.parsing import (
    MOST_CHARACTERS,
    UnreadableError,
    exact,
    known_word,
    parse,
)


class Shape(StrEnum):
    """What kind of thing an answer is."""

    NUMBER = "number"
    PERCENT = "percent"
    BASED = "number in another base"
    EXPRESSION = "expression"
    WORDS = "words"
    TUPLE = "tuple"
    INTERVAL = "interval"
    SET = "set"
    UNION = "union"
    MATRIX = "matrix"
    RELATION = "relation"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True)
class Form:
    """An answer as it was read.

    Attributes:
        text: Its canonical form: LaTeX, or words in lower case.
        parts: The elements of tuples, sets, matrices and the like.
        number: The exact value of numbers and percentages.
        value: The value of numbers and expressions at a fixed point, where it is known.
    """

    shape: Shape
    text: str
    parts: "tuple[Form, ...]" = ()
    number: Fraction | None = None
    value: complex | None = None


_SEPARATORS = frozenset({",", ";", '"or"', '"and"', '","', '", and"', '"," and'})
_WORD_SEPARATOR = re.compile(r'(?<![A-Za-z"])(?:or|and|또는|그리고)(?![A-Za-z"])')
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}")
_BASED = re.compile(r'(\d[\dA-Z]*)\s*_\s*\{?\s*"?\s*(\w+)\s*"?\s*\}?')
# Ratios, times and dates: exact as they are written, and nothing to calculate.
_RATIO = re.compile(
    r'\d+(?:\s*:\s*\d+)+(?:\s*"?\s*[ap]\.?m\.?\s*"?)?|\d{1,4}([-/.])\d{1,2}\1\d{1,4}', re.IGNORECASE
)
_LETTERS = re.compile(r"[^\W\d_]+(?:(?:\s|[-'.&]|\. )[^\W\d_]+)*")
_QUOTED_END = re.compile(r'\s*(?:/?\s*"[^"]*"(?:\s*\^\s*\{?-?\d\}?)?)+$')
_UNIT_END = re.compile(
    r"(?<=[\d})°])(?:\s*(?:[kcmn]m|[kmn]g|ml|ft|in|mi|min|hrs?|mph|kph|cents?|dollars?|degrees?|"
    r"units?|inches|inch|feet|foot|miles?|meters?|hours?|minutes?|seconds?|sec|years?|days?|"
    r"[개명원살세분초시권장대마리번째도]+|시간|킬로미터|센티미터|미터)(?:/\w+|per\w+)?"
    r"(?:\s*\^\s*\{?[23]\}?)?|\s+[^\W\d_]{3,}(?:[\s-]+[^\W\d_]+)*|\s+[^\W\d_]{2}(?:\s+[^\W\d_]+)+"
    r"|(?:st|nd|rd|th)\b.*)$"
)
_PERCENT_END = re.compile(
    r'\s*(?:%|"?\s*(?:percent|per cent|퍼센트|프로)\s*"?)'
    r'(?:\s*"[^"]*"|\s+[^\W\d_]+(?:\s+[^\W\d_]+)*)?$'
)
# "xy" and "pqr", but neither "no" nor "dry".
_PRODUCT = re.compile(r"[^\Waeiou_]{1,2}|[^\Waeiouy_]{3}", re.ASCII | re.IGNORECASE)
_CURRENCY = re.compile(r'^(?:"?\s*(?:USD|US|EUR|KRW|Rs)\s*"?|[€£¥₩])\s*(?=[-\d.])|\s*[€£¥₩]$')
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "백만": 10**6,
    "천만": 10**7,
    "천": 10**3,
    "만": 10**4,
    "억": 10**8,
}
_SCALED = re.compile(rf'(\d+(?:\.\d+)?)\s*"?\s*({"|".join(_SCALES)})(?![A-Za-z])\s*"?')
_SCALED_RUN = re.compile(rf"(?:{_SCALED.pattern})+(?:(?<=[천만억])\s*\d+)?")
_EQUALS = frozenset({"=", r"\in"})
_COMPARISONS = frozenset({"<", ">", r"\le", r"\ge", r"\ne"})
_ASIDE = re.compile(
    r"\s*\(\s*(?:=|\\approx|approx|about|i\.?e)[^()]*\)$"
    r"|(?<=\d)\s+\([^\W\d_]{2,}[^()\d+*/^=]*\)$"
)
_COMPARISON = re.compile(r"(\\(?:le|ge|ne)(?![A-Za-z])|[<>])")
_OPERATOR = re.compile(r"[-+*/^<>|!\d]|\\(?:cdot|le|ge|ne|pm|frac|sqrt)(?![A-Za-z])")
_ARGUMENTS = re.compile(r"_\{[^{}]*\}|_\w|(?<=[A-Za-z'})])\([^()]*\)|\^\{?-1\}?|'|\|")


def read(answer: str) -> Form:
    """Read any text; what cannot be read is `OPAQUE`, and never an error."""
    if len(answer) > MOST_CHARACTERS:
        return Form(Shape.OPAQUE, " ".join(answer.split()))
    form = _read(clean(answer))
    return form if form and form.text else Form(Shape.WORDS, fold_words(answer) or "nothing")


def _read(text: str, depth: int = 0) -> Form | None:  # noqa: PLR0911  # one for each shape
    text = _ASIDE.sub("", text)
    if not text or depth > 5:
        return Form(Shape.OPAQUE, text) if text else None
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix.group(2), depth)
    text = text if depth else _THOUSANDS.sub(_without_commas, text)
    if words := _words(text):
        return words
    items = [item for item in split(_WORD_SEPARATOR.sub(";", text), _SEPARATORS) if item]
    if len(items) > 1:
        return _list(items, depth)
    text = items[0] if items else text
    exactly, *rounded = split(text, frozenset({r"\approx"}))
    if rounded:
        # "2\sqrt{3} \approx 3.46" is exact on the left, "x \approx 3.46" says nothing there.
        named = _assigned(split(exactly, _EQUALS)[-1])
        return _read(rounded[-1] if named else exactly, depth + 1)
    if len(split(text, _COMPARISONS)) > 1:
        return _comparison(text, depth)
    sides = [side for side in split(text, _EQUALS) if side]
    return _equation(sides, depth) if len(sides) > 1 else _structure("".join(sides), depth)


def _without_commas(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    outside = sum(map(before.count, "([{")) == sum(map(before.count, ")]}"))
    return re.sub("[ ,]", "", match.group()) if outside else match.group()


def _structure(text: str, depth: int) -> Form | None:
    union = split(text, frozenset({r"\cup"}))
    if len(union) > 1:
        return _collection(Shape.UNION, union, depth)
    if r"\pm" in text:
        above, below = text.replace(r"\pm", "+"), text.replace(r"\pm", "-")
        return _list([above.replace(r"\mp", "-"), below.replace(r"\mp", "+")], depth)
    if found := enclosed(text):
        opening, inside, closing = found
        items = split(inside, frozenset({",", ";"}))
        if (opening, closing) == (r"\{", r"\}") or (opening == "{" and len(items) > 1):
            return _list(items, depth)
        if len(items) > 1:
            interval = opening == "[" or closing == "]"
            shape = Shape.INTERVAL if interval else Shape.TUPLE
            return _collection(shape, items, depth, opening, closing)
        if opening == "{" or _words(inside):
            return _read(inside, depth + 1)
    return leaf(text)


def _comparison(text: str, depth: int) -> Form:
    """An inequality; its sides are in normal form, its truth is not looked at."""
    pieces = _COMPARISON.split(text)
    for position in range(0, len(pieces), 2):
        side = _read(pieces[position].strip(), depth + 1)
        pieces[position] = side.text if side else ""
    spaced = "".join(f"{piece} " if piece[:1] == "\\" else piece for piece in pieces)
    return Form(Shape.RELATION, spaced)


def leaf(text: str) -> Form:
    """Read a single number, expression or word, cleaned by `markup.clean`."""
    text = _CURRENCY.sub("", text).strip()
    percent = _PERCENT_END.search(text)
    if percent is None:
        return _single(text)
    form = _single(text[: percent.start()])
    if form.number is None:
        return _opaque(text)
    return Form(Shape.PERCENT, rf"{form.text}\%", number=form.number)


def _single(text: str) -> Form:  # noqa: PLR0911  # one for each shape
    if based := _BASED.fullmatch(text):
        return Form(Shape.BASED, f"{based.group(1)}_{{{based.group(2).casefold()}}}")
    if _RATIO.fullmatch(text):
        return Form(Shape.WORDS, "".join(text.replace('"', "").casefold().split()))
    if text == r"\emptyset":
        return Form(Shape.WORDS, "empty set")
    try:
        bare = _without_unit(_SCALED_RUN.sub(_scaled, text))
        node = parse(bare.removesuffix("°").strip() or text)
        if bare.endswith("°") and not isinstance(node, Fraction):
            return _opaque(text)  # "cos 30°"
        number = node if isinstance(node, Fraction) else None
        shape = Shape.EXPRESSION if number is None else Shape.NUMBER
        return Form(shape, render(node), number=number, value=value_of(node))
    except UnreadableError:
        return _words(text) or _opaque(text)
    except (ArithmeticError, RecursionError):
        # Too large to calculate, or undefined: equal to what is written in the same way only.
        return Form(Shape.WORDS, "".join(text.split()))


def _scaled(run: re.Match[str]) -> str:
    """Numbers with their scales, as in "2만 5천" and "5 million", written out."""
    rest = _SCALED.sub("", run.group()).strip()
    parts = [exact(number) * _SCALES[scale] for number, scale in _SCALED.findall(run.group())]
    return f"{sum(parts, exact(rest or '0'))} "


def _without_unit(text: str) -> str:
    bare = _QUOTED_END.sub("", text.strip())
    unit = _UNIT_END.search(bare)
    if not unit or any(map(known_word, re.findall("[A-Za-z]+", unit.group()))):
        return bare
    return bare[: unit.start()]


def _opaque(text: str) -> Form:
    return Form(Shape.OPAQUE, re.sub(r"\s+(?=\W)|(?<=[^\w\s])\s+", "", text))


def _words(text: str) -> Form | None:
    """Words: a quoted text, or letters that are no name of anything in a formula."""
    unquoted = text.replace('"', " ").strip("() '")
    plain = _LETTERS.fullmatch(unquoted) and re.search(r"[^\W\d_]{2}", unquoted)
    if not plain and not (text[:1] == '"' and "=" not in text):
        return None
    pieces = unquoted.split()
    if '"' not in text and (all(map(known_word, pieces)) or _PRODUCT.fullmatch(unquoted)):
        return None
    folded = fold_words(unquoted)
    separators = {"and", "or", "또는", "그리고"}
    if '"' not in text and separators & set(folded.split()) and all(len(p) < 4 for p in pieces):
        return None  # "x or y", "A and B"
    return Form(Shape.WORDS, folded) if folded else None


def _list(items: list[str], depth: int) -> Form | None:
    names = [match[0] for item in items if len(match := split(item, frozenset({"="}))) == 2]
    if len(names) == len(items) and len(set(names)) == len(names) > 1:
        # "x = 2, y = 3": a system, whose order does not matter but whose names do.
        sides = zip(names, [_read(item, depth + 1) for item in items], strict=True)
        pairs = sorted(f"{name}={side.text}" for name, side in sides if side)
        return Form(Shape.OPAQUE, ",".join(pairs))
    return _collection(Shape.SET, items, depth, r"\{", r"\}")


def _collection(
    shape: Shape, items: list[str], depth: int, opening: str = "", closing: str = ""
) -> Form | None:
    parts = [form for item in items if (form := _read(item, depth + 1))]
    if shape is Shape.SET:
        sets = [form.parts if form.shape is Shape.SET else (form,) for form in parts]
        parts = list({form.text: form for nested in sets for form in nested}.values())
    if shape in {Shape.SET, Shape.UNION}:
        parts.sort(key=lambda form: form.text)
        if len(parts) < 2:
            return parts[0] if parts else None
    between = r"\cup " if shape is Shape.UNION else ","
    text = opening + between.join(form.text for form in parts) + closing
    return Form(shape, text, tuple(parts))


def _matrix(inside: str, depth: int) -> Form:
    lines = [line.split("&") for line in inside.split(r"\cr") if line.strip()]
    rows = [[_read(cell, depth + 1) for cell in line] for line in lines]
    parts = tuple(cell for row in rows for cell in row if cell)
    body = r"\\".join("&".join(cell.text if cell else "" for cell in row) for row in rows)
    return Form(Shape.MATRIX, rf"\begin{{pmatrix}}{body}\end{{pmatrix}}", parts)


def _equation(sides: list[str], depth: int) -> Form | None:
    if len(sides) > 2 or _assigned(sides[0]):
        return _read(sides[-1], depth + 1)
    forms = [_read(side, depth + 1) for side in sides]
    if forms[0] and forms[0].shape is Shape.NUMBER:
        return forms[1]
    if None in forms:
        return forms[0] or forms[1]
    texts = [form.text for form in forms if form]
    # The right side comes first, so that a number can be compared with it.
    parts = tuple(form for form in reversed(forms) if form)
    return Form(Shape.RELATION, "=".join(texts), parts)


def _assigned(left: str) -> bool:
    """Whether a left side names what is on the right: "x", "f(2)", "(a, b)", "area", "AB"."""
    names = _ARGUMENTS.sub("", left)
    if _OPERATOR.search(names):
        return False
    runs = re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", re.sub(r'"[^"]*"', "", names))
    return all(len(run) == 1 or len(run) > 3 or run.isupper() for run in runs)


_ELEMENTS = frozenset({Shape.NUMBER, Shape.PERCENT, Shape.BASED, Shape.EXPRESSION, Shape.WORDS})
_ORDERED = frozenset({Shape.TUPLE, Shape.INTERVAL, Shape.MATRIX})
_UNORDERED = frozenset({Shape.SET, Shape.UNION})
_MANY = _ORDERED | _UNORDERED


def certainly_differ(first: Form, second: Form) -> bool:  # noqa: PLR0911  # one for each case
    """Whether two forms with different canonical texts are certainly different answers."""
    shapes = {first.shape, second.shape}
    if Shape.WORDS in shapes:
        return not _same_letters(first, second)
    if Shape.OPAQUE in shapes:
        return False
    if Shape.RELATION in shapes:
        return _relations_differ(first, second)
    if shapes <= _ELEMENTS:
        return _elements_differ(first, second)
    if len(shapes) > 1:
        # A union may come down to an interval; otherwise many are not one, nor a pair a set.
        return not (Shape.UNION in shapes and shapes <= _MANY)
    if len(first.parts) != len(second.parts):
        return first.shape in _ORDERED or first.shape is Shape.SET
    if first.shape in _ORDERED:
        return any(map(_parts_differ, first.parts, second.parts))
    if first.shape is Shape.SET:
        return any(all(_parts_differ(one, other) for other in second.parts) for one in first.parts)
    return False


def stand_for_the_same(first: Form, second: Form) -> bool:
    """Whether two ways of writing numbers may stand for the same: "50%" and "50", "52_8" and "52".

    Traces answer one question, so what one of them leaves unsaid another may have said.
    """
    for one, other in ((first, second), (second, first)):
        if one.shape is Shape.PERCENT and other.shape is Shape.NUMBER and one.number is not None:
            return other.number in {one.number, one.number / Fraction(100)}
        if one.shape is Shape.BASED and other.shape is Shape.NUMBER:
            return one.text.partition("_")[0] == other.text
    return False


def _parts_differ(first: Form, second: Form) -> bool:
    return first.text != second.text and certainly_differ(first, second)


def _elements_differ(first: Form, second: Form) -> bool:
    shapes = {first.shape, second.shape}
    if Shape.EXPRESSION not in shapes:
        return not stand_for_the_same(first, second)
    if len(shapes) == 2 and Shape.NUMBER not in shapes:
        return True
    if first.value is None or second.value is None:
        return False
    return differ_clearly(first.value, second.value)


def _relations_differ(first: Form, second: Form) -> bool:
    if first.shape is second.shape:
        return False
    relation, other = (first, second) if first.shape is Shape.RELATION else (second, first)
    if not relation.parts:
        return other.shape in _ELEMENTS  # an inequality, and a single thing
    right = relation.parts[0]
    # "2x + y = 0" is an equation, "m + n = 29" may well be a way to say 29.
    return other.shape in _MANY or right.number == 0 or _parts_differ(right, other)


def _same_letters(first: Form, second: Form) -> bool:
    """Whether a word may as well be the product of variables: "ab", and a times b."""
    if {first.shape, second.shape} != {Shape.WORDS, Shape.EXPRESSION}:
        return False
    one, other = (sorted(form.text.casefold().replace(r" \cdot ", "")) for form in (first, second))
    return one == other
