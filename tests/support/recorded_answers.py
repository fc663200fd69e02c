"""Answers as a reasoning model gives them to contest questions, made up: the same every time."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class Model:
    """How a model answers.

    Attributes:
        percent_right: For each question, how often it is right.
        tokens: Median length of a trace of an easy question; hard ones take up to three times that.
        samples: Traces of a question.
        seed: Of all that is drawn.
    """

    percent_right: tuple[int, ...]
    tokens: int
    samples: int = 80
    seed: int = 1


STRONG = Model(
    percent_right=(
        *([100] * 12),
        99,
        98,
        97,
        95,
        93,
        90,
        88,
        85,
        80,
        75,
        70,
        62,
        55,
        50,
        45,
        30,
        12,
        5,
    ),
    tokens=3000,
    samples=100,
)
WEAKER = Model(
    percent_right=(
        *([100] * 9),
        99,
        99,
        97,
        96,
        94,
        92,
        90,
        88,
        85,
        80,
        75,
        70,
        60,
        50,
        40,
        25,
        15,
        10,
        4,
        0,
        0,
    ),
    tokens=10_000,
    seed=2,
)


def lines(model: Model) -> Iterator[dict[str, Any]]:
    """A question each: its number, its answers with their lengths, and the right one."""
    random = Random(model.seed)  # noqa: S311 - the same every time is what is wanted
    for number, percent in enumerate(model.percent_right):
        right = percent / 100
        gold = str(random.randrange(1000))
        wrong = [str(random.randrange(1000, 2000)) for _ in range(12)]
        median = model.tokens * (1 + 2 * (1 - right))
        answers: list[tuple[str, int]] = []
        for _ in range(model.samples):
            # The first wrong answers come most often; now and then there is none.
            other = "" if random.random() < 0.1 else wrong[int(12 * random.random() ** 2)]
            answer = gold if random.random() < right else other
            answers.append((answer, round(random.lognormvariate(0, 0.35) * median)))
        counts = Counter(answer for answer, _ in answers)
        yield {
            "problem_num": number,
            "total_answers": len(answers),
            "answer_counts": dict(counts),
            "gold_answer": gold,
            "majority_answer": counts.most_common(1)[0][0],
            "all_answers": answers,
        }


def write(path: Path, model: Model) -> list[dict[str, Any]]:
    """Writes the answers as JSON lines, and returns what was written."""
    written = [json.loads(json.dumps(line)) for line in lines(model)]
    path.write_text("".join(json.dumps(line) + "\n" for line in written), encoding="utf-8")
    return written
