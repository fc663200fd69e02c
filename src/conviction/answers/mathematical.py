r"""Mathematical answers: numbers, formulas, tuples, sets, matrices, and words.

Canonical forms decide most pairs. What they leave open goes to math-verify (extra `math`), in a
process of its own that is killed when a comparison takes too long.
"""

from collections.abc import Sequence
from functools import lru_cache

from conviction.answers.base import AnswerKind
from conviction.answers.comparing import FormulaComparer
from conviction.answers.extraction import check_strategies, extract_answer
from conviction.answers.formulas.differences import certainly_differ, stand_for_the_same
from conviction.answers.formulas.shapes import Form, read

_MOST_KEPT = 4096


class MathematicalAnswers(AnswerKind):
    r"""Numbers, formulas, tuples, intervals, sets, matrices and words, in LaTeX or plain.

    `formulas.shapes` tells how generously answers are read.

    Args:
        strategies: How answers are found, out of `STRATEGIES`, tried in this order.
        seconds_per_pair: Time for one comparison with math-verify.

    Raises:
        UnknownNameError: a strategy is not known.
    """

    name = "math"

    def __init__(
        self,
        strategies: Sequence[str] = ("boxed", "marker"),
        *,
        seconds_per_pair: float = 2.0,
    ) -> None:
        self._strategies = check_strategies(strategies)
        self._comparer = FormulaComparer(seconds_per_pair=seconds_per_pair)
        self._read = lru_cache(_MOST_KEPT)(read)
        self._forms: dict[str, Form] = {}

    def extract(self, text: str) -> str | None:
        """The last answer in a finished trace's text."""
        return extract_answer(text, self._strategies)

    def canonical(self, answer: str) -> str:
        """LaTeX in normal form, or words in lower case."""
        form = self._read(answer)
        if len(self._forms) >= _MOST_KEPT:
            self._forms.clear()
        self._forms[form.text] = form
        return form.text

    def decided(self, first: str, second: str) -> bool:
        """Whether two different canonical forms are certainly different answers."""
        return certainly_differ(self._form(first), self._form(second))

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two canonical forms mean the same, to a few seconds' best knowledge."""
        if stand_for_the_same(self._form(first), self._form(second)):
            return True
        return self._comparer.equivalent(first, second)

    @property
    def limits(self) -> tuple[str, ...]:
        """That formulas could not be compared, where they could not."""
        return (self._comparer.failure,) if self._comparer.failure else ()

    def close(self) -> None:
        """End the process that compares formulas."""
        self._comparer.close()

    def _form(self, canonical: str) -> Form:
        return self._forms.get(canonical) or self._read(canonical)
