r"""The shapes that answers come in, and how to read them.

What is read generously, since all traces answer the same question:

- a unit, a currency, a degree sign and a percent sign are left out of single numbers: "15 cm^2" and
  "\$15" are 15, "50%" is 50 and not 0.5;
- the base of a number counts: "52_8" is neither "52" nor "52_9", and "52_{10}" is 52;
- "x = 5" is 5, "x \in (0, 1)" is (0, 1), and a chain "a = b = 5" is its last part;
- a list is a set, in which elements count as often as they stand there; a pair in parentheses keeps
  its order;
- "y = 2x + 1" is 2x + 1, and every equation of that line is, too.

Everything else is exact: 0.333 is not 1/3.
"""

import re
from fractions import Fraction

from conviction.answers.formulas.equations import (
    COMPARISONS,
    read_comparison,
    read_equation,
    system,
)
from conviction.answers.formulas.forms import (
    EITHER_SIGN,
    NOT_CALCULATED,
    UNREAD,
    Form,
    Shape,
    collection,
    either_sign,
    expression,
    opened,
    several,
    words,
)
from conviction.answers.formulas.markup import clean, enclosed, fold, fold_words, pieces, split
from conviction.answers.formulas.numerals import (
    abbreviated,
    bare_number,
    joined_thousands,
    written_out,
)
from conviction.answers.formulas.parsing import (
    MOST_CHARACTERS,
    UnreadableError,
    exact,
    parse,
)
from conviction.answers.formulas.prose import read_words, unread, without_condition
from conviction.answers.formulas.quantities import read_quantity
from conviction.answers.formulas.reals import (
    LINE,
    POSITIVE,
    Intervals,
    complement,
    form_of,
    intersection,
    interval,
    intervals_of,
    union,
)
from conviction.answers.formulas.spoken import spoken_number
from conviction.answers.formulas.values import one_answer

_DEEPEST = 6
_OR = frozenset({'"or"', '", or"', '"or "'})
_AND = frozenset({'"and"', '","', '", and"', '"," and'})
_SEPARATORS = frozenset({",", ";"}) | _OR | _AND
_WORD_SEPARATOR = re.compile(
    r'(?<![A-Za-z"])(?:(or)|(?:and|sowie|und))(?![A-Za-z"])|(또는|혹은)|(?:그리고|및)(?![가-힣])'
)
_MATRIX = re.compile(r"\\begin\{((?:[pbvBV]|small)?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}")
_ROWS = re.compile(
    r"\\begin\{(cases|aligned|align\*?|gathered|split|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}"
)
_NAMED_ELEMENT = re.compile(r"[A-Za-z](?:\s*\\in\s*\\R)?")
_LOGIC = re.compile(r"\\(?:l(?:and|or|not)|wedge|vee|neg)(?![A-Za-z])|[∧∨¬]")  # noqa: RUF001
_AROUND_LOGIC = re.compile(r"\s|\$|\\[()\[\]]|\\boxed")
_COMPARED = re.compile(r"[<>=≤≥≠∈]|\\(?:[lg]eq?|neq?|in)(?![A-Za-z])")
_DIGITS = r"-?\s?\d[\dA-Fa-f]*(?:\.[\dA-Fa-f]+)?"
_BASED = re.compile(
    rf'[({{]?\s*({_DIGITS})\s*[)}}]?\s*(?:_|"?\s*(?:in\s+)?base)\s*[({{]*\s*'
    rf'(?:"?\s*(?:base\s+)?(\d{{1,2}}|[a-z]{{2,9}})\s*"?)\s*[)}}]*\s*"?'
)
_ASIDE = re.compile(
    r"\s*\(\s*(?:=|\\approx|approx|about|i\.?e)[^()]*\)$"
    r"|(?<=\d)\s+\([^\W\d_]{2,}[^()\d+*/^=]*\)$"
)
_LABEL = re.compile(r'^(?:\( ?"?[A-H]"? ?\)|"[A-H]\)")\s+(?=[-\d\\.A-Za-z])')
_MODULUS = re.compile(
    r'\s*(?:\\pmod|\\bmod|\\mod|\(\s*\\?[bp]?mod|\(\s*"mod"|"?\(?\s*(?<![A-Za-z])modulo|(?<![A-Za-z])mod(?![A-Za-z])|"mod")'
    r'\s*"?\s*\{?\s*(.+?)\s*\}?\s*"?\s*\)?$'
)
_APPROX = frozenset({r"\approx"})
_EQUALS = frozenset({"=", r"\in", r"\equiv"})
# As in "x=1 y=2", without a comma.
_ASSIGNMENT = re.compile(r"[A-Za-z](?:_\w{1,20})?\s?=\s?[^\s=]+")
_ASSIGNMENTS = re.compile(rf"{_ASSIGNMENT.pattern}(?: {_ASSIGNMENT.pattern})+")
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
_QUOTED_NUMBER = re.compile(r'"[^"\d]*\d[^"]*"')
_ALL_BUT = re.compile(
    r'"?(?:all|any)\s+reals?(?:\s+numbers?)?\s+(?:except|other than|excluding|but)(?:\s+for)?"?'
    r"\s+(.+)",
    re.IGNORECASE,
)
_UNLIKE = re.compile(r"[A-Za-z]\s*\\ne(?![A-Za-z])\s*")
_SET_OPERATIONS = frozenset({r"\cup", r"\cap", r"\setminus", '"U"'})
_SETS = frozenset({Shape.SET, Shape.REALS})
_LINES: dict[str, Intervals] = {
    r"\R": LINE,
    **dict.fromkeys((r"\R^+", r"\R^{+}", r"\R_+", r"\R_{+}", r"\R_{>0}"), POSITIVE),
}


