"""Questions whose right answers are tens."""

import json
from pathlib import Path

from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import PromptedQuestion
from conviction.prompts import PromptStyle


def data_set(path: Path, count: int) -> Path:
    """The file, with questions 0, 1, … as a data set that the commands read."""
    rows = [{"question": f"What is {i} * 10?", "answer": str(i * 10)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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
