"""Finding the answer in what a trace wrote: named strategies, tried in order.

The answer is looked for in the final part of a trace, after its reasoning (`finding.parts`), within
the last 65,536 characters of it. Only a box is also accepted from within the reasoning, and only
where the final part holds no answer, or where the reasoning was never closed.

All of it takes linear time in the text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from conviction.answers.finding.boxes import boxed
from conviction.answers.finding.choices import chosen
from conviction.answers.finding.markers import after_marker
from conviction.answers.finding.parts import parts
from conviction.answers.finding.refusals import cannot_answer
from conviction.answers.finding.values import (
    after_hashes,
    in_fence,
    in_tag,
    last_json,
    last_line,
    last_number,
    last_value,
)
from conviction.registry import unknown_name

Strategy = Callable[[str], Iterable[str]]
"""Takes a text and gives the answers that may be meant, the likeliest first."""

STRATEGIES: Mapping[str, Strategy] = {
    "boxed": boxed,
    "tag": in_tag,
    "marker": after_marker,
    "choice": chosen,
    "hashes": after_hashes,
    "last-line": last_line,
    "last-number": last_number,
    "value": last_value,
    "fence": in_fence,
    "json": last_json,
}
"""All strategies by name."""
_MOST_CANDIDATES = 24


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

    A trace that says that it cannot answer has none.

    Raises:
        UnknownNameError: a name in `strategies`, tried in this order, is not in `STRATEGIES`.
    """
    names = check_strategies(strategies)
    final, everything = parts(text)
    for name in names if final else ():
        for answer in islice(STRATEGIES[name](final), _MOST_CANDIDATES):
            if answer and not cannot_answer(answer) and accept(answer):
                return answer
    if "boxed" in names and final != everything:
        return next((answer for answer in boxed(everything) if answer and accept(answer)), None)
    return None
