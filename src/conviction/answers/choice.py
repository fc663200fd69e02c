"""Answers to multiple-choice questions: the letter, the number, or several of them."""

from conviction.answers.finding.labels import labels
from conviction.answers.formulas.markup import fold_words
from conviction.answers.kinds import AnswerKind, PromptEnding


class ChoiceAnswers(AnswerKind):
    """Choices: "C", "(c)", "C. Paris", "Option C" are one; so are "③", "3" and "3번".

    Several choices ("A and C", "ㄱ, ㄷ") are a set. What names no choice is no answer.
    """

    name = "choice"
    help = "the letter or number of a choice, or several"
    ending = PromptEnding("Think step by step and put the letter of the right choice in \\boxed{}.")
    korean_ending = PromptEnding("차근차근 생각한 다음 맞는 보기의 기호를 \\boxed{} 안에 쓰세요.")
    strategies = ("boxed", "tag", "choice")

    def accepts(self, answer: str) -> bool:
        """Whether it names a choice."""
        return bool(labels(answer))

    def canonical(self, answer: str) -> str:
        """The labels in upper case, sorted, as in "C" or "A,C"."""
        return ",".join(labels(answer)) or fold_words(answer) or "nothing"

    def shown(self, answer: str) -> str:
        """The labels alone: "C" for "C) Paris", "A, C" for "A and C"."""
        return ", ".join(labels(answer)) or answer
