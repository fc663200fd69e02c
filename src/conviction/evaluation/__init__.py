"""Evaluation of whole data sets, and their recording."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, as in "1 trace" and "1,200 traces"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
