r"""Sets of real numbers: intervals, inequalities, unions, differences.

"-1 < x \le 4", "(-1, 4]" and "x \in (-1, 5] \setminus (4, 5]" are one set.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import inf, isfinite

from conviction.answers.formulas.algebra import value_of
from conviction.answers.formulas.forms import (
    INFINITY,
    MINUS_INFINITY,
    Form,
    Shape,
    expression,
    opened,
    several,
)


@dataclass(frozen=True, slots=True)
class Bound:
    """Where an interval begins or ends; `after` says that it is just behind the number.

    So (1, 2] is from just after 1 to just after 2, and [1, 2) from before 1 to before 2.
    """

    number: float
    after: bool
    form: Form | None = None

    @property
    def place(self) -> tuple[float, bool]:
        """Where it is in the order of bounds."""
        return self.number, self.after


LOWEST, HIGHEST = Bound(-inf, after=True), Bound(inf, after=False)

Intervals = tuple[tuple[Bound, Bound], ...]
"""Intervals that do not touch, in order."""

LINE: Intervals = ((LOWEST, HIGHEST),)
POSITIVE: Intervals = ((Bound(0.0, after=True, form=expression(Fraction(0))), HIGHEST),)


def real(form: Form) -> float | None:
    """The value of a number or constant formula; None if it is not a real one."""
    node = form.node
    if node is None:
        return None
    if node in {INFINITY, MINUS_INFINITY}:
        return inf if node == INFINITY else -inf
    if form.shape is Shape.EXPRESSION and not (form.key[:1].isdigit() or form.key[:1] == "-"):
        return None
    value = value_of(node)
    if value is None or abs(value.imag) > 1e-9 * abs(value):
        return None
    return float(f"{value.real:.12g}")  # one number written in two ways is in one place


def interval(opening: str, low: Form, high: Form, closing: str) -> Intervals | None:
    """The interval between two ends; None if they are not real numbers in order."""
    begin, end = real(low), real(high)
    if begin is None or end is None or begin > end:
        return None
    first = Bound(begin, opening == "(", low) if isfinite(begin) else LOWEST
    last = Bound(end, closing == "]", high) if isfinite(end) else HIGHEST
    return ((first, last),) if first.place < last.place else ()


def point(form: Form) -> Intervals | None:
    """The set of one number."""
    return interval("[", form, form, "]")


def beyond(form: Form, relation: str) -> Intervals | None:
    """All numbers in a relation to one: "<", "<=", ">", ">=" or "!="."""
    number = real(form)
    if number is None or not isfinite(number):
        return None
    before, after = Bound(number, after=False, form=form), Bound(number, after=True, form=form)
    return {
        "<": ((LOWEST, before),),
        "<=": ((LOWEST, after),),
        ">": ((after, HIGHEST),),
        ">=": ((before, HIGHEST),),
        "!=": ((LOWEST, before), (after, HIGHEST)),
    }[relation]


def union(sets: Iterable[Intervals]) -> Intervals:
    """All that is in one of the sets."""
    found: list[tuple[Bound, Bound]] = []
    for low, high in sorted((one for many in sets for one in many), key=lambda i: i[0].place):
        if found and low.place <= found[-1][1].place:
            begin, end = found[-1]
            found[-1] = (begin, max(end, high, key=lambda bound: bound.place))
        else:
            found.append((low, high))
    return tuple(found)


def complement(some: Intervals) -> Intervals:
    """All real numbers that are not in a set."""
    bounds = [LOWEST, *(bound for one in some for bound in one), HIGHEST]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple((low, high) for low, high in pairs if low.place < high.place)


def intersection(sets: Iterable[Intervals]) -> Intervals:
    """All that is in each of the sets."""
    return complement(union(complement(one) for one in sets))


def form_of(some: Intervals, name: str = "") -> Form:
    """The answer that a set of real numbers is.

    One open interval is written like a pair, and a set of points like a list, so these are one.
    """
    if not some:
        return Form(Shape.REALS, "empty set", name=name, value=some)
    if all(low.number == high.number for low, high in some):
        points = several([low.form for low, _ in some if low.form])
        return Form(points.shape, points.key, points.parts, points.node, name, some)
    texts: list[str] = []
    parts: list[Form] = []
    for low, high in some:
        ends = [low.form or expression(MINUS_INFINITY)]
        ends.append(high.form or expression(INFINITY))
        parts += ends
        inside = ", ".join(end.key for end in ends)
        texts.append(f"{'(' if low.after else '['}{inside}{']' if high.after else ')'}")
    return Form(Shape.REALS, opened(" or ".join(texts), parts), tuple(parts), None, name, some)


def intervals_of(form: Form) -> Intervals | None:
    """The set of real numbers that an answer is, if it is one."""
    if isinstance(form.value, tuple):
        return form.value  # type: ignore[return-value]
    if form.shape is Shape.SET:
        points = [point(part) for part in form.parts]
        return None if None in points else union(filter(None, points))
    if form.shape in {Shape.NUMBER, Shape.EXPRESSION}:
        return point(form)
    return None
