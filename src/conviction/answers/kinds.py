"""Answer kinds: all that one owns, the table of them, and classes of equal answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, NamedTuple

from conviction.answers.extraction import check_strategies, extract_answer
from conviction.core import Answer
from conviction.errors import ConvictionError
from conviction.registry import Registry

BUDGET_SECONDS = 20.0
"""Time that open comparisons may take for one question, in all."""

KINDS = Registry(
    "conviction.answers",
    "answer kind",
    {
        "math": "conviction.answers.mathematical:MathematicalAnswers",
        "choice": "conviction.answers.choice:ChoiceAnswers",
        "number": "conviction.answers.number:NumberAnswers",
        "text": "conviction.answers.text:TextAnswers",
        "json": "conviction.answers.json:JsonAnswers",
    },
)


class Example(NamedTuple):
    """A solved question: it shows small models how to end, so that they stop there."""

    question: str
    solution: str


@dataclass(frozen=True, slots=True)
class PromptEnding:
    """How a prompt asks for an answer of some kind, in one language."""

    text: str
    """The sentence that follows the question."""
    examples: tuple[Example, ...] = ()
    """Questions whose solutions end as `text` asks."""


BOXED = PromptEnding(
    "Think step by step and put the final answer in \\boxed{}.",
    (
        Example(
            question="A shelf holds 4 boxes with 6 mugs in each box. 5 mugs are broken. "
            "How many mugs are whole?",
            solution="There are 4 * 6 = 24 mugs. Without the 5 broken ones, 24 - 5 = 19 are whole. "
            "The answer is \\boxed{19}.",
        ),
        Example(
            question="Mia had 50 stickers. She gave 12 to Leo and then bought 9 more. "
            "How many stickers does she have now?",
            solution="After giving 12 away she has 50 - 12 = 38 stickers. After buying 9 more she "
            "has 38 + 9 = 47. The answer is \\boxed{47}.",
        ),
    ),
)
BOXED_KOREAN = PromptEnding(
    "차근차근 생각한 다음 최종 답을 \\boxed{} 안에 쓰세요.",
    (
        Example(
            question="선반에 상자가 4개 있고 상자마다 컵이 6개 있습니다. 컵 5개가 깨졌습니다. "
            "멀쩡한 컵은 몇 개입니까?",
            solution="컵은 모두 4 * 6 = 24개입니다. 깨진 5개를 빼면 24 - 5 = 19개입니다. "
            "답은 \\boxed{19}입니다.",
        ),
        Example(
            question="미아는 스티커 50장이 있었습니다. 12장을 주고 9장을 샀습니다. "
            "지금 몇 장입니까?",
            solution="12장을 주면 50 - 12 = 38장입니다. 9장을 사면 38 + 9 = 47장입니다. "
            "답은 \\boxed{47}입니다.",
        ),
    ),
)


class AnswerKind(ABC):
    """One kind of answer: how to ask for it, find it in text, compare it and show it.

    Canonical forms decide first, on the event loop: extracting and canonicalising take well under
    a millisecond, are pure, and are cached by the caller. `equivalent` may wait; it is asked in
    another thread, and only about pairs of different canonical forms that `decided` leaves open.

    A built-in kind has a line in `KINDS`, a kind of another package an entry point under
    `conviction.answers`. The least that one needs is a name and `canonical`.

    Args:
        strategies: In place of the kind's own.

    Raises:
        UnknownNameError: a strategy is not known.
    """

    name: ClassVar[str]
    """Its name on the command line and in requests."""
    help: ClassVar[str] = ""
    """What its answers are, in a few words for help texts."""
    ending: PromptEnding = BOXED
    korean_ending: PromptEnding = BOXED_KOREAN
    strategies: Sequence[str] = ("boxed", "marker", "last-line")
    """How answers are found, out of `STRATEGIES`, tried in this order."""

    def __init__(self, strategies: Sequence[str] | None = None) -> None:
        if strategies is not None:
            self.strategies = check_strategies(strategies)

    def prompt_ending(self, *, korean: bool) -> PromptEnding:
        """How a prompt in Korean, or else in English, asks for it."""
        return self.korean_ending if korean else self.ending

    def extract(self, text: str) -> str | None:
        """The last answer in a finished trace's text; None if there is none. Never raises."""
        return extract_answer(text, self.strategies, self.accepts)

    def accepts(self, answer: str) -> bool:
        """Whether text that a strategy found can be an answer of this kind."""
        del answer
        return True

    @abstractmethod
    def canonical(self, answer: str) -> str:
        """A normal form: equal forms mean equal answers. Never raises, never empty."""

    def decided(self, first: str, second: str) -> bool:
        """Whether two different canonical forms are certainly different answers."""
        del first, second
        return True

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two canonical forms that are not `decided` mean the same; may take a while."""
        del first, second
        return False

    def shown(self, answer: str) -> str:
        """The text for an answer among the votes, of the same canonical form."""
        return answer

    @property
    def limits(self) -> tuple[str, ...]:
        """What it could not do so far, in sentences for the reader of a verdict."""
        return ()

    def close(self) -> None:
        """End helper processes, if there are any. The kind can be used again afterwards."""


def kinds() -> tuple[str, ...]:
    """Names of all answer kinds, sorted."""
    return KINDS.names()


def kind(name: str) -> AnswerKind:
    """A new answer kind by its registered name.

    Raises:
        UnknownNameError: no kind has this name.
        PluginError: a plug-in brings it and cannot be used.
    """
    found: type[AnswerKind] = KINDS.subclass(name, AnswerKind)
    return found()


def kinds_help() -> str:
    """All kinds and what their answers are, in one line for help texts."""
    return "Kind of answer. " + "; ".join(map(_help, kinds())) + "."


def _help(name: str) -> str:
    try:
        words = KINDS.subclass(name, AnswerKind).help
    except ConvictionError:
        words = "cannot be imported"
    return f"{name}: {words}" if words else name


class Grouping:
    """The classes of equal answers to one question, as the answers come in.

    A new answer joins the first class whose first answer it equals. So the classes depend on the
    order of the answers where equality is not transitive ("0.5" and "50" both equal "50%"), and on
    nothing else. Used by one thread at a time; where `classify` would wait for a comparison, an
    event loop calls it in another thread.

    Args:
        kind: Compares the answers.
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
        if canonical not in self._keys:
            self._keys[canonical] = self._class_of(canonical)
        return Answer(self._kind.shown(raw), self._keys[canonical])

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
        if not self._left_open:
            return self._kind.limits
        used_up = (
            f"Comparing answers took more than {self._budget:g} s; {self._left_open} comparisons "
            "were left out, and those answers count as different."
        )
        return (*self._kind.limits, used_up)

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
            self._left_open += 1
            return False
        started = monotonic()
        equal = self._kind.equivalent(representative, canonical)
        self._spent += monotonic() - started
        return equal


def is_correct(kind: AnswerKind, answer: Answer | str | None, gold: str | None) -> bool:
    """Whether an answer means the same as the data set's gold answer; no answer is wrong.

    May wait for another process, where canonical forms leave it open.
    """
    text = answer.text if isinstance(answer, Answer) else answer
    if text is None or gold is None:
        return False
    given, wanted = kind.canonical(text), kind.canonical(gold)
    same = given == wanted
    return same or (not kind.decided(given, wanted) and kind.equivalent(given, wanted))