def read(answer: str) -> Form:
    """Read any text; what cannot be read has a key that says so, and nothing is ever raised."""
    if _WHOLE.fullmatch(answer):
        return expression(Fraction(answer))  # the most frequent answer needs no more
    if len(answer) > MOST_CHARACTERS:
        return Form(Shape.OTHER, UNREAD + " ".join(answer.split()))
    if _LOGIC.search(answer) and not _COMPARED.search(answer):
        return Form(Shape.OTHER, UNREAD + _AROUND_LOGIC.sub("", fold(answer)).strip(".*`"))
    try:
        text, condition = without_condition(written_out(clean(abbreviated(answer))))
        while (found := enclosed(text)) and found[0] == "{" and ", " not in found[1]:
            text = found[1]
        with one_answer():
            form = _read(joined_thousands(_LABEL.sub("", text)))
    except (ArithmeticError, ValueError, RecursionError):
        form, condition = Form(Shape.OTHER, UNREAD + " ".join(answer.split())), ""
    if form is None or not form.key:
        form = words(fold_words(answer) or "nothing")
    return Form(form.shape, f"{form.key} where {condition}") if condition else form


def _read(text: str, depth: int = 0) -> Form | None:  # noqa: PLR0911  # one for each case
    """What a text is; None if nothing is left of it."""
    text = _ASIDE.sub("", text).strip()
    if depth > _DEEPEST:
        return Form(Shape.OTHER, UNREAD + "".join(text.split()))
    if not text:
        return None
    if based := read_based(text):
        return based
    if key := read_quantity(text):
        return words(key)
    if _QUOTED_NUMBER.fullmatch(text):
        return _read(text.strip('" '), depth + 1)
    if (but := _ALL_BUT.fullmatch(text)) and (form := _read(but[1], depth + 1)):
        some = intervals_of(form)
        return words(fold_words(text)) if some is None else form_of(complement(some))
    for reader in (_rows, _prose, _congruence, _list, _approximation, _relation):
        if form := reader(text, depth):
            return form
    return _structure(text, depth)


def _rows(text: str, depth: int) -> Form | None:
    """Matrices, and rows of equations or cases."""
    inside = text
    while (found := enclosed(inside)) and found[1].startswith("\\begin"):
        inside = found[1]
    if matrix := _MATRIX.fullmatch(inside):
        if matrix[1] == "array" and re.search(r"=|\\le|\\ge|[<>]", matrix[2]):
            return _lines(matrix[2], depth)
        return _matrix(matrix[1], matrix[2], depth)
    rows = _ROWS.fullmatch(inside.removeprefix(r"\{").strip())
    return _lines(rows[2], depth) if rows else None


def _lines(inside: str, depth: int) -> Form | None:
    lines = [line.strip(" ,;") for line in inside.split(r"\cr") if line.strip(" ,;")]
    cells = [[cell.strip(" ,") for cell in line.split("&")] for line in lines]
    if any(
        len(line) > 1 and line[1][:1] not in {"=", "<", ">"} and "\\le" not in line[1][:3]
        for line in cells
    ):
        pieces = [[_read(cell, depth + 1) for cell in line] for line in cells]
        rows = [collection(Shape.TUPLE, [c for c in row if c], "case (", ")") for row in pieces]
        return collection(Shape.SET, rows, "{", "}")
    return _read(", ".join("".join(line) for line in cells), depth + 1)


