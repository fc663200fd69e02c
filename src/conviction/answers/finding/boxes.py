r"""Boxes: `\boxed{…}` and `\fbox{…}`."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_NUMBER = re.compile(r"[-+]?\d(?:[\d,./]*\d)?")
_BETWEEN_LISTED = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b"
    r"|또는|그리고|및|와|과|[A-Za-z](?:_\{?\d\}?)?\s*=)*"
)
_SEPARATOR = re.compile(r"[,;&]|and|or|또는|그리고|및|와|과")
_LONGEST_BETWEEN = 40


def boxed(text: str) -> Iterator[str]:
    r"""The content of the last box; nothing if there is none, or if it was never closed.

    Braces are balanced, `\boxed 7` counts, empty boxes do not, and neither does the word
    "boxed". Boxes that follow each other as a list, as in `\boxed{2}` and `\boxed{3}`, give one
    list: "2, 3". Of a box that holds nothing but a box, the inner one counts.
    """
    boxes = _boxes(text)
    if not boxes or boxes[-1][2] is None:
        return
    contents: list[str] = []
    following = len(text)
    for start, end, content in reversed(boxes):
        if content is None or (contents and not _listed(text, end, following)):
            break
        contents.append(content)
        following = start
    yield ", ".join(dict.fromkeys(reversed(contents)))


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """Start, end and content of every outermost box that is not empty; None where unclosed."""
    starts = list(_BOX.finditer(text)) if "boxed" in text or "fbox" in text else []
    closing = _closing_braces(text) if starts else {}
    inside_of = {match.start(): match.end() for match in starts}
    boxes: list[tuple[int, int, str | None]] = []
    covered = 0
    for match in starts:
        if match.start() < covered:
            continue
        inside = match.end()
        if text.startswith("{", inside):
            end = closing.get(inside)
            content = None if end is None else _content(text, inside, end, inside_of, closing)
            covered = inside if end is None else end + 1
        elif bare := _BARE_NUMBER.match(text, inside):
            content, covered = bare.group(), bare.end()
        else:
            continue
        if content != "":
            boxes.append((match.start(), covered, content))
    return boxes


def _content(
    text: str, opening: int, end: int, inside_of: dict[int, int], closing: dict[int, int]
) -> str:
    """What stands between two braces, or within the only box there."""
    while (inner := inside_of.get(opening + 1)) and closing.get(inner) == end - 1:
        opening, end = inner, end - 1
    return text[opening + 1 : end].strip()


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


def _listed(text: str, end: int, following: int) -> bool:
    if following - end > _LONGEST_BETWEEN:
        return False
    between = text[end:following]
    return bool(_SEPARATOR.search(between) and _BETWEEN_LISTED.fullmatch(between))
