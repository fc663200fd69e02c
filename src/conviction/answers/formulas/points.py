"""The points at which formulas are calculated; they are the same for all formulas."""

from functools import cache
from hashlib import sha256
from importlib import import_module
from typing import Any, Literal, NamedTuple

DIGITS = 120
"""With which formulas are calculated."""


class Place(NamedTuple):
    """Where the variables of formulas are at one point: from `least` on, `span` far at most."""

    least: float
    span: float
    negative: Literal["none", "some", "others", "all"] = "none"
    """Some and others overlap: of two variables, one is negative and the other is not."""
    multiple_of: int = 0
    """1 for whole numbers, 2 for even ones."""


POINTS = (
    Place(0.2, 1),
    Place(0.9, 1),
    Place(0.4, 1, negative="some"),
    Place(1.2, 1, negative="all"),
    Place(3, 9, negative="others"),
    Place(110, 90),
    Place(110, 90, negative="all"),
    Place(100, 400, multiple_of=1),
    Place(100, 400, multiple_of=2),
)
_INDICES = frozenset("ijklr")
_OFTEN_SMALLER = 6
"""How much smaller they are among whole numbers: of n things, k are chosen."""
_SALT = 894
"""So that hardly any two letters are at the same whole number."""
NEAR = 4
"""At these points, a formula must have a value within the bounds."""


@cache
def context_of_values() -> Any:
    """The context of mpmath in which formulas are calculated."""
    context = import_module("mpmath").MPContext()
    context.dps = DIGITS
    return context


@cache
def coordinate(name: str, point: int) -> Any:
    """The value of a variable at a point: a number that no formula expects."""
    place = POINTS[point]
    digest = sha256(f"{name} {_SALT}{point}".encode()).digest()
    share = context_of_values().mpf(int.from_bytes(digest, "big")) / 2**256
    value = place.least + share * place.span
    if place.multiple_of:
        value /= _OFTEN_SMALLER if name in _INDICES else 1
        value = context_of_values().floor(value / place.multiple_of) * place.multiple_of
    bits = ord(name[0]) + len(name)
    negative = {"none": 0, "some": bits & 1, "others": bits & 2, "all": 1}
    return -value if negative[place.negative] else value
