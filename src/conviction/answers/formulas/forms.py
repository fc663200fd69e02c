"""Answers as they were read: each has a key, and answers with equal keys are equal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction

from conviction.answers.formulas import values
from conviction.answers.formulas.algebra import Name, Node, Product, render

UNREAD = "not read: "
"""Begins the keys of answers that may be formulas, but are not understood."""
NOT_CALCULATED = "not calculated: "
"""Begins the keys of formulas without a value within the bounds, or where mpmath is missing."""
OPEN = (UNREAD, NOT_CALCULATED)

INFINITY = Name(r"\infty")
MINUS_INFINITY = Product(Fraction(-1), (INFINITY,))


EITHER_SIGN = "either sign"


class Shape(StrEnum):
    """What kind of thing an answer is."""

    NUMBER = "number"
    EXPRESSION = "expression"
    WORDS = "words"
    TUPLE = "tuple"
    SET = "set"
    MATRIX = "matrix"
    REALS = "set of real numbers"
    RELATION = "relation"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Form:
    """An answer as it was read.

    Attributes:
        key: Equal keys mean equal answers.
        parts: The elements of tuples, sets and matrices.
        node: The formula of numbers and expressions.
        name: What the answer was assigned to: "x" in "x = 5".
        value: A set of real numbers, as `reals` has it; `EITHER_SIGN` for two numbers by one sign.
    """

    shape: Shape
    key: str
    parts: "tuple[Form, ...]" = ()
    node: Node | None = None
    name: str = ""
    value: object = None

    @property
    def number(self) -> Fraction | None:
        """The exact value of a number."""
        return self.node if isinstance(self.node, Fraction) else None


def expression(node: Node, name: str = "") -> Form:
    """A number or formula; its key is its value."""
    if isinstance(node, Fraction):
        return Form(Shape.NUMBER, str(node), node=node, name=name)
    return Form(Shape.EXPRESSION, _calculated(node), node=node, name=name)


def _calculated(node: Node) -> str:
    if (isinstance(node, Name) and values.names(node)) or node in {INFINITY, MINUS_INFINITY}:
        return render(node)
    if not values.installed():
        return NOT_CALCULATED + render(node)
    try:
        return values.key_of(node)
    except (ArithmeticError, ValueError):
        return NOT_CALCULATED + render(node)


def zeros(node: Node, relation: str = "=") -> Form:
    """All points where `node` = 0; with "<" or "<=", where it is negative, or negative or zero."""
    if not values.installed():
        return Form(Shape.RELATION, f"{NOT_CALCULATED}{render(node)}{relation}0", node=node)
    try:
        key = values.key_of_zeros(node, sign=relation != "=")
    except (ArithmeticError, ValueError):
        return Form(Shape.RELATION, f"{NOT_CALCULATED}{render(node)}{relation}0", node=node)
    return Form(Shape.RELATION, f"points {relation} {key}", node=node)


def words(text: str) -> Form:
    """Words, or anything that is exact as it is written."""
    return Form(Shape.WORDS, text)


def collection(shape: Shape, parts: Sequence[Form], opening: str, closing: str) -> Form:
    """Parts between brackets; those of a set are sorted, and stay as often as they stand there."""
    ordered = list(parts)
    if shape is Shape.SET:
        pairs = [part.parts if part.value == EITHER_SIGN else (part,) for part in parts]
        ordered = sorted((part for pair in pairs for part in pair), key=lambda part: part.key)
    key = opened(f"{opening}{', '.join(part.key for part in ordered)}{closing}", ordered)
    return Form(shape, key, tuple(ordered))


def several(parts: Sequence[Form]) -> Form:
    """A list of answers: a set, or its only element."""
    return parts[0] if len(parts) == 1 else collection(Shape.SET, parts, "{", "}")


def either_sign(parts: Sequence[Form]) -> Form:
    r"""Both of "1 \pm 2", which are two elements of a set in which it stands."""
    return replace(several(parts), value=EITHER_SIGN)


def opened(key: str, parts: Iterable[Form]) -> str:
    """A key that says so where one of its parts could not be read or calculated."""
    for begin in OPEN:
        if any(part.key.startswith(begin) for part in parts):
            return begin + key
    return key
