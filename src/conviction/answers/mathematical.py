r"""Mathematical answers: numbers, formulas, tuples, sets, matrices, and words.

The key of an answer is its canonical form: structure is put in order, and formulas are known by
their values (`formulas.values`), which needs mpmath (extra `math`). So equal keys decide, each
answer is read once, and nothing is compared pair by pair.
"""

from collections.abc import Sequence
from functools import lru_cache

from conviction.answers.formulas import values
from conviction.answers.formulas.forms import NOT_CALCULATED, OPEN
from conviction.answers.formulas.shapes import read
from conviction.answers.kinds import AnswerKind

_MOST_KEPT = 4096


class MathematicalAnswers(AnswerKind):
    r"""Numbers, formulas, tuples, intervals, sets, matrices and words, in LaTeX or plain.

    `formulas.shapes` says how generously answers are read.
    """

    name = "math"
    help = "a number, formula, tuple, set, matrix or words"
    strategies = ("boxed", "tag", "marker", "value")

    def __init__(self, strategies: Sequence[str] | None = None) -> None:
        super().__init__(strategies)
        self._read = lru_cache(_MOST_KEPT)(read)
        self._missed = False

    def canonical(self, answer: str) -> str:
        """Its key: a number, the digits of a constant, "formula" and a hash, or words."""
        return self._read(answer).key

    def decided(self, first: str, second: str) -> bool:
        """True unless one of them could not be read or calculated, and the other may be equal."""
        return not (first.startswith(OPEN) or second.startswith(OPEN))

    def equivalent(self, first: str, second: str) -> bool | None:
        """None: what could not be read or calculated cannot be compared."""
        self._missed |= first.startswith(NOT_CALCULATED) or second.startswith(NOT_CALCULATED)
        return None

    @property
    def limits(self) -> tuple[str, ...]:
        """That formulas could not be compared for want of mpmath, where that happened."""
        if not self._missed or values.installed():
            return ()
        missing = (
            "mpmath is not installed, so formulas count as equal only where their simple forms "
            "agree. Install it with: pip install 'conviction[math]'"
        )
        return (missing,)

    @property
    def quick(self) -> bool:
        """False: a formula may take a second to calculate."""
        return False
