"""Finding and normalising answers takes linear time in any text.

What is repeated below once took quadratic time somewhere. Time is the CPU time of this thread, the
best of several runs; only growth beyond twice the linear one, or seconds, count as failure.
"""

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from time import thread_time
from typing import Any, cast

import pytest

import conviction.answers
from conviction.answers import STRATEGIES, extract_answer, kind

TOKENS = (
    "\n", " ", "\t", "\r\n", "\u0000", "\u200b", "\ud800", "a", "A", "é", "1", "1,", "1.", "1/",
    "- ", "-", "Answer: 5", "Answer: 5 ", "Answer:\n", "answer is ", "Final Answer\n",
    "total is ", "result: ", "####   ", "\n#### ", "#### 5\n", "\\boxed{", "\\boxed{5}",
    "\\boxed{5}, ", "\\boxed 5", "\\text{", "\\frac{1}{2}", "\\begin{", "{", "[", "(", ")", "{ ",
    "[1,", '{"', '{"a":', '"', "'", "“", "\\", "\\\\", "**", "*", "$", "$$", "_", "`", "|",
    "~", "^", "=", "==>", "<", "<b>", "<b ", "<a", "<think>", "</think>", "<answer>", "</s>",
    "<|im_end|>", "<|channel|>", "<|channel|>analysis<|message|>", "assistantfinal", "```\n",
    "```json\n{\n", "A, ", "A and ", "(A)", "A) ", "- A\n", "①", "①, ", "ㄱ, ",
    "C is the correct answer. ", "I choose C. ", "the correct ", "option C ", "not ", "if ",
    "because ", ", so", "; ", " — ", ". ", "!", "? ", "J. ", "St. ", "about ", "therefore ",
    "I cannot ", "to ", "가", "답", "정답은 ", "정답: ③ ", "C가 ", "은 ",
    "이다", "입니다", "3천", "천", "5만 ",
    "选", "选项", "是", "は", "正しい", "。", "、", "x = 5\n", "$1 ",
)  # fmt: skip
"""What models repeat when they loop, and what our patterns are made of."""
STARTS = ("Answer: 5",)
# These see 2,000 characters at most; `test_answers_formulas_linear` looks at all of them.
_OF_SHORT_TEXTS = frozenset({"formulas", "number"})
LONG = 200_000
SECONDS = 0.25
GENEROUS = 3.0
"""How often slower a machine may be that is busy with other things."""


def seconds(work: Callable[[], object], enough: float) -> float:
    """CPU time of the fastest of a few runs; the first that takes less than `enough` will do."""
    best = float("inf")
    for _ in range(4):
        started = thread_time()
        work()
        best = min(best, thread_time() - started)
        if best < enough:
            break
    return best


def grows_linearly(work: Callable[[int], object], size: int, enough: float) -> bool:
    """Whether four times as much takes less than eight times as long, or next to no time at all."""
    whole = seconds(lambda: work(size), enough)
    return whole < enough or whole < 8 * seconds(lambda: work(size // 4), 0)


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    def within(value: Any) -> Iterator[re.Pattern[str]]:
        if isinstance(value, re.Pattern):
            yield value
        elif isinstance(value, tuple | list):
            for part in cast("tuple[Any, ...]", value):
                yield from within(part)

    seen: set[re.Pattern[str]] = set()
    for module in pkgutil.walk_packages(conviction.answers.__path__, "conviction.answers."):
        if module.name.split(".")[2] in _OF_SHORT_TEXTS:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            for number, pattern in enumerate(within(value)):
                if pattern not in seen:
                    seen.add(pattern)
                    yield (
                        f"{module.name.removeprefix('conviction.answers.')}.{name}[{number}]",
                        pattern,
                    )


@pytest.mark.parametrize(("name", "pattern"), list(patterns()), ids=lambda value: str(value)[:60])
def test_every_pattern_takes_linear_time_on_repeated_tokens(
    name: str, pattern: re.Pattern[str]
) -> None:
    def search(token: str, size: int) -> None:
        for _ in pattern.finditer(token * (size // len(token)) + "\x01"):
            pass

    slow = [
        token
        for token in TOKENS
        if not grows_linearly(lambda size, token=token: search(token, size), 2_000, 0.02)
    ]
    assert slow == [], name


@pytest.mark.parametrize("name", ["math", "choice", "number", "text", "json"])
def test_no_repeated_token_keeps_extraction_busy(name: str) -> None:
    answers = kind(name)
    slow: list[tuple[str, str, float]] = []
    for token in TOKENS:
        for start in STARTS:
            text = start + token * (LONG // len(token)) + "x"
            took = seconds(lambda text=text: answers.extract(text), SECONDS)
            if took > SECONDS * GENEROUS:
                slow.append((start, token, took))
    assert slow == []


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_takes_linear_time(strategy: str) -> None:
    def extract(token: str, size: int) -> None:
        extract_answer("Answer: 5" + token * (size // len(token)) + "x", [strategy])

    slow = [
        token
        for token in TOKENS
        if not grows_linearly(lambda size, token=token: extract(token, size), 16_000, 0.03)
    ]
    assert slow == []


@pytest.mark.parametrize("name", ["choice", "text", "json"])
def test_canonical_forms_take_linear_time(name: str) -> None:
    answers = kind(name)
    slow = [
        token
        for token in TOKENS
        if not grows_linearly(
            lambda size, token=token: answers.canonical(token * (size // len(token)) + "x"),
            8_000,
            0.03,
        )
    ]
    assert slow == []


@pytest.mark.parametrize("name", ["math", "choice", "number", "text", "json"])
def test_nesting_beyond_all_bounds_is_no_error(name: str) -> None:
    answers = kind(name)
    depth = 5 * sys.getrecursionlimit()
    for opening, closing in (("{", "}"), ("[", "]"), ("(", ")"), ("\\boxed{", "}"), ('{"a":', "}")):
        for text in (opening * depth, opening * depth + "5" + closing * depth):
            found = answers.extract(text)
            assert found is None or found
