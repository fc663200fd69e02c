"""Pools of made-up traces for tests."""

import numpy as np

from conviction.core import Answer, FinishReason, Sampling
from conviction.recordings import PoolMeta, RecordedTrace

META = PoolMeta(model="made-up", top_k=20, answers="number", sampling=Sampling(max_tokens=64))


def made_up(question: str, number: int, *, tokens: int = 12, **changes: object) -> RecordedTrace:
    """A trace whose every value follows from its question and number."""
    random = np.random.default_rng([*question.encode(), number])
    right = bool(random.integers(2))
    text = "4" if right else str(random.integers(5, 8))
    values: dict[str, object] = {
        "question_id": question,
        "number": number,
        "prompt_hash": f"prompt of {question}",
        "question": f"What is {question}?",
        "gold": "4",
        "seed": 1000 + number,
        "text": f"I think it is {text}.",
        "answer": Answer(text, text),
        "correct": right,
        "finish": FinishReason.STOP,
        "tokens": tokens,
        "prompt_tokens": 7,
        "confidences": random.uniform(3, 20, tokens).astype(np.float32),
        "started": 0.5,
        "ended": 1.5 + number,
    }
    return RecordedTrace(**{**values, **changes})  # type: ignore[arg-type]
