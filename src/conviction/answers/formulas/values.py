"""Keys of formulas: their values at fixed points, to 70 digits (extra `math`).

Two formulas are equal where their values are. Each is calculated once, with 120 digits, at a few
points that are the same for all formulas: the values are its key, so that equality of formulas is
an equivalence, and nothing is compared pair by pair. Points with negative variables are among them:
they tell sqrt(x^2) = |x| from x. Far points tell |x - 100| from 100 - x, and whole numbers tell a
number rounded up from one more than that rounded down.

Work is counted in steps and not in seconds, so that no verdict depends on the machine.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from hashlib import sha256
from importlib.util import find_spec
from math import log, log2, prod
from threading import Lock
from typing import Any

from conviction.answers.formulas.algebra import (
    CONSTANTS,
    Call,
    Name,
    Node,
    Power,
    Product,
    Sum,
    TooLargeError,
)
from conviction.answers.formulas.points import (
    DIGITS,
    NEAR,
    POINTS,
    context_of_values,
    coordinate,
)

MOST_STEPS = 20_000
"""Operations on numbers of 120 digits for one answer; they take about a second."""

_KEY_DIGITS = 70
_MORE_DIGITS = 500
"""For formulas of which cancellation leaves too few digits of the usual ones."""
_ROUNDING = 20
"""Digits at the end of a value that may be wrong."""
_LARGEST_EXPONENT = 20_000  # bits of a power
_LARGEST_POWER = 10**12
_LARGEST_ARGUMENT = 10.0**8
_LARGEST_FACTORIAL = 5_000
_MOST_TERMS = 2_000
_BINDING = frozenset({"int", "sum", "prod"})
_LOCK = Lock()
"""mpmath changes the precision of its context while it integrates."""


@contextmanager
def one_answer() -> Generator[None]:
    """All formulas that are calculated within it share `MOST_STEPS`."""
    token = _STEPS.set(_Steps())
    try:
        yield
    finally:
        _STEPS.reset(token)


class _TooFewDigitsError(ArithmeticError):
    """What is left of numbers that cancel each other may be an error of rounding."""


class UndefinedError(ArithmeticError):
    """A formula has no value, or not at enough points."""


def installed() -> bool:
    """Whether mpmath, which calculates the values, can be imported."""
    try:
        return find_spec("mpmath") is not None
    except (ImportError, ValueError):
        return False


def names(node: Node) -> frozenset[str]:
    """The variables of a formula."""
    match node:
        case Fraction():
            return frozenset()
        case Name(text):
            return frozenset() if text in CONSTANTS else frozenset({text})
        case Power(base, exponent):
            return names(base) | names(exponent)
        case Product(_, parts) | Sum(parts):
            return frozenset[str]().union(*map(names, parts))
        case Call(function, arguments):
            found = frozenset[str]().union(*map(names, arguments))
            return found - names(arguments[0]) if function in _BINDING else found


def key_of(node: Node) -> str:
    """The key of an expression: an exact fraction, a decimal, or "formula" and a hash.

    Raises:
        ArithmeticError: it cannot be calculated within the bounds.
    """
    if isinstance(node, Fraction):
        return str(node)
    values = _values(node)
    for name in names(node):  # such as (x^2 + x)/(x + 1), which is x
        if all(
            _written(value) == _written(coordinate(name, at)) for at, value in enumerate(values)
        ):
            return name
    if len({_written(value) for value in values}) > 1:
        return f"formula {_hash(values)}"
    return _constant(values[0])


def key_of_zeros(node: Node, *, sign: bool = False) -> str:
    """The key of the equation `node` = 0, the same for all its multiples.

    With `sign`, for all its positive multiples, as in inequalities.

    Raises:
        ArithmeticError: it cannot be calculated within the bounds.
    """
    values = _values(node)
    first = next((value for value in values if value), None)
    if first is None or None in values[:NEAR]:
        raise UndefinedError
    size = abs(first) if sign else first
    return _hash([value if value is None else value / size for value in values])


def _values(node: Node) -> list[Any]:
    """Values at all points; None where there is none."""
    variables = names(node)
    found: list[Any] = []
    steps = _STEPS.get(None) or _Steps()
    with _LOCK:
        for number in range(len(POINTS)) if variables else [0]:
            point = {name: coordinate(name, number) for name in variables}
            try:
                found.append(_value_at(point, node, steps))
            except TooLargeError:
                if number < NEAR or steps.left < 0:
                    raise
                found.append(None)
            except (ArithmeticError, ValueError, TypeError):
                found.append(None)
    if sum(value is not None for value in found) < min(2, len(found)):
        raise UndefinedError
    return found


def _value_at(point: Mapping[str, Any], node: Node, steps: "_Steps") -> Any:
    """The value at a point, with more digits where cancellation leaves too few."""
    context = context_of_values()
    try:
        return _tidy(_Evaluation(context, point, steps).value(node))
    except _TooFewDigitsError:
        with context.workdps(_MORE_DIGITS):
            return _tidy(_Evaluation(context, point, steps).value(node))


def _hash(values: list[Any]) -> str:
    return sha256("|".join(map(_written, values)).encode()).hexdigest()[:20]


def _written(value: Any) -> str:
    if value is None:
        return "-"
    context = context_of_values()
    real, imaginary = (context.nstr(part, _KEY_DIGITS) for part in (value.real, value.imag))
    return f"{real} + {imaginary} i" if value.imag else real


def _constant(value: Any) -> str:
    """An exact fraction, if the value is one to nearly all digits, else its first digits."""
    if not value.imag and abs(value) < 10**15:
        size = 10 ** (DIGITS - _ROUNDING)
        exact = Fraction(int(context_of_values().nint(value.real * size)), size)
        near = exact.limit_denominator(10**9)
        # A number near 0 is as exact as any other: e^{-1000} is not 0.
        if (near or not value) and abs(exact - near) < Fraction(10**6, size):
            return str(near)
    return _written(value)


def _rounding(context: Any) -> Any:
    """The share of a value that may be an error of rounding."""
    return context.mpf(10) ** (_ROUNDING - context.dps)


def _tidy(value: Any) -> Any:
    """A value without a part that is only rounding."""
    context = context_of_values()
    if not context.isfinite(value):
        raise UndefinedError
    size = abs(value) * _rounding(context)
    if abs(value.imag) <= size:
        return context.mpf(value.real)
    return context.mpc(0, value.imag) if abs(value.real) <= size else value


class _Steps:
    """Counts the work on the formulas of one answer."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def take(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooLargeError


