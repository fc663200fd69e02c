r"""Reading formulas, in LaTeX or as people type them, into the normal form of `algebra`."""

import math
import re
from fractions import Fraction
from typing import NoReturn

from conviction.answers.formulas.algebra import (
    FUNCTIONS,
    MOST_BITS,
    Call,
    Name,
    Node,
    Product,
    TooLargeError,
    add,
    multiply,
    power,
)

MOST_CHARACTERS = 2_000
"""Longer formulas are not read."""

_MOST_DIGITS = 3_600
_DEEPEST = 40
_LARGEST_FACTORIAL = 1_000
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+(?![\d.]))?"
_TOKEN = re.compile(rf"\s*({_NUMBER}|\\[A-Za-z]+|[A-Za-z]+|\\[{{}}|]|\S)")
_WHOLE_ARGUMENT = r"(?:\{\s*(\d+)\s*\}|(\d))\s*"
_MIXED = re.compile(rf"(?<![\w.^/\\])(\d+)\s*\\frac\s*{_WHOLE_ARGUMENT * 2}")
_MIXED_PLAIN = re.compile(r"(?<![\w.^/])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\w)")
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi "
    "Omega pi infty ell"
)
_GREEK = frozenset(_GREEK_NAMES.split())
_KNOWN_WORDS = {
    **dict.fromkeys(("pi", "Pi", "PI"), r"\pi"),
    **dict.fromkeys(("infinity", "inf", "oo"), r"\infty"),
    **{name: f"\\{name}" for name in (*FUNCTIONS, "theta", "alpha", "beta", "gamma", "lambda")},
    **{f"a{name}": f"\\arc{name}" for name in ("sin", "cos", "tan")},
    "sqrt": r"\root",
}
_CLOSED_BY = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_LONGEST_PRODUCT_OF_LETTERS = 4
_OF_ANGLES = frozenset({"sin", "cos", "tan", "sec", "csc", "cot"})
_DEGREE = Product(Fraction(1, 180), (Name(r"\pi"),))


class UnreadableError(ValueError):
    """Something is no formula, or one of a kind that is not read here."""


