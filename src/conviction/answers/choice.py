"""Answers to multiple-choice questions: the letter, the number, or several of them."""

import re

from conviction.answers.formulas.markup import clean, fold_words
from conviction.answers.kinds import AnswerKind, PromptEnding

_LABEL = r"[A-Z]|\d{1,2}|[ㄱ-ㅎ]|[가나다라마바사아]"
_LEAD = re.compile(
    r"^(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice|선택지|보기|정답)\s*(?:is|[은는])?\s*:?\s*)+",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"[(\[{{]?\s*({_LABEL})\s*[)\]}}]?\s*(?:번|[.:])?", re.IGNORECASE)
# A text may follow: "C) Paris", "(C) Paris", "C. Paris", "C: Paris", "C is correct".
_WITH_TEXT = re.compile(
    rf"(?:[(\[]\s*({_LABEL})\s*[)\]]|({_LABEL})\s*[).:\]](?!\d)|([A-Z])\s+(?:(?:is|because|since)\b|-))"
    r".*",
    re.IGNORECASE | re.DOTALL,
)
_EMPHASIS = " *_`\n"
_SEPARATOR = re.compile(r"\s*(?:,|;|&|/|\band\b|\bor\b|및|와|과|그리고)\s*", re.IGNORECASE)
# NFKC takes the letters of Hangul apart: "ㄱ" becomes another character that looks the same.
_HANGUL_LETTERS = str.maketrans("ᄀᄂᄃᄅᄆᄇᄉᄋᄌᄎᄏᄐᄑᄒ", "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ")


class ChoiceAnswers(AnswerKind):
    """Choices: "C", "(c)", "C. Paris", "Option C" are one; so are "③", "3" and "3번".

    Several choices ("A and C", "ㄱ, ㄷ") are a set. What holds no choice is no answer.
    """

    name = "choice"
    help = "the letter or number of a choice, or several"
    ending = PromptEnding("Think step by step and put the letter of the right choice in \\boxed{}.")
    korean_ending = PromptEnding("차근차근 생각한 다음 맞는 보기의 기호를 \\boxed{} 안에 쓰세요.")

    def accepts(self, answer: str) -> bool:
        """Whether it names a choice."""
        return bool(_choices(answer))

    def canonical(self, answer: str) -> str:
        """The labels in upper case, sorted, as in "C" or "A,C"."""
        return ",".join(_choices(answer)) or fold_words(answer) or "nothing"


def _choices(answer: str) -> list[str]:
    """The labels that an answer names, sorted; empty if it names none."""
    plain = clean(answer.strip(_EMPHASIS)).replace('"', " ").translate(_HANGUL_LETTERS)
    plain = _LEAD.sub("", plain).strip(_EMPHASIS)
    parts = [_ALONE.fullmatch(part) for part in _SEPARATOR.split(plain)]
    found = [part.group(1).upper() for part in parts if part]
    if len(found) == len(parts):
        return sorted(set(found))
    with_text = _WITH_TEXT.fullmatch(plain)
    return [label.upper() for label in with_text.groups() if label] if with_text else []
