r"""Equations and inequalities: assigned names, lines either way round, chains, systems."""

import re
from collections.abc import Callable
from fractions import Fraction

from conviction.answers.formulas.algebra import (
    Call,
    Name,
    Node,
    Product,
    Sum,
    add,
    factors_of,
    multiply,
    solved_for,
    split_linear,
    value_of,
)
from conviction.answers.formulas.forms import (
    INFINITY,
    MINUS_INFINITY,
    Form,
    Shape,
    collection,
    expression,
    opened,
    zeros,
)
from conviction.answers.formulas.markup import pieces
from conviction.answers.formulas.reals import Intervals, beyond, form_of, intersection, union
from conviction.answers.formulas.values import names

Read = Callable[[str], Form | None]

_COORDINATES = ("z", "y", "x")
_POLAR = ("r", r"\rho", r"\theta", r"\phi", "z")
_RELATIONS = {"<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
COMPARISONS = frozenset(_RELATIONS)
_REVERSED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_NAMES = re.compile(rf"\(\s*{_NAME.pattern}(?:\s*,\s*{_NAME.pattern})+\s*\)")
_OPERATOR = re.compile(r"[-+*/^<>|!\d]|\\(?:cdot|le|ge|ne|pm|frac|sqrt)(?![A-Za-z])")
_ARGUMENTS = re.compile(r"_\{[^{}]*\}|_\w|(?<=[A-Za-z'})])\([^()]*\)|\^\{?-1\}?|'|\|")
_SIZE_OF_UNKNOWN = re.compile(r"\|\s?[xyz]\s?\|")
_INDEFINITE = re.compile(r"\\int(?![A-Za-z])(?!\s*_)")
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)[^{}]*\}|d[a-z]/d[a-z]"
)


def read_equation(  # noqa: PLR0911  # one for each case
    sides: list[str], read: Read
) -> Form | None:
    """What is left of an equation: a value, where one side only gives it a name."""
    if len(sides) > 2:  # a chain: its last part
        return read(sides[-1])
    left, right = sides
    if _NAME.fullmatch(left) and _NAME.fullmatch(right):
        left, right = sorted(sides, key=lambda side: (len(side), side))
    if _NAMES.fullmatch(left):
        return _assigned_tuple(left, right, read)
    if _names_something(left):
        return _named(left, right, read)
    if _names_something(right) and not _names_something(left):
        return _named(right, left, read)
    one, other = read(left), read(right)
    if one is None or other is None:
        return one or other
    if one.node is None or other.node is None:
        key = opened("=".join(sorted((one.key, other.key))), (one, other))
        return Form(Shape.RELATION, key)
    if not names(one.node) and not names(other.node):
        return other  # a calculation
    return _equation(add([one.node, multiply([Fraction(-1), other.node])]))


def _named(left: str, right: str, read: Read) -> Form | None:
    """The value of what has a name, unless it is the equation of a line, or of itself."""
    form = read(right)
    name = "".join(left.replace('"', "").split())
    if form is None or form.node is None or name not in _COORDINATES:
        return form and Form(form.shape, form.key, form.parts, form.node, name, form.value)
    found = names(form.node)
    if found & set(_COORDINATES):
        return _equation(add([Name(name), multiply([Fraction(-1), form.node])]), name)
    return Form(form.shape, form.key, form.parts, form.node, name)


def _equation(difference: Node, name: str = "") -> Form:
    """An equation by its points, or by what it says of its last coordinate, or only variable."""
    found = names(difference)
    coordinates = [one for one in _COORDINATES if one in found]
    for variable in coordinates or (sorted(found) if len(found) == 1 else []):
        solution = solved_for(Name(variable), difference, names)
        if solution is not None and (len(found) == 1 or names(solution) & set(_COORDINATES)):
            return expression(solution, name or variable)
    total = _total(difference)
    return expression(total) if total is not None else zeros(difference)


def _total(difference: Node) -> Fraction | None:
    """What "m + n = 29" says, 29: a sum of letters that are no coordinates, and a number."""
    inner = difference
    if isinstance(inner, Product) and len(inner.factors) == 1:
        inner = inner.factors[0]
    if not isinstance(inner, Sum):
        return None
    number, *letters = inner.terms
    if not isinstance(number, Fraction):
        return None
    negative = {Product(Fraction(-1), (Name(name),)) for name in names(difference)}
    if set(letters) != negative or names(difference) & set(_COORDINATES):
        return None
    return number


