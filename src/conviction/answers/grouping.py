"""Classes of equal answers, and whether an answer is right."""

from collections.abc import Sequence
from itertools import combinations, permutations
from time import thread_time

from conviction.answers.kinds import AnswerKind
from conviction.core import Answer

SAME, DECIDED, COMPARED, FAILED = (
    "same canonical form",
    "their canonical forms differ",
    "the kind compared them",
    "they could not be compared",
)
"""Why two answers are, or are not, one vote."""

BUDGET_SECONDS = 20.0
"""CPU time that comparisons may take for one question, in all."""


class Grouping:
    """The classes of equal answers to one question, as the answers come in.

    A new answer joins the first class whose first answer it equals. Where equality is transitive,
    as a kind's must be, the classes do not depend on the order of the answers. Used by one thread
    at a time; where `classify` would wait for a comparison, an event loop calls it in another
    thread.

    Args:
        kind: Compares the answers.
        budget_seconds: CPU time that comparisons may take in all; once it is used up, answers
            whose equality is still open count as different.
    """

    def __init__(self, kind: AnswerKind, *, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._kind = kind
        self._budget = budget_seconds
        self._spent = 0.0
        self._failed = 0
        self._left_out: set[str] = set()
        self._canonical: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._representatives: list[str] = []

    def classify(self, raw: str) -> Answer:
        """The answer with the key of its class; may wait for a comparison."""
        canonical = self._canonical_form(raw)
        if canonical not in self._keys:
            self._keys[canonical] = self._class_of(canonical)
        shown = self._kind.shown(raw)
        return Answer(shown, self._keys[canonical], "" if raw == shown else raw)

    def classify_at_once(self, raw: str) -> Answer | None:
        """Like `classify`, but None where that would have to wait for a comparison."""
        canonical = self._canonical_form(raw)
        known = canonical in self._keys
        if known or all(self._kind.decided(other, canonical) for other in self._representatives):
            return self.classify(raw)
        return None

    @property
    def limits(self) -> tuple[str, ...]:
        """What could not be compared so far, for the reader of the verdict; empty if nothing."""
        notes = list(self._kind.limits)
        if self._failed:
            pairs = "1 pair" if self._failed == 1 else f"{self._failed} pairs"
            notes.append(f"{pairs} of answers could not be compared, and count as different.")
        if self._left_out:
            count = len(self._left_out)
            which = "1 answer was" if count == 1 else f"{count} answers were"
            notes.append(
                f"Comparing answers took more than {self._budget:g} s of CPU time; {which} not "
                "compared with every other, and may be split from equal ones."
            )
        return tuple(notes)

    def _canonical_form(self, raw: str) -> str:
        if raw not in self._canonical:
            self._canonical[raw] = self._kind.canonical(raw)
        return self._canonical[raw]

    def _class_of(self, canonical: str) -> str:
        for known in self._representatives:
            if not self._kind.decided(known, canonical) and self._equivalent(known, canonical):
                return known
        self._representatives.append(canonical)
        return canonical

    def _equivalent(self, representative: str, canonical: str) -> bool:
        if self._spent >= self._budget:
            self._left_out.add(canonical)
            return False
        # CPU time: on a busy machine, as many comparisons are made as on an idle one.
        began = thread_time()
        equal = self._kind.equivalent(representative, canonical)
        self._spent += thread_time() - began
        self._failed += equal is None
        return bool(equal)


def related(kind: AnswerKind, first: str, second: str) -> tuple[bool | None, str]:
    """Whether two canonical forms mean the same, None if they could not be compared; and why.

    May take a while.
    """
    if first == second:
        return True, SAME
    if kind.decided(first, second):
        return False, DECIDED
    equal = kind.equivalent(first, second)
    return equal, FAILED if equal is None else COMPARED


def compared(kind: AnswerKind, first: str, second: str) -> bool | None:
    """Whether two answers mean the same; None if they could not be compared. May take a while."""
    return related(kind, kind.canonical(first), kind.canonical(second))[0]


def is_correct(kind: AnswerKind, answer: Answer | str | None, gold: str | None) -> bool:
    """Whether an answer means the same as the data set's gold answer; no answer is wrong.

    May wait for another process, where canonical forms leave it open.
    """
    text = answer.text if isinstance(answer, Answer) else answer
    if text is None or gold is None:
        return False
    return bool(compared(kind, text, gold))


def broken_rules(kind: AnswerKind, answers: Sequence[str]) -> list[str]:
    """What a kind does with these answers that no kind may, one sentence each; for its tests.

    Equality must be the same in both directions and transitive, and an answer as it is shown must
    equal itself. It compares every pair, both ways; pairs that cannot be compared prove nothing.
    """
    found: list[str] = []
    equal: dict[tuple[str, str], bool | None] = {}
    distinct = list(dict.fromkeys(answers))
    for text in distinct:
        shown = kind.shown(text)
        if compared(kind, text, shown) is False:
            found.append(f"{text!r} is shown as {shown!r}, which is a different answer.")
    for first, second in combinations(distinct, 2):
        there, back = compared(kind, first, second), compared(kind, second, first)
        equal[first, second], equal[second, first] = there, back
        if None not in (there, back) and there is not back:
            one, other = (first, second) if there else (second, first)
            found.append(f"{one!r} equals {other!r}, but not the other way round.")
    for first, middle, last in permutations(distinct, 3):
        chained = equal[first, middle] and equal[middle, last]
        if first < last and chained and equal[first, last] is False:
            found.append(
                f"{first!r} equals {middle!r} and {middle!r} equals {last!r}, but {first!r} does "
                f"not equal {last!r}."
            )
    return found
