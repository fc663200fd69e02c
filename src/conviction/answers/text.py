"""Short texts as answers: names, words, phrases."""

from collections.abc import Sequence

from conviction.answers.base import AnswerKind
from conviction.answers.characters import fold_words
from conviction.answers.extraction import check_strategies, extract_answer
from conviction.answers.formulas.markup import clean


class TextAnswers(AnswerKind):
    """Short texts, compared without case, punctuation, articles and ways of typing.

    Args:
        strategies: How answers are found, out of `STRATEGIES`, tried in this order.

    Raises:
        UnknownNameError: a strategy is not known.
    """

    name = "text"

    def __init__(self, strategies: Sequence[str] = ("boxed", "marker", "last-line")) -> None:
        self._strategies = check_strategies(strategies)

    def extract(self, text: str) -> str | None:
        """The last answer in a finished trace's text."""
        return extract_answer(text, self._strategies)

    def canonical(self, answer: str) -> str:
        """Its words in lower case, one space between them."""
        plain = clean(answer) if "\\" in answer else answer
        return fold_words(plain) or answer or "nothing"
