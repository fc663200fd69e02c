"""Words typed on a command line, spelled for the parser; and what is said, fit for people."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from cyclopts import App, Parameter, Token
from cyclopts.exceptions import UnusedCliTokensError
from rich.console import Console
from rich.markup import escape

from conviction.display import escaped, one_line, safe


def _as_whole(kind: Any, tokens: Sequence[Token]) -> Any:
    """Numbers as they are written; by default 4.6 would become 5 without a word."""
    values: list[int] = []
    for token in tokens:
        try:
            values.append(int(token.value))
        except ValueError:
            raise ValueError(f"{token.value!r} is not a whole number") from None
    return tuple(values) if get_origin(kind) is tuple else values[0]


WHOLE = Parameter(converter=_as_whole)
"""Refuses other numbers, where they would be rounded."""


def dash_as_file(arguments: Sequence[str]) -> list[str]:
    """Spell a lone "-" (standard input) so that the parser does not take it for an option."""
    spelled: list[str] = []
    for argument in arguments:
        if argument == "-":
            if spelled and spelled[-1] in ("-f", "--file"):
                spelled.pop()
            spelled.append("--file=-")
        else:
            spelled.append(argument)
    return spelled


def repeated(arguments: Sequence[str], error: UnusedCliTokensError) -> list[str] | None:
    """The arguments with an option before each of several values: `--policy a b` was meant so.

    The parser gives an option one value, since the next word may be an argument of the command.
    Words that are left over behind an option that may be repeated are further values of it.

    Args:
        arguments: What was typed.
        error: Names the words that were left over.

    Returns:
        The arguments to parse again; None if a word is left over elsewhere.
    """
    left: Counter[str] = Counter(error.unused_tokens or ())
    repeatable = _repeatable(error.app) if error.app else frozenset[str]()
    spelled: list[str] = []
    option, has_value = "", False
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1:
            name, equals, _ = argument.partition("=")
            option, has_value = (name if name in repeatable else ""), bool(equals)
        elif option and has_value and left[argument]:
            left[argument] -= 1
            spelled.append(option)
        else:
            has_value = True
        spelled.append(argument)
    return spelled if not left.total() else None


def _repeatable(app: App) -> frozenset[str]:
    """The options of a command that take several values."""
    return frozenset(
        name
        for argument in app.assemble_argument_collection()
        if any(
            get_origin(one) in (list, tuple) for one in (argument.hint, *get_args(argument.hint))
        )
        for name in argument.names
        if name.startswith("-")
    )


def shown(value: object) -> str:
    """`safe` text that the terminal shows as it is: what looks like markup is none."""
    return escape(safe(str(value)))


def print_notes(notes: Iterable[str], console: Console) -> None:
    """What a reader should know before trusting a result, a line each."""
    for note in notes:
        console.print(f"[yellow]note:[/] {shown(one_line(note))}", soft_wrap=True)


def print_json(value: object) -> None:
    """Print plain JSON types on stdout."""
    print(escaped(json.dumps(value, ensure_ascii=False, indent=2)))


def duration(seconds: float) -> str:
    """Seconds as "4:07" or "1:04:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