def _matrix(kind: str, inside: str, depth: int) -> Form:
    lines = [line.split("&") for line in inside.split(r"\cr") if line.strip()]
    rows = [[_read(cell, depth + 1) for cell in line] for line in lines]
    parts = [
        collection(Shape.TUPLE, [cell or words("empty") for cell in row], "[", "]") for row in rows
    ]
    name = "determinant " if kind in {"vmatrix", "Vmatrix"} else "matrix "
    return collection(Shape.MATRIX, parts, name, "")


def _prose(text: str, depth: int) -> Form | None:
    del depth
    return read_words(text)


def _congruence(text: str, depth: int) -> Form | None:
    r"""A residue: "x \equiv 3 \pmod 7" and "3 mod 7"."""
    found = _MODULUS.search(text)
    if found is None or not text[: found.start()].strip():
        return None
    sides = split(text[: found.start()], _EQUALS)
    rest, modulus = _read(sides[-1], depth + 1), _read(found[1].strip("() {}"), depth + 1)
    if rest is None or modulus is None:
        return None
    size = modulus.number
    if size and size.denominator == 1:
        rest = several([_residue(part, size) for part in rest.parts or (rest,)])
    return Form(Shape.OTHER, opened(f"{rest.key} modulo {modulus.key}", (rest, modulus)))


def _residue(part: Form, size: object) -> Form:
    number = part.number
    return expression(number % size) if number is not None and number.denominator == 1 else part  # type: ignore[operator]


def _list(text: str, depth: int) -> Form | None:
    marked = _WORD_SEPARATOR.sub(lambda m: ' "or" ' if m[1] or m[2] else ' "and" ', text)
    items = [item for item in split(marked, _SEPARATORS) if item]
    if len(items) < 2:  # not a list
        return _read(items[0], depth + 1) if items and items[0] != text else None
    if unlike := _UNLIKE.match(items[0]):
        # "x \ne 2, 3"
        items[1:] = [item if len(item.split()) > 1 else unlike[0] + item for item in items[1:]]
    forms = [form for item in items if (form := _read(item, depth + 1))]
    return _joined(forms, marked, depth, any_of=len(split(marked, _OR)) > 1)


def _joined(forms: list[Form], text: str, depth: int, *, any_of: bool) -> Form | None:
    named = [form.name for form in forms]
    inequalities = [form.value for form in forms if form.shape is Shape.REALS and form.name]
    if len(inequalities) == len(forms) and len(set(named)) == 1:
        sets = [value for form in forms if (value := intervals_of(form)) is not None]
        return form_of(union(sets) if any_of else intersection(sets), named[0])
    if all(named) and len(set(named)) == len(named):
        if any_of:
            parts = [Form(form.shape, f"{form.name}={form.key}") for form in forms]
            return collection(Shape.SET, parts, "{", "}")
        return system(forms)
    if len(set(named)) > 1 and any_of and len(groups := split(text, _OR | {";"})) > 1:
        parts = [form for group in groups if (form := _read(group, depth + 1))]
        return several(parts) if parts else None
    if len(set(filter(None, named))) > 1:
        # "x = 1, y = 2, x = 2, y = 1": which belong together, only their order says.
        return collection(Shape.TUPLE, [words(f"{f.name}={f.key}") for f in forms], "", "")
    return several(forms) if forms else None


def _approximation(text: str, depth: int) -> Form | None:
    r"""The left of "2\sqrt{3} \approx 3.46", which is exact, but the right of "x \approx 3.46"."""
    exactly, *rounded = split(text, _APPROX)
    if not rounded:
        return None
    left = _read(exactly, depth + 1)
    last = split(exactly, _EQUALS)[-1]
    told = left is not None and (
        left.number is not None or bool(re.search(r"\d|\\pi|\\sqrt", last))
    )
    return left if told else _read(rounded[-1], depth + 1)


def _relation(text: str, depth: int) -> Form | None:
    if len(split(text, COMPARISONS)) > 1:
        return read_comparison(text, lambda side: _read(side, depth + 1))
    sides = [side for side in split(text, _EQUALS) if side]
    if len(sides) > 2 and _ASSIGNMENTS.fullmatch(text):
        return _read(", ".join(_ASSIGNMENT.findall(text)), depth + 1)
    if len(sides) > 1:
        return read_equation(sides, lambda side: _read(side, depth + 1))
    return _read(sides[0], depth + 1) if sides and sides[0] != text else None


