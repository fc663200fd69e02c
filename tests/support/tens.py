"""Questions whose right answers are tens."""

from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import PromptedQuestion
from conviction.prompts import PromptStyle


def questions(count: int) -> tuple[PromptedQuestion, ...]:
    """Questions 0, 1, … of which the right answer is ten times the number."""
    return tuple(
        PromptedQuestion.of(
            DatasetQuestion(f"q{i}", f"What is {i} * 10?", str(i * 10), f"line {i}"),
            answers="number",
            style=PromptStyle.PLAIN,
        )
        for i in range(count)
    )
