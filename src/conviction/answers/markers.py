"""Answers behind a marker ("Answer: 42", "정답은 42입니다"), and answers on the last line."""

import re
from collections.abc import Iterator
from itertools import islice

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
_LINES_LOOKED_AT = 5


def after_marker(text: str) -> str | None:
    """What follows the last marker that anything follows, up to the end of its sentence."""
    for marker in reversed(list(_MARKER.finditer(text))):
        for line in islice(_lines_from(text, marker.end()), _LINES_LOOKED_AT):
            if answer := tidy(_KOREAN_ENDING.sub("", tidy(_sentence(line)))):
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


def _sentence(line: str) -> str:
    return _REASON.sub("", _SENTENCE_END.sub("", _EMPHASIS.sub("", line)))


def _lines_from(text: str, position: int) -> Iterator[str]:
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        yield text[position:end]
        position = end + 1
