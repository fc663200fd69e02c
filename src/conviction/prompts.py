"""From a question to the messages that a model gets: how to think, and how to end.

Styles:
    plain             the question as it is
    step-by-step      the question, then how to think and where to put the answer
    worked-examples   the same after two solved examples; small models then write short traces
                      that end where they should
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from conviction.core import Message, Question


class PromptStyle(StrEnum):
    """How much a prompt adds to the question."""

    PLAIN = "plain"
    STEP_BY_STEP = "step-by-step"
    WORKED_EXAMPLES = "worked-examples"


_HANGUL: Final = re.compile("[\uac00-\ud7a3]")

_ENGLISH: Final = {
    "math": "Think step by step and put the final answer in \\boxed{}.",
    "choice": "Think step by step and put the letter of the right choice in \\boxed{}.",
    "text": 'Think step by step and finish with a line that reads "Answer: " and the answer.',
    "json": "Think step by step and finish with the result as JSON in a ```json block.",
}
_KOREAN: Final = {
    "math": "차근차근 생각한 다음 최종 답을 \\boxed{} 안에 쓰세요.",
    "choice": "차근차근 생각한 다음 맞는 보기의 기호를 \\boxed{} 안에 쓰세요.",
    "text": '차근차근 생각한 다음 마지막 줄에 "답: "과 함께 답을 쓰세요.',
    "json": "차근차근 생각한 다음 결과를 ```json 블록에 JSON으로 쓰세요.",
}


@dataclass(frozen=True, slots=True)
class _Example:
    asked: str
    solved: str


_ENGLISH_EXAMPLES: Final = (
    _Example(
        asked="A shelf holds 4 boxes with 6 mugs in each box. 5 mugs are broken. "
        "How many mugs are whole?",
        solved="There are 4 * 6 = 24 mugs. Without the 5 broken ones, 24 - 5 = 19 are whole. "
        "The answer is \\boxed{19}.",
    ),
    _Example(
        asked="Mia had 50 stickers. She gave 12 to Leo and then bought 9 more. "
        "How many stickers does she have now?",
        solved="After giving 12 away she has 50 - 12 = 38 stickers. After buying 9 more she has "
        "38 + 9 = 47. The answer is \\boxed{47}.",
    ),
)
_KOREAN_EXAMPLES: Final = (
    _Example(
        asked="선반에 상자가 4개 있고 상자마다 컵이 6개 있습니다. 컵 5개가 깨졌습니다. "
        "멀쩡한 컵은 몇 개입니까?",
        solved="컵은 모두 4 * 6 = 24개입니다. 깨진 5개를 빼면 24 - 5 = 19개입니다. "
        "답은 \\boxed{19}입니다.",
    ),
    _Example(
        asked="미아는 스티커 50장이 있었습니다. 12장을 주고 9장을 샀습니다. 지금 몇 장입니까?",
        solved="12장을 주면 50 - 12 = 38장입니다. 9장을 사면 38 + 9 = 47장입니다. "
        "답은 \\boxed{47}입니다.",
    ),
)


def compose(text: str, *, kind: str, style: PromptStyle, id: str = "") -> Question:  # noqa: A002
    """The question to send for what a user wrote.

    Args:
        text: The user's words.
        kind: Name of the answer kind, which decides how a trace is asked to end. Kinds that
            this module does not know are asked like mathematical ones.
        style: How much to add.
        id: The question's id; derived from the text if empty.
    """
    plain = Question.ask(text, id=id)
    if style is PromptStyle.PLAIN:
        return plain
    korean = bool(_HANGUL.search(text))
    endings = _KOREAN if korean else _ENGLISH
    ending = endings.get(kind, endings["math"])
    messages: list[Message] = []
    if style is PromptStyle.WORKED_EXAMPLES and ending == endings["math"]:
        for example in _KOREAN_EXAMPLES if korean else _ENGLISH_EXAMPLES:
            messages.append(Message("user", f"{example.asked}\n\n{ending}"))
            messages.append(Message("assistant", example.solved))
    messages.append(Message("user", f"{text}\n\n{ending}"))
    return Question(tuple(messages), plain.id)
