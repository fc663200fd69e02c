"""Which answers are certainly different, without calculating much."""

from fractions import Fraction

from conviction.answers.formulas.numeric import differ_clearly
from conviction.answers.formulas.shapes import Form, Shape

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