_STEPS: ContextVar[_Steps] = ContextVar("steps left for one answer")


class _Evaluation:
    """The value of formulas at one point."""

    def __init__(self, context: Any, point: Mapping[str, Any], steps: _Steps) -> None:
        self._mp = context
        self._point = dict(point)
        self._steps = steps
        self._integrating = 0

    def value(self, node: Node) -> Any:  # noqa: PLR0911  # one for each kind of node
        """The value of a formula; an ArithmeticError where it has none."""
        self._steps.take()
        match node:
            case Fraction():
                return self._mp.mpf(node.numerator) / node.denominator
            case Name(text):
                return self._name(text)
            case Power(base, exponent):
                return self._power(base, exponent)
            case Product(coefficient, factors):
                return self.value(coefficient) * prod(map(self.value, factors))
            case Sum(terms):
                values = [self.value(term) for term in terms]
                return self._known(sum(values), max(abs(value) for value in values))
            case Call(function, arguments):
                if function in _BINDING:
                    return self._bound(function, *arguments)
                return self._call(function, [_tidy(self.value(one)) for one in arguments])

    def _name(self, text: str) -> Any:
        constants = {r"\pi": self._mp.pi, "e": self._mp.e, "i": self._mp.j}
        if text == r"\infty":
            return self._mp.inf
        return +constants[text] if text in constants else self._point[text]

    def _power(self, base: Node, exponent: Node) -> Any:
        value, power = _tidy(self.value(base)), _tidy(self.value(exponent))
        if not value:
            if self._mp.re(power) <= 0:
                raise UndefinedError
            return value
        mantissa, exponent_of_two = self._mp.frexp(abs(value))
        bits = exponent_of_two + log2(float(mantissa))
        if abs(power) * abs(bits) > _LARGEST_EXPONENT or abs(power) > _LARGEST_POWER:
            if self._integrating and self._mp.re(power * self._mp.log(value)) < 0:
                return self._mp.mpf(0)  # far out, where nothing adds to an integral
            raise TooLargeError
        real = not value.imag and value < 0
        if real and isinstance(exponent, Fraction) and exponent.denominator % 2:
            # The cube root of -8 is -2.
            root = (-value) ** power
            return -root if exponent.numerator % 2 else root
        return value**power

    def _call(self, function: str, arguments: list[Any]) -> Any:
        self._steps.take(30 if function in _COSTLY else 3)
        for argument in arguments:
            limit = _LIMITS.get(function, _LARGEST_ARGUMENT)
            if abs(argument) > limit and function not in _STEADY:
                raise TooLargeError
        value = _FUNCTIONS[function](self._mp, *arguments)
        if function in _WITH_ZEROS:  # the sine of a number near pi says little
            return self._known(value, min(1, abs(arguments[-1])))
        return value

    def _known(self, value: Any, size: Any) -> Any:
        """A value that was calculated from numbers of some size; 0 if it is only rounding."""
        if abs(value) > size * self._mp.mpf(10) ** (_KEY_DIGITS + _ROUNDING - DIGITS):
            return value
        if self._mp.dps < _MORE_DIGITS and not self._integrating:
            raise _TooFewDigitsError
        return value if abs(value) > size * _rounding(self._mp) else self._mp.mpf(0)

    def _bound(self, function: str, variable: Node, low: Node, high: Node, body: Node) -> Any:
        assert isinstance(variable, Name)  # noqa: S101  # the parser saw to it
        name, begin, end = variable.text, self.value(low), self.value(high)
        outside = self._point.get(name)

        def at(value: Any) -> Any:
            self._point[name] = value
            return self.value(body)

        try:
            if function == "int":
                self._integrating += 1
                value, error = self._mp.quad(at, [begin, end], error=True)
                self._integrating -= 1
                if error > self._mp.mpf(10) ** -_KEY_DIGITS * max(1, abs(value)):
                    raise UndefinedError
                return value
            values = [at(self._mp.mpf(number)) for number in _whole_numbers(begin, end)]
            return sum(values) if function == "sum" else prod(values)
        finally:
            if outside is None:
                self._point.pop(name, None)
            else:
                self._point[name] = outside


