"""What a model wrote, made safe to print: a terminal obeys control characters."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """`text` with control characters shown as "�"; newlines and tabs stay.

    Directional overrides count as control characters: they make a line read other than it is.
    """
    return _CONTROL.sub("\ufffd", text)