def _assigned_tuple(left: str, right: str, read: Read) -> Form | None:
    """Such as "(x, y) = (5, 3)", in the order of the names."""
    form = read(right)
    variables = ["".join(name.split()) for name in left.strip("() ").split(",")]
    if form is None or form.shape is not Shape.TUPLE or len(form.parts) != len(variables):
        return form
    return system(
        [
            Form(part.shape, part.key, part.parts, part.node, name)
            for name, part in zip(variables, form.parts, strict=True)
        ]
    )


def system(forms: list[Form]) -> Form:
    """Values of several names, in the order of the names: "y = 3, x = 5" is (5, 3)."""
    variables = {form.name for form in forms}
    if variables <= set(_POLAR):
        return collection(Shape.TUPLE, sorted(forms, key=lambda f: _POLAR.index(f.name)), "(", ")")
    order = sorted(forms, key=lambda form: (form.name.startswith("\\"), form.name))
    return collection(Shape.TUPLE, order, "(", ")")


def _names_something(left: str) -> bool:
    """Whether a left side names what is on the right: "x", "f(2)", "area", "AB", "dy/dx"."""
    if _DERIVATIVE.fullmatch(left) or _INDEFINITE.match(left):
        return True
    if _SIZE_OF_UNKNOWN.fullmatch(left):
        return False  # "|x| = 3" says less than "x = 3"
    bare = _ARGUMENTS.sub("", left)
    if _OPERATOR.search(bare) or not re.search(r"[^\W\d_]", bare):
        return False
    runs = re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", re.sub(r'"[^"]*"', "", bare))
    return all(len(run) == 1 or len(run) > 3 or run.isupper() for run in runs)


def read_comparison(text: str, read: Read) -> Form:
    """An inequality or a chain of them: a set of real numbers where there is one variable."""
    parts, between = pieces(text, COMPARISONS)
    sides = [read(side) for side in parts]
    relations = [_RELATIONS[relation] for relation in between]
    nodes = [side.node for side in sides if side and side.node is not None]
    if len(nodes) != len(sides):
        written = [side.key if side else "" for side in sides]
        key = "".join(map("".join, zip(written, [*relations, ""], strict=True)))
        return Form(Shape.RELATION, opened(key, [side for side in sides if side]))
    pairs = [
        (add([one, multiply([Fraction(-1), other])]), relation)
        for one, relation, other in zip(nodes[:-1], relations, nodes[1:], strict=True)
        if not {one, other} & {INFINITY, MINUS_INFINITY}
    ]
    variables = {name for difference, _ in pairs for name in names(difference)}
    if len(variables) == 1:
        name = variables.pop()
        sets = [_solutions(name, *pair) for pair in pairs]
        if None not in sets:
            return form_of(intersection(one for one in sets if one is not None), name)
    forms = [_half(*pair) for pair in pairs]
    return collection(Shape.RELATION, sorted(forms, key=lambda form: form.key), "", "")


def _solutions(name: str, difference: Node, relation: str) -> Intervals | None:
    """The numbers for which `difference` is in `relation` to 0."""
    size = next((one for one in factors_of(difference) if _is_size(one)), None)
    unknown = Name(name) if size is None else size
    slope, _ = split_linear(unknown, difference, names) or (None, None)
    solution = solved_for(unknown, difference, names)
    value = value_of(slope) if slope is not None else None
    if solution is None or value is None or value.imag:
        return None
    relation = _REVERSED[relation] if value.real < 0 else relation
    if not isinstance(size, Call):
        return beyond(expression(solution), relation)
    # "|u| < c" is "u < c and u > -c", "|u| > c" is "u > c or u < -c".
    inner = size.arguments[0]
    above = _solutions(name, add([inner, multiply([Fraction(-1), solution])]), relation)
    below = _solutions(name, add([inner, solution]), _REVERSED[relation])
    if above is None or below is None:
        return None
    return union((above, below)) if relation in {">", ">="} else intersection((above, below))


def _is_size(node: Node) -> bool:
    return isinstance(node, Call) and node.function == "abs"


def _half(difference: Node, relation: str) -> Form:
    if relation == "!=":
        form = zeros(difference)
        return Form(Shape.RELATION, opened(f"not {form.key}", (form,)))
    if relation in {">", ">="}:
        difference, relation = multiply([Fraction(-1), difference]), _REVERSED[relation]
    return zeros(difference, relation)
