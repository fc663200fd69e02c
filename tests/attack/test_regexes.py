"""No regular expression takes more than linear time, whatever it is given.

Every pattern of the package is found by itself: those that modules hold, and those that stand in
calls. Each is given texts that repeat what it looks for, ever longer ones; where the time for twice
the text is more than twice as long, it has to be mended: what a model wrote would stop a server.
"""

import ast
import importlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import conviction
import conviction_gate

USE = re.compile(r"\b(\w+)\.(search|match|fullmatch|split|findall|finditer|subn?)\b")
EVERY_USE = frozenset({"search", "fullmatch"})
MEASURED_IN_USE = "conviction.answers."
"""Patterns of answers see prepared lines and answers of bounded length, never a text as it came.

`tests/test_answers_linear.py` and `tests/test_answers_formulas_linear.py` measure the functions
that use them, on repeated tokens of any length.
"""

USUAL = (" ", "\n", "1", "a", ",", "{", '"')
MOST_OWN = 7
LADDER = tuple(1 << power for power in range(4, 13))
SUSPECT = 0.002
"""Seconds for the longest text that are worth a second look; linear ones take less than a tenth."""
FACTOR = 3.0
"""Times the time that twice the text may take."""


Call = tuple[str, ast.Call, bool]
"""The module of a call of a function of `re`, the call, and whether a function makes it."""


def calls() -> Iterator[Call]:
    for package in (conviction, conviction_gate):
        [folder] = package.__path__
        for place in sorted(Path(folder).rglob("*.py")):
            text = place.read_text(encoding="utf-8")
            if re.search(r"^\s*(import|from) re\b", text, re.MULTILINE):
                name = ".".join(place.relative_to(Path(folder).parent).with_suffix("").parts)
                for call, inside in called(ast.parse(text), inside=False):
                    yield name, call, inside


def called(node: ast.AST, *, inside: bool) -> Iterator[tuple[ast.Call, bool]]:
    inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        assert not (isinstance(child, ast.ImportFrom) and child.module == "re")
        if (
            isinstance(child, ast.Call)
            and ast.unparse(child.func).startswith("re.")
            and ast.unparse(child.func) != "re.escape"
        ):
            yield child, inside
        yield from called(child, inside=inside)


def written(call: ast.Call) -> re.Pattern[str] | None:
    """The pattern that stands in a call; None if it is put together there."""
    text = call.args[0]
    if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
        return None
    given = [*call.args[1:], *(word.value for word in call.keywords)]
    names = (one.attr for node in given for one in ast.walk(node) if isinstance(one, ast.Attribute))
    flags = (getattr(re, name) for name in names if isinstance(getattr(re, name, 0), re.RegexFlag))
    return re.compile(text.value, sum(flags))


def held(value: Any) -> Iterator[re.Pattern[str]]:
    """The patterns in a value of a module, however deep in lists and tables."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, dict):
        yield from held([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from held(one)


@dataclass(frozen=True)
class Found:
    """A pattern, and the ways in which it is used: "search", "fullmatch", …"""

    pattern: re.Pattern[str]
    uses: frozenset[str]


def patterns() -> dict[str, Found]:
    """All patterns by module and text."""
    uses: dict[str, set[str]] = {}
    for place in Path(conviction.__path__[0]).rglob("*.py"):
        for name, use in USE.findall(place.read_text(encoding="utf-8")):
            uses.setdefault(name, set()).add(use)
    found: dict[str, Found] = {}
    for name, call, _ in calls():
        here, use = written(call), ast.unparse(call.func).removeprefix("re.")
        # Those that are put together are looked up where the module keeps them.
        kept = vars(importlib.import_module(name)) if use == "compile" else {}
        names = {one: key for key, value in kept.items() for one in held(value)}
        for one in [here] if here else names:
            known = uses.get(names[one], EVERY_USE) if one in names else {use}
            found.setdefault(f"{name}:{one.pattern}", Found(one, frozenset(known)))
    return found


PATTERNS = patterns()


def test_no_pattern_escapes_this_test() -> None:
    assert len(PATTERNS) > 60
    for name, call, inside in calls():
        where = f"{name}, line {call.lineno}"
        assert written(call) or not inside, f"{where}: compile it at the top of the module"


def looked_for(pattern: re.Pattern[str]) -> list[str]:
    """What a pattern is made of: its words, and a character of each of its classes."""
    words = [""]

    def visit(node: Any) -> None:
        match node:
            case (name, int(code)) if str(name) == "LITERAL":
                words[-1] += chr(code)
            case (name, (int(first), int(_))) if str(name) == "RANGE":
                words.extend((chr(first), ""))
            case tuple() | list() | _parser.SubPattern():
                words.append("")
                for one in node:
                    visit(one)
            case _:
                pass

    visit(_parser.parse(pattern.pattern, pattern.flags))
    own = [*dict.fromkeys(part for word in words for part in (word, word[:1]) if part)]
    return [*dict.fromkeys([*own[:MOST_OWN], *USUAL])]


def texts(tokens: list[str]) -> Iterator[tuple[str, str, str]]:
    """A beginning, what is repeated, and an end."""
    for one, other in product(tokens, tokens):
        yield "", one + other, "\x00"
        yield one, other, ""
        yield one, other, "\x00" + one
        yield one + "a", other, "\x00" + one


def seconds(found: Found, text: str) -> float:
    began = time.thread_time()
    if found.uses & {"match", "fullmatch"}:
        found.pattern.fullmatch(text)
    if found.uses - {"match", "fullmatch"}:
        for _ in found.pattern.finditer(text):
            pass
    return time.thread_time() - began


def best(found: Found, text: str) -> float:
    return min(seconds(found, text) for _ in range(5))


def filled(parts: tuple[str, str, str], size: int) -> str:
    begin, unit, end = parts
    return begin + unit * (size // len(unit)) + end


def is_slow(found: Found, parts: tuple[str, str, str]) -> bool:
    """Whether the time grows faster than the text; the ladder keeps the worst ones short."""
    for size in LADDER:
        if seconds(found, filled(parts, size)) < SUSPECT:
            continue
        first, second = (best(found, filled(parts, size * times)) for times in (1, 2))
        if first > SUSPECT / 2 and second > FACTOR * first:
            return True
    return False


@pytest.mark.parametrize("name", [one for one in PATTERNS if not one.startswith(MEASURED_IN_USE)])
def test_twice_the_text_takes_twice_the_time(name: str, request: pytest.FixtureRequest) -> None:
    found = PATTERNS[name]
    wanted = list(texts(looked_for(found.pattern)))
    if not request.config.getoption("--attack-long"):
        wanted = Random(ascii(name)).sample(wanted, min(len(wanted), 400))  # noqa: S311
    slow = next((one for one in wanted if is_slow(found, one)), None)
    assert slow is None, f"{found.pattern.pattern!r} takes long for {slow}"