def parse(text: str) -> Node:
    """The formula in `text`, cleaned by `markup.clean`.

    Raises:
        UnreadableError: it cannot be read.
        ArithmeticError: it divides by zero, or holds a number that is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise UnreadableError
    text = _MIXED.sub(_mixed_number, _MIXED_PLAIN.sub(r"(\1+\2/\3)", text))
    parser = _Parser([match.group(1) for match in _TOKEN.finditer(text)])
    node = parser.sum()
    if parser.next:
        raise UnreadableError
    return node


def _mixed_number(match: re.Match[str]) -> str:
    whole, above, below = filter(None, match.groups())
    return f"({whole}+{above}/{below})"


def known_word(word: str) -> bool:
    """Whether a run of letters is the name of a constant or a function."""
    return word in _KNOWN_WORDS


def exact(number: str) -> Fraction:
    """A decimal number, exactly; a TooLargeError if it has too many digits."""
    mantissa, _, exponent = number.lower().partition("e")
    if len(mantissa) > _MOST_DIGITS or len(exponent) > 6 or abs(int(exponent or 0)) > _MOST_DIGITS:
        raise TooLargeError
    return Fraction(number)


class _Parser:
    """Recursive descent over tokens; `next` is the one to read, empty at the end."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [part for token in tokens for part in _letters(token)][::-1]
        self._depth = 0
        self._bars = 0
        self._angles = 0
        self._last = "nothing"

    @property
    def next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def take(self) -> str:
        self._last = self._tokens.pop() if self._tokens else _refuse()
        return self._last

    def accept(self, *choices: str) -> str:
        return self.take() if self.next in choices else ""

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise UnreadableError

    def sum(self) -> Node:
        terms = [self.product()]
        while sign := self.accept("+", "-"):
            term = self.product()
            terms.append(term if sign == "+" else _negative(term))
        return add(terms)

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.accept(r"\cdot"):
                node = multiply([node, self.signed()])
            elif self.accept("/"):
                node = multiply([node, power(self.signed(), Fraction(-1))])
            elif self._starts_factor() and (not self.next[0].isdigit() or self._last == "!"):
                node = multiply([node, self.factor()])
            else:
                return node

    def signed(self) -> Node:
        negative = False
        while sign := self.accept("+", "-"):
            negative ^= sign == "-"
        node = self.factor()
        return _negative(node) if negative else node

    def factor(self) -> Node:
        node = self.atom()
        while True:
            if self.accept("!"):
                if self.next == "!":
                    return _refuse()  # every second factor, which is not the factorial twice
                node = _factorial(node)
            elif self.accept("°"):
                # A right angle is 90 by itself, and half of pi within a function of angles.
                node = multiply([node, _DEGREE]) if self._angles else node
            elif self.accept("^"):
                return power(node, self.exponent())
            else:
                return node

    def exponent(self) -> Node:
        if self.next in {"{", "("}:
            return self.group()
        self._deeper()
        sign = self.accept("+", "-")
        node = self.factor()
        self._depth -= 1
        return _negative(node) if sign == "-" else node

    def atom(self) -> Node:
        self._deeper()
        node = self._atom()
        self._depth -= 1
        return node

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnreadableError

    def _atom(self) -> Node:
        token = self.next
        if token in _CLOSED_BY:
            return self.group()
        self.take()
        if token[0] in "0123456789" or (token[0] == "." and len(token) > 1):
            return exact(token)
        if token == "|":  # noqa: S105  # a bar
            self._bars += 1
            node = self.sum()
            self._bars -= 1
            self.expect("|")
            return abs(node) if isinstance(node, Fraction) else Call("abs", (node,))
        if token == '"':  # noqa: S105  # a letter in roman type
            letter = self.take()
            self.expect('"')
            return self.name(letter) if letter.isalpha() and len(letter) == 1 else _refuse()
        if len(token) == 1 and token.isascii() and token.isalpha():
            return self.name(token)
        return self.command(token.removeprefix("\\")) if token[0] == "\\" else _refuse()

    def command(self, name: str) -> Node:
        if name in _GREEK:
            return self.name(f"\\{name}")
        readers = {
            "frac": self.fraction,
            "sqrt": self.root,
            "root": lambda: power(self.atom(), Fraction(1, 2)),
            "binom": lambda: _binomial(self.argument(), self.argument()),
            "int": self.integral,
            "sum": lambda: self.series("sum"),
            "prod": lambda: self.series("prod"),
        }
        if name in readers:
            return readers[name]()
        return self.call(name) if name in FUNCTIONS else _refuse()

    def fraction(self) -> Node:
        above = self.argument()
        return multiply([above, power(self.argument(), Fraction(-1))])

    def root(self) -> Node:
        degree = self.group() if self.next == "[" else Fraction(2)
        return power(self.argument(), power(degree, Fraction(-1)))

    def integral(self) -> Node:
        r"""`\int_a^b f dx`; the differential stands at the end."""
        self.expect("_")
        low = self.argument()
        self.expect("^")
        high = self.argument()
        inside: list[str] = []
        depth = 0
        while not (depth == 0 and self.next == "d" and len(self._tokens) > 1):
            token = self.take()
            depth += (token in _CLOSED_BY) - (token in _CLOSED_BY.values())
            inside.append(token)
        self.take()
        variable = self.atom()
        within = _Parser([])
        within._tokens, within._depth = inside[::-1], self._depth
        body = within.sum() if inside else Fraction(1)
        if within.next or not isinstance(variable, Name):
            raise UnreadableError
        return Call("int", (variable, low, high, body))

    def series(self, function: str) -> Node:
        r"""`\sum_{k=1}^{n} f`."""
        self.expect("_")
        self.expect("{")
        variable = self.atom()
        self.expect("=")
        low = self.sum()
        self.expect("}")
        self.expect("^")
        high = self.argument()
        if not isinstance(variable, Name):
            raise UnreadableError
        return Call(function, (variable, low, high, self.product()))

    def name(self, text: str) -> Node:
        if not self.accept("_"):
            return Name(text)
        if not self.accept("{"):
            return Name(f"{text}_{{{self.take()}}}")
        inside: list[str] = []
        while (token := self.take()) != "}":
            inside.append(token)
        return Name(f"{text}_{{{''.join(inside)}}}") if "{" not in inside else _refuse()

    def call(self, function: str) -> Node:
        exponent: Node = Fraction(1)
        base: list[Node] = []
        if self.accept("_"):
            base.append(self.argument())
        if self.accept("^"):
            exponent = self.exponent()
        if base and function != "log":
            return _refuse()
        if exponent == -1:
            if f"arc{function}" not in FUNCTIONS:
                return _refuse()
            function, exponent = f"arc{function}", Fraction(1)
        self._angles += function in _OF_ANGLES
        if self.next in _CLOSED_BY:
            argument = self.group()
            if self.accept("°") and function in _OF_ANGLES:
                argument = multiply([argument, _DEGREE])
        else:
            factors = [self.signed()]
            while self._starts_factor() and self.next.removeprefix("\\") not in FUNCTIONS:
                factors.append(self.factor())
            argument = multiply(factors)
        self._angles -= function in _OF_ANGLES
        return power(Call(function, (*base, argument)), exponent)

    def group(self) -> Node:
        self._deeper()
        opening = self.take()
        bars, self._bars = self._bars, 0
        node = self.sum()
        self._bars = bars
        self.expect(_CLOSED_BY[opening])
        self._depth -= 1
        if opening in {r"\lfloor", r"\lceil"}:
            whole, up = (math.floor, "floor") if opening == r"\lfloor" else (math.ceil, "ceil")
            return Fraction(whole(node)) if isinstance(node, Fraction) else Call(up, (node,))
        return node

    def argument(self) -> Node:
        """An argument as TeX reads it: a group, or one token, of a number its first digit."""
        if self.next == "{":
            return self.group()
        if self.next.isdigit() and len(self.next) > 1:
            digits = self.take()
            self._tokens.append(digits[1:])
            return Fraction(int(digits[0]))
        return self.atom()

    def _starts_factor(self) -> bool:
        token = self.next
        known = token[:1] == "\\" and token[1:] in _STARTING_COMMANDS
        bar = token == "|" and not self._bars  # noqa: S105  # a bar
        return known or bar or token in {"(", "[", "{", '"'} or token[:1].isalnum()


