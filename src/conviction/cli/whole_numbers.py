"""Options that take whole numbers."""

from collections.abc import Sequence
from typing import Any, get_origin

from cyclopts import Parameter, Token


def _as_whole(kind: Any, tokens: Sequence[Token]) -> Any:
    """Numbers as they are written; by default 4.6 would become 5 without a word."""
    values: list[int] = []
    for token in tokens:
        try:
            values.append(int(token.value))
        except ValueError:
            raise ValueError(f"{token.value!r} is no whole number") from None
    return tuple(values) if get_origin(kind) is tuple else values[0]


WHOLE = Parameter(converter=_as_whole)
"""Refuses other numbers, where they would be rounded."""
