"""A normal form for formulas, with exact arithmetic, and their value at one fixed point.

The form is cheap rather than complete: formulas with the same normal form are equal, formulas with
different ones may be equal all the same. Where their values clearly differ, they are not.
"""

import cmath
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from zlib import crc32

MOST_BITS = 12_000
"""Size of the largest whole numbers that are calculated exactly (about 3,600 digits)."""


_LARGEST_RADICAND = 10_000_000
_HALF = Fraction(1, 2)
CONSTANTS: dict[str, complex] = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\infty": math.inf}


class TooLargeError(ArithmeticError):
    """A number would be too large to write down."""


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, or a constant such as pi."""

    text: str


_IMAGINARY = Name("i")


@dataclass(frozen=True, slots=True)
class Call:
    """A function of one or two arguments."""

    function: str
    arguments: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Power:
    """`base` to the power of `exponent`."""

    base: "Node"
    exponent: "Node"


@dataclass(frozen=True, slots=True)
class Product:
    """A rational number times factors, which are sorted and neither numbers nor products."""

    coefficient: Fraction
    factors: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Sum:
    """Two or more sorted terms with whole coefficients that have no factor in common.

    No two of them differ by a rational factor only, and the first coefficient is positive.
    """

    terms: "tuple[Node, ...]"


Node = Fraction | Name | Call | Power | Product | Sum


def add(terms: Iterable[Node]) -> Node:
    """The sum, with like terms collected and their common rational factor taken out."""
    collected: dict[tuple[Node, ...], Fraction] = {}
    for term in terms:
        for coefficient, factors in _terms(term):
            total = collected.get(factors, Fraction(0)) + coefficient
            collected[factors] = _bounded(total)
    found = [(factors, number) for factors, number in collected.items() if number]
    if len(found) < 2:
        return _product(found[0][1], found[0][0]) if found else Fraction(0)
    found.sort(key=lambda term: render(_product(Fraction(1), term[0])) if term[0] else "")
    common = _common_factor([number for _, number in found])
    return _product(common, (Sum(tuple(_product(n / common, f) for f, n in found)),))


def multiply(factors: Iterable[Node]) -> Node:
    """The product, with powers of the same base collected."""
    coefficient = Fraction(1)
    exponents: dict[Node, list[Node]] = {}
    for factor in factors:
        number, rest = _split_coefficient(factor)
        coefficient = _bounded(coefficient * number)
        for part in rest:
            power_of = part if isinstance(part, Power) else Power(part, Fraction(1))
            exponents.setdefault(power_of.base, []).append(power_of.exponent)
    collected: list[Node] = []
    for base, found in exponents.items():
        number, rest = _split_coefficient(power(base, found[0] if len(found) == 1 else add(found)))
        coefficient = _bounded(coefficient * number)
        collected.extend(rest)
    if not coefficient:
        return Fraction(0)
    return _product(coefficient, tuple(sorted(collected, key=render)))


def power(base: Node, exponent: Node) -> Node:  # noqa: PLR0911  # one for each case
    """The power; roots of rational numbers become multiples of roots without squares."""
    if exponent == 1:
        return base
    if exponent == 0 and base != 0:
        return Fraction(1)
    if isinstance(exponent, Fraction):
        if isinstance(base, Fraction):
            return _rational_power(base, exponent)
        if exponent.denominator == 1:
            if base == _IMAGINARY:
                return (Fraction(1), base, Fraction(-1), _product(Fraction(-1), (base,)))[
                    exponent.numerator % 4
                ]
            if isinstance(base, Power):
                return power(base.base, multiply([base.exponent, exponent]))
            if isinstance(base, Product):
                number = _whole_power(base.coefficient, exponent.numerator)
                return multiply([number, *(power(factor, exponent) for factor in base.factors)])
    return Power(base, exponent)


def solved_for(unknown: Node, node: Node, names: Callable[[Node], frozenset[str]]) -> Node | None:
    """What a variable is where `node` = 0, if it stands there to the first power only.

    None if it does not, or where its coefficient depends on other variables.
    """
    slope, rest = split_linear(unknown, node, names) or (None, None)
    if slope is None or rest is None or names(slope):
        return None
    return multiply([Fraction(-1), rest, power(slope, Fraction(-1))])


def split_linear(
    unknown: Node, node: Node, names: Callable[[Node], frozenset[str]]
) -> tuple[Node, Node] | None:
    """`a` and `b` of `a` times the unknown plus `b`; None if it is not of this form.

    The unknown is a variable, or a function of variables that stand nowhere else.
    """
    slopes: list[Node] = []
    rest: list[Node] = []
    for coefficient, factors in _terms(node):
        others = [factor for factor in factors if factor != unknown]
        if any(names(unknown) & names(factor) for factor in others):
            return None
        product = multiply([coefficient, *others])
        (rest if len(others) == len(factors) else slopes).append(product)
    return (add(slopes), add(rest)) if slopes else None


def factors_of(node: Node) -> list[Node]:
    """All factors of the terms of a sum."""
    return [factor for _, factors in _terms(node) for factor in factors]


def _rational_power(base: Fraction, exponent: Fraction) -> Node:
    if exponent.denominator == 1:
        return _whole_power(base, exponent.numerator)
    if exponent.denominator == 2 and base > 0:
        # (p/q)^(n + 1/2) = (p/q)^n sqrt(pq) / q
        outside, inside = _without_squares(base.numerator * base.denominator)
        number = _whole_power(base, math.floor(exponent)) * Fraction(outside, base.denominator)
        return _product(_bounded(number), (Power(Fraction(inside), _HALF),) if inside > 1 else ())
    return Power(base, exponent)


def _whole_power(base: Fraction, exponent: int) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and abs(exponent) * bits > MOST_BITS:
        raise TooLargeError
    return base**exponent


def _without_squares(number: int) -> tuple[int, int]:
    """`a` and `b` with a² b = number, `b` free of squares if the number is not too large."""
    root = math.isqrt(number)
    if root * root == number:
        return root, 1
    outside, divisor = 1, 2
    while number <= _LARGEST_RADICAND and divisor * divisor <= number:
        while number % (divisor * divisor) == 0:
            number //= divisor * divisor
            outside *= divisor
        divisor += 1
    return outside, number


def _terms(node: Node) -> list[tuple[Fraction, tuple[Node, ...]]]:
    coefficient, factors = _split_coefficient(node)
    if len(factors) == 1 and isinstance(factors[0], Sum):
        parts = map(_split_coefficient, factors[0].terms)
        return [(coefficient * number, rest) for number, rest in parts]
    return [(coefficient, factors)]


def _common_factor(numbers: list[Fraction]) -> Fraction:
    """The number to divide by for whole numbers without a common factor, the first positive."""
    size = Fraction(
        math.gcd(*(number.numerator for number in numbers)),
        math.lcm(*(number.denominator for number in numbers)),
    )
    return _bounded(size if numbers[0] > 0 else -size)


def _split_coefficient(node: Node) -> tuple[Fraction, tuple[Node, ...]]:
    match node:
        case Fraction():
            return node, ()
        case Product(coefficient, factors):
            return coefficient, factors
        case _:
            return Fraction(1), (node,)


def _product(coefficient: Fraction, factors: tuple[Node, ...]) -> Node:
    if not factors:
        return coefficient
    if coefficient == 1 and len(factors) == 1:
        return factors[0]
    return Product(coefficient, factors)


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS:
        raise TooLargeError
    return number


def render(node: Node) -> str:  # noqa: PLR0911  # one for each kind of node
    """The formula as LaTeX that `parsing.parse` reads back as the same node."""
    match node:
        case Fraction():
            return str(node)
        case Name(text):
            return text
        case Call(function, arguments):
            return _render_call(function, [render(argument) for argument in arguments])
        case Power(base, exponent):
            if exponent == _HALF:
                return f"\\sqrt{{{render(base)}}}"
            plain = isinstance(base, Name) or (
                isinstance(base, Fraction) and base.denominator == 1 and base >= 0
            )
            return f"{render(base) if plain else f'({render(base)})'}^{{{render(exponent)}}}"
        case Product(coefficient, factors):
            return _render_product(coefficient, factors)
        case Sum(terms):
            return "+".join(map(render, terms)).replace("+-", "-")


def _render_call(function: str, arguments: list[str]) -> str:  # noqa: PLR0911  # one for each
    if function == "abs":
        return f"|{arguments[0]}|"
    if function in {"floor", "ceil"}:
        return f"\\l{function} {arguments[0]}\\r{function}"
    if function == "factorial":
        return f"({arguments[0]})!"
    if function == "int":
        name, low, high, body = arguments
        return rf"\int_{{{low}}}^{{{high}}}({body})d{name}"
    if function in {"sum", "prod"}:
        name, low, high, body = arguments
        return rf"\{function}_{{{name}={low}}}^{{{high}}}({body})"
    if function == "binom":
        return f"\\binom{{{arguments[0]}}}{{{arguments[1]}}}"
    if len(arguments) == 2:
        return f"\\{function}_{{{arguments[0]}}}({arguments[1]})"
    return f"\\{function}({arguments[0]})"


def _render_product(coefficient: Fraction, factors: tuple[Node, ...]) -> str:
    above: list[str] = []
    below: list[str] = []
    for factor in factors:
        exponent = factor.exponent if isinstance(factor, Power) else None
        if isinstance(factor, Power) and isinstance(exponent, Fraction) and exponent < 0:
            below.append(_render_factor(power(factor.base, -exponent)))
        else:
            above.append(_render_factor(factor))
    if coefficient.denominator != 1:
        below.insert(0, str(coefficient.denominator))
    numerator = abs(coefficient.numerator)
    if numerator != 1 or not above:
        above.insert(0, str(numerator))
    sign = "-" if coefficient < 0 else ""
    if not below:
        return sign + r" \cdot ".join(above)
    return rf"{sign}\frac{{{' * '.join(above)}}}{{{' * '.join(below)}}}".replace("*", r"\cdot")


def _render_factor(factor: Node) -> str:
    return f"({render(factor)})" if isinstance(factor, Sum) else render(factor)


_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{name: getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: 1 / cmath.tan(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "abs": lambda x: complex(abs(x)),
    "floor": lambda x: complex(math.floor(x.real)),
    "ceil": lambda x: complex(math.ceil(x.real)),
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


def _value(node: Node) -> complex:
    match node:
        case Fraction():
            return complex(node)
        case Name(text):
            return CONSTANTS.get(text) or 0.3 + (crc32(text.encode()) % 10_007) / 7_000
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
