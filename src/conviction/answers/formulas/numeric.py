"""The value of a formula at one fixed point, to tell formulas apart that clearly differ."""

import cmath
import math
from collections.abc import Callable
from fractions import Fraction
from zlib import crc32

from conviction.answers.formulas.algebra import Call, Name, Node, Power, Product, Sum

_CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\infty": math.inf}
_TOLERANCE = 1e-5


def _real(rounding: Callable[[float], int]) -> Callable[[complex], complex]:
    return lambda value: complex(rounding(value.real))


_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: 1 / cmath.tan(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "exp": cmath.exp,
    "abs": lambda x: complex(abs(x)),
    "floor": _real(math.floor),
    "ceil": _real(math.ceil),
}
FUNCTIONS = frozenset(_FUNCTIONS) | {"log", "binom", "factorial"}
"""Names of all functions that a formula may call."""


def value_of(node: Node) -> complex | None:
    """The value where each variable has a positive number derived from its name.

    None where the value is unknown, infinite, or too large for floating point.
    """
    try:
        value = _value(node)
    except (ArithmeticError, ValueError):
        return None
    return value if cmath.isfinite(value) else None


def differ_clearly(first: complex, second: complex) -> bool:
    """Whether two values are further apart than rounding, or a rounded decimal, explains."""
    return abs(first - second) > _TOLERANCE * max(1.0, abs(first), abs(second))


def _value(node: Node) -> complex:
    match node:
        case Fraction():
            return complex(node)
        case Name(text):
            return _CONSTANTS.get(text) or 0.3 + (crc32(text.encode()) % 10_007) / 7_000
        case Power(base, exponent):
            return _value(base) ** _value(exponent)
        case Product(coefficient, factors):
            return complex(coefficient) * math.prod(map(_value, factors))
        case Sum(terms):
            return sum(map(_value, terms))
        case Call(function, arguments):
            return _call(function, [_value(argument) for argument in arguments])


def _call(function: str, arguments: list[complex]) -> complex:
    if function in _FUNCTIONS:
        return _FUNCTIONS[function](arguments[0])
    # "log" is to the base of 10 for some and of e for others, so its value is unknown.
    if function == "log" and len(arguments) == 2:
        return cmath.log(arguments[1]) / cmath.log(arguments[0])
    raise ValueError