def _structure(text: str, depth: int) -> Form | None:
    if known := _LINES.get(text.replace(" ", "")):
        return form_of(known)
    if text == r"\emptyset":
        return form_of(())
    if form := _set_operation(text, depth):
        return form
    found = enclosed(text)
    if (r"\pm" in text or r"\mp" in text) and not (found and found[0] == r"\{"):
        above, below = text.replace(r"\pm", "+"), text.replace(r"\pm", "-")
        signs = (above.replace(r"\mp", "-"), below.replace(r"\mp", "+"))
        return either_sign([form for sign in signs if (form := _read(sign, depth + 1))])
    return (_bracketed(*found, depth) if found else None) or leaf(text)


def _set_operation(text: str, depth: int) -> Form | None:
    operands, operations = pieces(text, _SET_OPERATIONS)
    if not operations:
        return None
    forms = [_read(operand, depth + 1) for operand in operands]
    sets = [_reals(form) if form else None for form in forms]
    if None not in sets:
        found, *others = [one for one in sets if one is not None]
        for operation, other in zip(operations, others, strict=True):
            if operation in {r"\cup", '"U"'}:
                found = union((found, other))
            else:
                found = intersection((found, other if operation == r"\cap" else complement(other)))
        return form_of(found)
    parts = [form for form in forms if form]
    if len(set(operations)) == 1 and operations[0] != r"\setminus":
        return collection(Shape.SET, parts, f"{operations[0]} of ", "")
    return collection(Shape.TUPLE, parts, f"{' '.join(operations)} of ", "")


def _reals(form: Form) -> Intervals | None:
    """The set of real numbers that stands in a union: here, a pair is an open interval."""
    if form.shape is Shape.TUPLE and len(form.parts) == 2 and form.key.startswith("("):
        return interval("(", form.parts[0], form.parts[1], ")")
    return intervals_of(form)


def _bracketed(  # noqa: PLR0911  # one for each pair of brackets
    opening: str, inside: str, closing: str, depth: int
) -> Form | None:
    if opening in {r"\lfloor", r"\lceil"}:
        return None
    items = split(inside, frozenset({",", ";"}))
    if opening == r"\{":
        condition = split(inside, frozenset({"|", ":"}))
        if len(condition) == 2:
            return _described(condition[0], condition[1], depth)
    if opening == r"\{" or (opening == "{" and len(items) > 1):
        parts = [form for item in items if (form := _read(item, depth + 1))]
        alone = parts[0] if len(parts) == 1 and (not depth or opening == "{") else None
        if alone and (alone.name or alone.shape not in _SETS or alone.value == EITHER_SIGN):
            return alone  # "{5}", "{x > 2}"
        return collection(Shape.SET, parts, "{", "}")
    if len(items) == 1:
        return _read(inside, depth + 1)
    parts = [form for item in items if (form := _read(item, depth + 1))]
    if len(parts) == 2 and (opening, closing) != ("(", ")") and opening != r"\langle":
        if found := interval(opening, parts[0], parts[1], closing):
            return form_of(found)
        return collection(Shape.TUPLE, parts, opening, closing)
    return collection(Shape.TUPLE, parts, "(", ")")


def _described(element: str, condition: str, depth: int) -> Form | None:
    """A set by what its elements have in common: "{x | x > 2}" is "x > 2"."""
    form = _read(condition, depth + 1)
    if form is None or _NAMED_ELEMENT.fullmatch(element):
        return form
    key = opened(f"set of {''.join(element.split())} where {form.key}", (form,))
    return Form(Shape.OTHER, key)


def read_based(text: str) -> Form | None:
    """A number with its base, such as "52_8" and "52 base 8"; None if it is none."""
    found = _BASED.fullmatch(text)
    if found is None:
        return None
    said = found[2].casefold()
    base = spoken_number(said) if said.isalpha() else exact(said)
    digits = "".join(found[1].split()).upper()
    if base == 10 and not any(map(str.isalpha, digits)):
        return expression(exact(digits))
    sign = "-" if digits[:1] == "-" else ""
    return words(f"{sign}{digits.lstrip('-0') or '0'} to base {said if base is None else base}")


def leaf(text: str) -> Form:
    """Read a single number, expression or word, cleaned by `markup.clean`."""
    if based := read_based(text):
        return based
    bare = bare_number(text)
    for candidate in dict.fromkeys((bare, text)):
        try:
            return expression(parse(candidate))
        except UnreadableError:
            continue
        except (ArithmeticError, RecursionError):
            # Too large to calculate, or undefined.
            return Form(Shape.OTHER, NOT_CALCULATED + "".join(candidate.split()))
    return read_words(text) or unread(text)
