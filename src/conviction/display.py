"""Text of models and servers made fit to be shown: on terminals, in logs, in messages and pages.

Such text is hostile until it went through here: control characters move a terminal's cursor, end a
line of a log, or make a line read other than it is.
"""

import re
from collections.abc import Iterable

MOST_QUOTED = 300
"""Characters of a server's own words in a message."""

_MOST_CAUSES = 3
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """`text` with control characters shown as "�"; newlines and tabs stay.

    Directional overrides, further line ends, and halves of characters, which cannot be written,
    count as control characters.
    """
    return _CONTROL.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`safe` text on a single line."""
    return " ".join(safe(text).split())


def printable(text: str) -> str:
    """For lines of a log: `text` with all that is not printable, line breaks too, escaped."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def quoted(text: str | bytes, secret: str | None = None) -> str:
    """The beginning of what a server said, on one line, at most `MOST_QUOTED` characters.

    The lines of `secret` are hidden first, as shortening would leave a part of them.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    for hidden in (secret or "").splitlines():
        text = text.replace(hidden, "…")
    # All that is shown stands in the beginning, however much white space there is.
    return shortened(one_line(text[: 64 * MOST_QUOTED]), MOST_QUOTED)


def shortened(text: str, most: int) -> str:
    """`text`, its end replaced by "…" where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(causes: Iterable[str]) -> str:
    """Different causes in one message: the first of them, and how many more there are."""
    different = tuple(dict.fromkeys(causes))
    more = len(different) - _MOST_CAUSES
    return "; ".join([*different[:_MOST_CAUSES], *([f"and {more:,} more"] if more > 0 else [])])


def escaped(json: str) -> str:
    """JSON with control characters spelled out, so that it says the same and commands nothing."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json)
