r"""Answers in boxes: `\boxed{…}` and `\fbox{…}`."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_NUMBER = re.compile(r"[-+]?\d(?:[\d,./]*\d)?")
_BETWEEN_LISTED = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b"
    r"|또는|그리고|및|와|과|[A-Za-z](?:_\{?\d\}?)?\s*=)*"
)
_SEPARATOR = re.compile(r"[,;&]|and|or|또는|그리고|및|와|과")


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
