"""Finding the answer in what a trace wrote: named strategies, tried in order.

Reasoning models think between `<think>` and `</think>`. The answer is looked for in the text
after the last `</think>`. Only a box is also accepted from within the reasoning, and only where
the text after it holds no answer, or where the reasoning was never closed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from conviction.answers.formulas.markup import fold
from conviction.registry import unknown_name

Strategy = Callable[[str], str | None]

NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?:/\d+)?%?"
)
"""A number as it stands in prose: sign, thousands, decimals, exponent, fraction, percent."""

# "####" at the start of a line, and what follows it if there is a number in it.
_HASHES = re.compile(r"^####[ \t]*(.*\d.*)$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_JSON_OPENING = re.compile(r"[\[{]")
_MOST_FAILED_JSON_READINGS = 2_000

# Boxes.
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_NUMBER = re.compile(r"[-+]?\d(?:[\d,./]*\d)?")
_BETWEEN_LISTED = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b"
    r"|또는|그리고|및|와|과|[A-Za-z](?:_\{?\d\}?)?\s*=)*"
)
_SEPARATOR = re.compile(r"[,;&]|and|or|또는|그리고|및|와|과")

# Markers.
_MARKER = re.compile(
    r"""
    (?<![a-z]) (?:final\s+)? answers? [*_]{0,2} [ \t]*
        (?: is\b [*_]{0,2} [ \t]* [:\uff1a]? | [:\uff1a=] ) [*_]*
  | (?<![가-힣]) (?:정답|해답|답변|답안|답) [*_]{0,2} [ \t]*
        (?: [:\uff1a=] [*_]* | [은이](?![가-힣]) )
  | ^ [\s#*_]* (?: (?:final\s+)? answer | (?:최종\s*)? (?:정답|답) ) [ \t*_]* $
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_KOREAN_ENDING = re.compile(r"\s*(?:입니다|이다|이에요|예요|이며.*|이고.*|이므로.*)$")
_REASON = re.compile(r",?\s+(?:because|since|which|where|so that)\b.*")
# A full stop ends a sentence, but not in "3.14", "St. Louis" or "U.S. Senate".
_SENTENCE_END = re.compile(
    r"(?<!\bSt)(?<!\bMt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\.[A-Z])[.。](?=[\s*_]|$).*"
)
_EMPHASIS = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])|`")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("*", "*"), ("_", "_"))
_LINE = re.compile(r"([^\n]*)(?:\n|\Z)")
_LINES_LOOKED_AT = 5


def last_box(text: str) -> str | None:
    r"""The content of the last box; None if there is none, or if it was never closed.

    Braces are balanced, `\boxed 7` counts, empty boxes do not, and neither does the word
    "boxed". Boxes that follow each other as a list, as in `\boxed{2}` and `\boxed{3}`, give one
    list: "2, 3".
    """
    boxes = _boxes(text)
    if not boxes or boxes[-1][2] is None:
        return None
    contents: list[str] = []
    following = len(text)
    for start, end, content in reversed(boxes):
        if content is None or (contents and not _listed(text[end:following])):
            break
        contents.append(content)
        following = start
    return ", ".join(dict.fromkeys(reversed(contents)))


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """Start, end and content of every outermost box that is not empty; None where unclosed."""
    starts = list(_BOX.finditer(text))
    closing = _closing_braces(text) if starts else {}
    boxes: list[tuple[int, int, str | None]] = []
    covered = 0
    for match in starts:
        if match.start() < covered:
            continue
        inside = match.end()
        if text.startswith("{", inside):
            end = closing.get(inside)
            content = None if end is None else text[inside + 1 : end].strip()
            covered = inside if end is None else end + 1
        elif bare := _BARE_NUMBER.match(text, inside):
            content, covered = bare.group(), bare.end()
        else:
            continue
        if content != "":
            boxes.append((match.start(), covered, content))
    return boxes


def _closing_braces(text: str) -> dict[int, int]:
    """Position of the closing brace by that of the opening one, in one pass over the text."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _listed(between: str) -> bool:
    short = len(between) <= 40
    return short and bool(_SEPARATOR.search(between) and _BETWEEN_LISTED.fullmatch(between))


def after_marker(text: str) -> str | None:
    """What follows the last marker that anything follows, up to the end of its sentence."""
    for marker in reversed(list(_MARKER.finditer(text))):
        for line in islice(_LINE.finditer(text, marker.end()), _LINES_LOOKED_AT):
            sentence = _SENTENCE_END.sub("", _EMPHASIS.sub("", line[1]))
            if answer := tidy(_KOREAN_ENDING.sub("", tidy(_REASON.sub("", sentence)))):
                return answer
    return None


def last_line(text: str) -> str | None:
    """The last line that holds anything but markup."""
    return next((line for raw in reversed(text.splitlines()) if (line := tidy(raw))), None)


def tidy(line: str) -> str:
    """A line without emphasis, list marks, math delimiters around it, and its final full stop."""
    line = _EMPHASIS.sub("", line).strip().lstrip("#>}").strip()
    line = re.sub(r"^[-*•]\s+", "", line)
    previous = ""
    while line != previous:
        previous = line
        line = line.removesuffix(".").removesuffix("。").strip()
        for opening, closing in _DELIMITERS:
            inside = line.removeprefix(opening).removesuffix(closing)
            # "$2$ and $3$" is not one formula between two dollar signs.
            if len(line) - len(inside) == len(opening) + len(closing) and opening not in inside:
                line = inside.strip()
    return "" if line in {"$$", "$", r"\[", r"\]", "*", "_", "---"} else line


def last_number(text: str) -> str | None:
    """The last number on the last line that holds anything."""
    numbers = NUMBER.findall(fold(last_line(text) or ""))
    return numbers[-1] if numbers else None


def _last_group(pattern: re.Pattern[str], text: str) -> str | None:
    """What the only group of a pattern holds at its last match."""
    found = pattern.findall(text)
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
        decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=refuse)
        _, end = decoder.raw_decode(text, start or 0)
    except (ValueError, RecursionError):
        return None
    return end if start is not None or end == len(text) else None


def refuse(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(constant)


STRATEGIES: Mapping[str, Strategy] = {
    "boxed": last_box,
    "marker": after_marker,
    "hashes": partial(_last_group, _HASHES),
    "last-line": last_line,
    "last-number": last_number,
    "fence": partial(_last_group, _FENCE),
    "json": last_json,
}
"""All strategies by name."""


def check_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if all are known; else an UnknownNameError that suggests the nearest one."""
    for name in names:
        if name not in STRATEGIES:
            raise unknown_name("extraction strategy", name, STRATEGIES)
    return tuple(names)


def extract_answer(
    text: str, strategies: Sequence[str], accept: Callable[[str], Any] = bool
) -> str | None:
    """The first answer in a trace's text that a strategy finds and `accept` does not refuse.

    Raises:
        UnknownNameError: a name in `strategies`, tried in this order, is not in `STRATEGIES`.
    """
    names = check_strategies(strategies)
    _, closed, visible = text.rpartition("</think>")
    if closed or "<think>" not in text:
        for name in names:
            if (answer := STRATEGIES[name](visible)) and accept(answer):
                return answer
    if "boxed" in names and (answer := last_box(text)) and accept(answer):
        return answer
    return None
