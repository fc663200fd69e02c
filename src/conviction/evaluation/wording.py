"""Numbers with their nouns, for people."""


def counted(number: int, noun: str) -> str:
    """A number and what is counted, as in "1 trace" and "1,200 traces"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
