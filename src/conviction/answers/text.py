"""Short texts as answers: names, words, phrases."""

from conviction.answers.formulas.markup import clean, fold_words
from conviction.answers.kinds import AnswerKind, PromptEnding


class TextAnswers(AnswerKind):
    """Short texts, compared without case, punctuation, articles and ways of typing."""

    name = "text"
    help = "a name, a word or a phrase"
    ending = PromptEnding(
        'Think step by step and finish with a line that reads "Answer: " and the answer.'
    )
    korean_ending = PromptEnding('차근차근 생각한 다음 마지막 줄에 "답: "과 함께 답을 쓰세요.')

    def canonical(self, answer: str) -> str:
        """Its words in lower case, one space between them."""
        plain = clean(answer) if "\\" in answer else answer
        return fold_words(plain) or answer or "nothing"
