"""Putting the answers to one question into classes of equal answers, as they come in."""

from time import monotonic

from conviction.answers.base import AnswerKind
from conviction.core import Answer

BUDGET_SECONDS = 20.0
"""Time that open comparisons may take for one question, in all."""


class Grouping:
    """The classes of equal answers to one question.

    The first answer of a class represents it: a new answer joins the first class whose
    representative it equals. So the classes depend on the order of the answers where equality is
    not transitive ("0.5" and "50" both equal "50%"), and on nothing else. Used by one thread at a
    time; where `classify` would wait for a comparison, an event loop calls it in another thread.

    Args:
        kind: Finds and compares the answers.
        budget_seconds: Time that `AnswerKind.equivalent` may take in all; once it is used up,
            answers whose equality is still open count as different.
    """

    def __init__(self, kind: AnswerKind, *, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._kind = kind
        self._budget = budget_seconds
        self._spent = 0.0
        self._left_open = 0
        self._canonical: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._representatives: list[str] = []

    def classify(self, raw: str) -> Answer:
        """The answer with the key of its class; may wait for a comparison. Never raises."""
        canonical = self._canonical_form(raw)
        key = self._keys.get(canonical)
        if key is None:
            key = self._keys[canonical] = self._class_of(canonical)
        return Answer(raw, key)

    def classify_at_once(self, raw: str) -> Answer | None:
        """Like `classify`, but None where that would have to wait for a comparison."""
        canonical = self._canonical_form(raw)
        if canonical not in self._keys and not all(
            self._kind.decided(representative, canonical)
            for representative in self._representatives
        ):
            return None
        return self.classify(raw)

    def _canonical_form(self, raw: str) -> str:
        canonical = self._canonical.get(raw)
        if canonical is None:
            canonical = self._canonical[raw] = self._kind.canonical(raw)
        return canonical

    @property
    def limits(self) -> tuple[str, ...]:
        """What could not be compared so far, for the reader of the verdict; empty if nothing."""
        if not self._left_open:
            return self._kind.limits
        used_up = (
            f"Comparing answers took more than {self._budget:g} s; {self._left_open} comparisons "
            "were left out, and those answers count as different."
        )
        return (*self._kind.limits, used_up)

    def _class_of(self, canonical: str) -> str:
        for representative in self._representatives:
            if not self._kind.decided(representative, canonical) and self._equivalent(
                representative, canonical
            ):
                return representative
        self._representatives.append(canonical)
        return canonical

    def _equivalent(self, representative: str, canonical: str) -> bool:
        if self._spent >= self._budget:
            self._left_open += 1
            return False
        started = monotonic()
        equal = self._kind.equivalent(representative, canonical)
        self._spent += monotonic() - started
        return equal
