"""Text for a terminal: what a model wrote made safe, as control characters are obeyed; times."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escaped(json: str) -> str:
    """JSON with control characters spelled out, so that it says the same and commands nothing."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json)


def safe(text: str) -> str:
    """`text` with control characters shown as "�"; newlines and tabs stay.

    Directional overrides count as control characters: they make a line read other than it is.
    """
    return _CONTROL.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`safe` text on a single line."""
    return " ".join(safe(text).split())


def duration(seconds: float) -> str:
    """Seconds as "4:07" or "1:04:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