def _whole_numbers(low: Any, high: Any) -> Iterator[int]:
    if low.imag or high.imag or low != int(low) or high != int(high):
        raise UndefinedError
    if high - low > _MOST_TERMS:
        raise TooLargeError
    yield from range(int(low), int(high) + 1)


def _rounded(up: bool) -> Callable[[Any, Any], Any]:  # noqa: FBT001  # one of two functions
    def whole(mp: Any, value: Any) -> Any:
        if value.imag:
            raise UndefinedError
        near = mp.nint(value)
        # 2.999... of 100 digits is 3 that was rounded.
        if abs(value - near) < _rounding(mp) * max(1, abs(value)):
            return near
        return mp.ceil(value) if up else mp.floor(value)

    return whole


def _log(mp: Any, *arguments: Any) -> Any:
    # To some, "log" without a base is that of 10, to others that of e: here it is of neither, but
    # all rules of logarithms hold.
    if len(arguments) == 1:
        return mp.log(arguments[0]) * coordinate("log", 0)
    return mp.log(arguments[1]) / mp.log(arguments[0])


def _plain(name: str) -> Callable[[Any, Any], Any]:
    return lambda mp, value: getattr(mp, name)(value)


def _absolute(mp: Any, value: Any) -> Any:
    return mp.mpf(abs(value))


def _binomial(mp: Any, above: Any, below: Any) -> Any:
    return mp.binomial(above, below)


_LIMITS = {
    **dict.fromkeys(("factorial", "binom"), _LARGEST_FACTORIAL),
    **dict.fromkeys(("exp", "sinh", "cosh", "tanh"), _LARGEST_EXPONENT * log(2)),
}
_COSTLY = frozenset({"factorial", "binom"})
_STEADY = frozenset({"abs", "floor", "ceil", "ln", "log", "arctan"})
_WITH_ZEROS = frozenset({"sin", "cos", "tan", "sec", "csc", "cot", "ln", "arccos"})
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(name)
        for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "exp")
    },
    **{f"arc{name}": _plain(f"a{name}") for name in ("sin", "cos", "tan")},
    "ln": _plain("log"),
    "log": _log,
    "abs": _absolute,
    "floor": _rounded(up=False),
    "ceil": _rounded(up=True),
    "factorial": _plain("factorial"),
    "binom": _binomial,
}