def _negative(node: Node) -> Node:
    return multiply([Fraction(-1), node])


_STARTING_COMMANDS = (
    _GREEK
    | FUNCTIONS
    | {*("frac", "sqrt", "root", "lfloor", "lceil", "binom", "int", "sum", "prod")}
)


def _letters(token: str) -> list[str]:
    if not (token.isascii() and token.isalpha() and len(token) > 1):
        return [token]
    if token in _KNOWN_WORDS:
        return [_KNOWN_WORDS[token]]
    return list(token) if len(token) <= _LONGEST_PRODUCT_OF_LETTERS else _refuse()


def _factorial(node: Node) -> Node:
    if not isinstance(node, Fraction):
        return Call("factorial", (node,))
    if node.denominator != 1:
        return Call("factorial", (node,))
    if node < 0:
        return _refuse()
    if node > _LARGEST_FACTORIAL:
        raise TooLargeError
    return Fraction(math.factorial(node.numerator))


def _binomial(above: Node, below: Node) -> Node:
    if not (isinstance(above, Fraction) and isinstance(below, Fraction)):
        return Call("binom", (above, below))
    if above.denominator != 1 or below.denominator != 1 or min(above, below) < 0:
        return _refuse()
    if min(below, above - below) * above.numerator.bit_length() > MOST_BITS:
        raise TooLargeError
    return Fraction(math.comb(above.numerator, below.numerator))


def _refuse() -> NoReturn:
    raise UnreadableError
