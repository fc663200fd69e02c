"""Finding the answer in what a trace wrote: named strategies, tried in order.

Reasoning models think between `<think>` and `</think>`. The answer is looked for in the text
after the last `</think>`. Only a box is also accepted from within the reasoning, and only where
the text after it holds no answer, or where the reasoning was never closed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from conviction.answers.boxes import last_box
from conviction.answers.characters import fold
from conviction.answers.markers import after_marker, last_line
from conviction.registry import unknown_name

Strategy = Callable[[str], str | None]

NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?:/\d+)?%?"
)
"""A number as it stands in prose: sign, thousands, decimals, exponent, fraction, percent."""

_HASHES = re.compile(r"^####[ \t]*(.*\d.*)$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_JSON_OPENING = re.compile(r"[\[{]")
_MOST_FAILED_JSON_READINGS = 2_000


def last_number(text: str) -> str | None:
    """The last number on the last line that holds anything."""
    numbers = NUMBER.findall(fold(last_line(text) or ""))
    return numbers[-1] if numbers else None


def after_hashes(text: str) -> str | None:
    """What follows the last "####" at the start of a line, if there is a number in it."""
    found = _HASHES.findall(text)
    return found[-1].strip() if found else None


def last_fence(text: str) -> str | None:
    """The content of the last fenced block of code."""
    found = _FENCE.findall(text)
    return found[-1].strip() or None if found else None


def last_json(text: str) -> str | None:
    """The last JSON object or array, or the whole text if that is a JSON value."""
    stripped = text.strip()
    if _read_json(stripped) is not None:
        return stripped
    found, position, failed = None, 0, 0
    while failed < _MOST_FAILED_JSON_READINGS and (opening := _JSON_OPENING.search(text, position)):
        end = _read_json(text, opening.start())
        if end is None:
            failed += 1
            position = opening.end()
        else:
            found, position = text[opening.start() : end], end
    return found


def _read_json(text: str, start: int | None = None) -> int | None:
    """Where the JSON value at `start` ends; without `start`, all of `text` has to be one."""
    try:
        _, end = json.JSONDecoder(
            parse_float=str, parse_int=str, parse_constant=_refuse
        ).raw_decode(text, start or 0)
    except (ValueError, RecursionError):
        return None
    return end if start is not None or end == len(text) else None


def _refuse(constant: str) -> str:
    raise ValueError(constant)  # NaN and Infinity are not JSON


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "boxed": last_box,
        "marker": after_marker,
        "hashes": after_hashes,
        "last-line": last_line,
        "last-number": last_number,
        "fence": last_fence,
        "json": last_json,
    }
)
"""All strategies by name."""


def check_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, once all of them are known.

    Raises:
        UnknownNameError: with the nearest known name as a suggestion.
    """
    for name in names:
        if name not in STRATEGIES:
            raise unknown_name("extraction strategy", name, STRATEGIES)
    return tuple(names)


def extract_answer(
    text: str, strategies: Sequence[str], accept: Callable[[str], Any] = bool
) -> str | None:
    """The first answer that a strategy finds and `accept` does not refuse; None without one.

    Args:
        text: All that a trace wrote.
        strategies: Names out of `STRATEGIES`, tried in this order.
        accept: Whether a candidate can be an answer.

    Raises:
        UnknownNameError: a strategy is not known.
    """
    names = check_strategies(strategies)
    _, closed, visible = text.rpartition("</think>")
    if closed or "<think>" not in text:
        for name in names:
            answer = STRATEGIES[name](visible)
            if answer and accept(answer):
                return answer
    if "boxed" in names:
        answer = last_box(text)
        if answer and accept(answer):
            return answer
    return None
