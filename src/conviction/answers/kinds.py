"""Answer kinds: all that one owns, and the table of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from conviction.answers.extraction import check_strategies, extract_answer
from conviction.errors import ConvictionError
from conviction.registry import Registry

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
# Small models write a bare "4" in Korean unless steps and a last line are asked for and shown. Of
# the smallest model's traces of five word problems, 17 of 20 end in a box and 10 are right; asked
# to think and to use \boxed{}, 2 of 40 and 4 of 40.
BOXED_KOREAN = PromptEnding(
    '풀이를 한 단계씩 쓰고, 마지막 줄에 "답은 \\boxed{값}입니다."라고 쓰세요.',
    (
        Example(
            question="선반에 상자가 4개 있고 상자마다 컵이 6개 있습니다. 컵 5개가 깨졌습니다. "
            "멀쩡한 컵은 몇 개입니까?",
            solution="상자마다 컵이 6개씩 4상자이므로 4 * 6 = 24개입니다. 깨진 컵 5개를 빼면 "
            "24 - 5 = 19개입니다. 따라서 답은 \\boxed{19}입니다.",
        ),
        Example(
            question="미아는 스티커 50장이 있었습니다. 12장을 주고 9장을 샀습니다. "
            "지금 몇 장입니까?",
            solution="처음에 스티커 50장이 있었습니다. 12장을 주었으므로 50 - 12 = 38장입니다. "
            "9장을 샀으므로 38 + 9 = 47장입니다. 따라서 답은 \\boxed{47}입니다.",
        ),
    ),
)


class AnswerKind(ABC):
    """One kind of answer: how to ask for it, find it in text, compare it and show it.

    Canonical forms decide first; only pairs of different ones that `decided` leaves open are
    compared. Extracting and canonicalising are pure and linear in the text, and the caller caches
    them.

    Equality must be an equivalence relation: the same in both directions, and transitive. Then the
    classes do not depend on the order of the answers. `conviction.answers.broken_rules` checks it
    on examples, and `conviction answers` on what it is given.

    Built-in kinds read short texts on the event loop. Other kinds always run in a thread, so they
    may take their time, but a call that never returns keeps that thread.

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
    strategies: Sequence[str] = ("boxed", "tag", "marker", "last-line")
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

    def equivalent(self, first: str, second: str) -> bool | None:
        """Whether two canonical forms that are not `decided` mean the same; may take a while.

        None if the comparison failed or took too long: the answers then count as different, and
        the verdict says so. A limit on its time should be one on CPU time, so that a busy machine
        changes no verdict.
        """
        del first, second
        return False

    def shown(self, answer: str) -> str:
        """The text for an answer among the votes, of the same canonical form."""
        return answer

    @property
    def limits(self) -> tuple[str, ...]:
        """What it cannot do on this machine, in sentences for the reader of a verdict.

        Not what went wrong with single answers: `equivalent` reports that.
        """
        return ()

    @property
    def quick(self) -> bool:
        """Whether it reads a few thousand characters within milliseconds, always."""
        return type(self).__module__.startswith("conviction.answers.")

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
    described = ((name, kind_help(name)) for name in kinds())
    listed = (f"{name}: {words}" if words else name for name, words in described)
    return "Kind of answer. " + "; ".join(listed) + "."


def kind_help(name: str) -> str:
    """What the answers of a kind are, in a few words; also where it cannot be imported."""
    try:
        return KINDS.subclass(name, AnswerKind).help
    except ConvictionError:
        return "cannot be imported"
