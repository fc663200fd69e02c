"""Seconds to put 512 answers to one question into classes of equal answers.

    python benchmarks/answers.py

CPU seconds, medians of five rounds over freshly drawn answers: every round has new numbers and
formulas, so that no cache helps. What importing mpmath costs, once, stands in the last line. The
target is 1 s where most answers are simple.
"""

import random
import statistics
import time

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


def measure(answers: AnswerKind, texts: list[str]) -> tuple[float, int]:
    """CPU seconds, and the number of classes."""
    began = time.process_time()
    grouping = Grouping(answers)
    classes = {grouping.classify(text).key for text in texts}
    return time.process_time() - began, len(classes)


def main() -> None:
    answers = kind("math")
    began = time.process_time()
    answers.canonical(r"\sqrt{2}")
    start = time.process_time() - began
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
    print(f"{'512 answers':24}{'classes':>8}{'CPU, s':>10}")
    for name, make in mixes.items():
        rounds = [measure(answers, make()) for _ in range(ROUNDS)]
        seconds = statistics.median(spent for spent, _ in rounds)
        print(f"{name:24}{rounds[-1][1]:>8}{seconds:>10.3f}")
    print(f"importing mpmath, once: {start:.2f} s")


if __name__ == "__main__":
    main()
