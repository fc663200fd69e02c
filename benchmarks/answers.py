"""Seconds to put 512 answers to one question into classes of equal answers.

    python benchmarks/answers.py

CPU seconds of this process and of the process that runs math-verify, medians of five rounds over
freshly drawn answers. Every round has new numbers and formulas, so that no cache helps; the
worker runs already, and what its start costs stands in the last line. The target is 1 s where
most answers are simple.
"""

import os
import random
import statistics
import time
from pathlib import Path

from conviction.answers import AnswerKind, Grouping, kind

ANSWERS = 512
ROUNDS = 5


def numbers(random_: random.Random, classes: int) -> list[str]:
    """Numbers in the spellings that models use."""
    found: list[str] = []
    least = random_.randrange(10**6)
    for _ in range(ANSWERS):
        value = least + random_.randrange(classes)
        spelling = random_.choice(
            ["{}", "x = {}", r"\boxed{{{}}}", "{}.0", r"{}\text{{ cm}}", "${}$"]
        )
        found.append(spelling.format(value))
    return found


def formulas(random_: random.Random, count: int) -> list[str]:
    """`count` different formulas; every second one is another way to write the one before."""
    found: list[str] = []
    for _ in range(count // 2):
        a, b = random_.randrange(2, 40), random_.randrange(2, 400)
        found += random_.choice(
            [
                [rf"\frac{{{a}}}{{1+\sqrt{{{b}}}}}", rf"\frac{{{a}(\sqrt{{{b}}}-1)}}{{{b - 1}}}"],
                [f"(x+{a})^2+{b}", f"x^2+{2 * a}x+{a * a + b}"],
                [rf"{a}(1+\sqrt{{{b}}})", rf"{a}\sqrt{{{b}}}+{a}"],
                [rf"\left({a}, \frac{{\pi}}{{{b}}}\right)", rf"({a},\pi/{b})"],
            ]
        )
    return found


def mixed(random_: random.Random, count: int) -> list[str]:
    """Mostly numbers, and `count` formulas among them."""
    answers = numbers(random_, 40)[: ANSWERS - count] + formulas(random_, count)
    random_.shuffle(answers)
    return answers


def worker_seconds(answers: AnswerKind) -> float:
    """CPU seconds that the worker process has used so far (Linux; elsewhere 0)."""
    process_id = answers._comparer.process_id  # noqa: SLF001  # a benchmark may look inside
    stat = Path(f"/proc/{process_id}/stat")
    if process_id is None or not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(answers: AnswerKind, texts: list[str]) -> tuple[float, float, int]:
    """CPU seconds here, CPU seconds in the worker, and the number of classes."""
    here, there = time.process_time(), worker_seconds(answers)
    grouping = Grouping(answers)
    classes = {grouping.classify(text).key for text in texts}
    return time.process_time() - here, worker_seconds(answers) - there, len(classes)


def main() -> None:
    answers = kind("math")
    here, wall = time.process_time(), time.monotonic()
    answers.equivalent(r"\log_{2}(8)", "3")
    start = worker_seconds(answers), time.process_time() - here, time.monotonic() - wall
    random_ = random.Random(7)  # noqa: S311  # no secret
    mixes = {
        "one answer": lambda: ["42"] * ANSWERS,
        "20 numbers": lambda: numbers(random_, 20),
        "512 different numbers": lambda: [
            str(number) for number in random_.sample(range(10**6), ANSWERS)
        ],
        "numbers, 24 formulas": lambda: mixed(random_, 24),
        "numbers, 48 formulas": lambda: mixed(random_, 48),
        "512 formulas": lambda: formulas(random_, ANSWERS),
    }
    print(f"{'512 answers':24}{'classes':>8}{'here, s':>10}{'worker, s':>11}{'in all, s':>11}")
    for name, make in mixes.items():
        rounds = [measure(answers, make()) for _ in range(ROUNDS)]
        own, other, total = (
            statistics.median(values)
            for values in zip(*((a, b, a + b) for a, b, _ in rounds), strict=True)
        )
        print(f"{name:24}{rounds[-1][2]:>8}{own:>10.3f}{other:>11.3f}{total:>11.3f}")
    print(f"start of the worker: {start[0]:.2f} s of CPU, {start[2]:.2f} s of time, once")
    answers.close()


if __name__ == "__main__":
    main()
