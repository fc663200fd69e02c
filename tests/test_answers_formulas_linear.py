"""Reading formulas takes time in proportion to their length, whatever is repeated in them."""

from collections.abc import Callable
from itertools import product
from time import thread_time

import pytest

from conviction.answers import kind
from conviction.answers.formulas import markup, numerals
from conviction.answers.formulas.parsing import MOST_CHARACTERS
from conviction.answers.formulas.quantities import read_quantity
from conviction.answers.formulas.shapes import leaf

COMMA = frozenset({","})


def spaced_once(text: str) -> str:
    """Text as `markup.clean` leaves it to the steps that follow."""
    return " ".join(text.split())


STEPS: dict[str, Callable[[str], object]] = {
    "raised": markup.raised,
    "fold": markup.fold,
    "fold_words": markup.fold_words,
    "clean": markup.clean,
    "split": lambda text: markup.split(text, COMMA),
    "enclosed": markup.enclosed,
    "abbreviated": numerals.abbreviated,
    "amount_in_short": numerals.amount_in_short,
    "written_out": lambda text: numerals.written_out(spaced_once(text)),
    "joined_thousands": lambda text: numerals.joined_thousands(spaced_once(text)),
    "joined_everywhere": lambda text: numerals.joined_thousands(spaced_once(text), everywhere=True),
    "bare_number": lambda text: numerals.bare_number(spaced_once(text)),
}
TOKENS = [
    *(
        "9",
        "9.",
        ".9",
        "9,",
        "1,234",
        "1 234",
        "12 ",
        " ",
        "\n",
        "x",
        "x ",
        "-",
        "+",
        "^",
        "_",
        "=",
    ),
    *("(", ")", "()", "[", "{", "}", "{}", "{x", r"\{", r"\}", "|", "<", ">", "°", "%", "!", "/"),
    *(
        "**",
        "**x",
        "**x**",
        "$",
        "$$",
        "\\",
        "\\\\",
        r"\frac",
        r"\frac12",
        r"\sqrt",
        r"\text{",
        '"',
    ),
    *(r"\text", r"\text{m}", r"\mathbf{", r"\mathrm", r"\left(", r"\right", r"\cdot ", r"\pm", "²"),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\cr ",
        r"\overline{3}",
        r"\dot3",
        "0.",
        "0.(3",
        "...",
    ),
    *(
        "for all ",
        "where ",
        ", where x",
        "mod ",
        r"\pmod{7}",
        "and ",
        "or ",
        " and 3",
        "3 dogs ",
        "만",
    ),
    *(
        "3만 ",
        "천",
        "3 million ",
        "hundred ",
        "$1.2M",
        "₹1,50,000",
        "USD ",
        "5 m",
        " m/s",
        "m",
        "가",
        "가 ",
    ),
    *(
        r"\,",
        r"\!",
        "~",
        r"\quad",
        r"\displaystyle",
        "12th",
        '"a"',
        '5 "m"',
        "1:2",
        "10:30 ",
        "5 cents ",
    ),
    *("٣", "\ufb01", "\u200b", "½", "aé", "\ud800", "\0", "(approx ", "(=", "1/", "1e", "e-"),
]
SHORT, LONG = 2_000, 8_000
MOST = 9.0
"""Four times the text takes four times as long in proportion, sixteen times if quadratic."""


def seconds(step: Callable[[str], object], text: str) -> float:
    began = thread_time()
    step(text)
    return thread_time() - began


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_takes_time_in_proportion_to_the_text(step: Callable[[str], object]) -> None:
    slow: list[tuple[str, str, float]] = []
    for token, (before, after) in product(TOKENS, [("", ""), ("1", "!"), ("{5 ", "}")]):
        short, long = (before + (token * size)[:size] + after for size in (SHORT, LONG))
        # Growth cannot be told from noise where it takes a few milliseconds, nor at the first look.
        if any(seconds(step, long) < 0.004 for _ in range(3)):
            continue
        least = min(seconds(step, long) for _ in range(3))
        if least > MOST * min(seconds(step, short) for _ in range(3)):
            slow.append((token, before, least))
    assert slow == []


def test_an_answer_of_any_repeated_token_is_read_within_a_second() -> None:
    """At the length up to which answers are read; a longer one is not looked at."""
    slow: list[tuple[str, str, float]] = []
    for name in ("math", "number"):
        answers = kind(name)
        answers.canonical(r"\sqrt2")
        for token, other in product(TOKENS, ["", "1"]):
            text = ((token + other) * MOST_CHARACTERS)[:MOST_CHARACTERS]
            took = seconds(answers.canonical, text)
            if took > 1.0:
                slow.append((token, other, took))
    assert slow == []


def test_nothing_but_the_length_of_a_long_answer_matters() -> None:
    for name in ("math", "number"):
        answers = kind(name)
        for token in TOKENS:
            text = token * (MOST_CHARACTERS + 1)
            assert seconds(answers.canonical, text) < 0.05


@pytest.mark.parametrize("step", [read_quantity, leaf], ids=["read_quantity", "leaf"])
def test_a_step_that_sees_short_texts_only_is_quick(step: Callable[[str], object]) -> None:
    for token in TOKENS:
        text = spaced_once((token * MOST_CHARACTERS)[:MOST_CHARACTERS])
        assert seconds(step, text) < 0.5, token
