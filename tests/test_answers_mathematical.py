"""Mathematical answers: what is equal, what is not, and what is decided without calculating."""

from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conviction.answers import Grouping
from conviction.answers.formulas.algebra import render
from conviction.answers.formulas.forms import OPEN
from conviction.answers.formulas.parsing import UnreadableError, parse
from conviction.answers.mathematical import MathematicalAnswers

needs_mpmath = pytest.mark.skipif(
    find_spec("mpmath") is None, reason="mpmath (extra `math`) is not installed"
)


@pytest.fixture(scope="module")
def answers() -> Iterator[MathematicalAnswers]:
    kind = MathematicalAnswers()
    yield kind
    kind.close()


def equal(kind: MathematicalAnswers, first: str, second: str) -> bool:
    grouping = Grouping(kind)
    return grouping.classify(first).key == grouping.classify(second).key


@pytest.mark.parametrize(
    "same",
    [
        ("0.5", "1/2", r"\frac{1}{2}", r"\dfrac12", ".50", "½", r"\frac{2}{4}", "2^{-1}", "$0.5$"),
        ("10080", "10,080", r"10,\!080", r"10\,080", "10{,}080", "10 080", r"\$10,080", "1.008e4"),
        ("9/5", r"1\frac{4}{5}", "1 4/5", "1.8"),
        (
            "5",
            "x=5",
            "x = 5.",
            r"\boxed{5}",
            r"5\text{ cm}",
            "5 cm^2",
            "5 apples",
            r"P(2) = 5",
            "{5}",
        ),
        (
            "90",
            r"90^\circ",
            "90°",
            "90 degrees",
            r"90\text{ degrees}",
            "90^{\\circ}",
            r"\angle A = 90",
        ),
        ("23", "m+n=7+16=23", "2 + 3 \\cdot 7 = 23"),
        ("1024", "2^{10}", "2^10", "2**10"),
        ("-7", "−7", "-7.0"),  # noqa: RUF001  # minus
        ("x+1", "1 + x", "1+x", "f(x) = x + 1", "y=x+1"),
        ("2k+2", "2(k+1)", "2 (1+k)"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}", "√3/3", "sqrt(3)/3", r"3^{-1/2}"),
        (r"3\sqrt{8}", r"6\sqrt2", r"6 \cdot \sqrt{2}", r"2\sqrt{18}"),
        (r"\pi/2", r"\frac{\pi}{2}", r"\frac12\pi", "pi/2", "π/2"),
        (r"(3,\frac{\pi}{2})", r"\left( 3, \pi/2 \right)", r"(r,\theta) = (3, \frac\pi2)"),
        (r"\{1,-2\}", "-2, 1", "1 and -2", "x = 1 or x = -2", r"1 \text{ or } -2"),
        (r"1\pm\sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", r"\{1-\sqrt{19},\,1+\sqrt{19}\}"),
        ("x=2, y=3", "y = 3, x = 2"),
        ("(3,4]", r"\left(3, 4\right]", r"x \in (3,4]"),
        (r"(-\infty,2)\cup(3,\infty)", r"(3, \infty) \cup (-\infty, 2)", "(−∞,2)∪(3,∞)"),  # noqa: RUF001
        (
            r"\begin{pmatrix} 1/2 \\ -3 \end{pmatrix}",
            r"\begin{bmatrix}\frac12\\-3\end{bmatrix}",
            r"\begin{pmatrix} 0.5 \\[2mm] -3 \end{pmatrix}",
        ),
        ("Canberra", r"\text{Canberra}", "canberra", r"\textbf{Canberra}."),
        (r"\text{(C)}", "C", "(C)"),
        (r"2\sqrt{3} \approx 3.46", r"2\sqrt{3}", r"2\sqrt3 \text{ cm}"),
        (r"s \approx 3.46", "3.46"),
    ],
)
def test_these_have_one_canonical_form(answers: MathematicalAnswers, same: tuple[str, ...]) -> None:
    assert len({answers.canonical(answer) for answer in same}) == 1


DIFFERENT = [
    ("0.333", "1/3"),
    ("0.333...", "0.333"),
    ("3.14", r"\pi"),
    ("5", "-5"),
    ("p-q", "q-p"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("[1,2]", "(1,2)"),
    ("[1,2)", "[1,2]"),
    ("1,2", "1,2,3"),
    ("x=2, y=3", "x=3, y=2"),
    ("52_8", "528"),
    ("52_8", "42"),
    ("52_8", "52"),
    ("52_8", "52_9"),
    ("1010_2", "1010"),
    ("1010_2", "1010_3"),
    ("1A_{16}", "1A_{12}"),
    ("east", "west"),
    ("east", "5"),
    ("x+y=5", "x"),
    ("5x - 7y + 11z + 4 = 0", "0"),
    (r"2\cdot5!\cdot5! = 28800", "2 = 3"),
    ("8:30", "8:45"),
    ("2024-01-02", "2024-02-01"),
    ("8 AM", "8 PM"),
    ("5!", "5"),
    ("2^{2024}", "2^{2024}-1"),
    ("9^{9^{9^9}}", "9^{9^9}"),
    (r"\frac{1}{0}", "0"),
    ("x", "X"),
    ("199-\\sqrt{8481}", "\\frac{19671}{184}"),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_these_are_different(answers: MathematicalAnswers, first: str, second: str) -> None:
    assert not equal(answers, first, second)
    assert not equal(answers, second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("17", "18"),
        ("1/3", "0.333"),
        ("Paris", "London"),
        ("Paris", "17"),
        ("Paris", r"\sqrt{2}"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        ("x+1", "x+2"),
        ("(1,2)", "(1,3)"),
        ("(1,2)", "5"),
        (r"\{1,2\}", r"\{1,3\}"),
        (r"\{1,\sqrt2\}", r"\{1,\sqrt3\}"),
        ("[1,2]", "[1,3]"),
        ("50%", "7"),
    ],
)
def test_no_slow_comparison_is_asked_for_what_is_plainly_different(
    answers: MathematicalAnswers, first: str, second: str
) -> None:
    one, other = answers.canonical(first), answers.canonical(second)
    assert one != other
    assert answers.decided(one, other)
    assert answers.decided(other, one)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("52_8", "52_{8}"),
        ("52_8", "(52)_8"),
        ("1101_{(2)}", r"1101_{\text{two}}"),
        (r"1A_{16}", r"1a_{16}"),
        ("52_{10}", "52"),
        ("52_8", "52 base 8"),
    ],
)
def test_a_base_is_written_in_many_ways(
    answers: MathematicalAnswers, first: str, second: str
) -> None:
    assert equal(answers, first, second)
    assert equal(answers, second, first)


def test_a_percentage_is_the_number_before_its_sign(answers: MathematicalAnswers) -> None:
    assert equal(answers, "50%", "50")
    assert equal(answers, r"12.5\%", "12.5")
    # "50%" could stand for two numbers, but then what equals what would depend on the order.
    assert not equal(answers, "50%", "0.5")
    assert not equal(answers, "1/2", "50%")


@needs_mpmath
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\frac{x^2-1}{x-1}", "x+1"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\log_2 8", "3"),
        (r"\sqrt[3]{8}", "2"),
        (r"\sqrt2\sqrt3", r"\sqrt6"),
        (r"\frac{14}{1+\sqrt{2}}", r"14\sqrt2-14"),
        ("x>2", r"(2,\infty)"),
        (r"3<x\le4", "(3,4]"),
        (r"|x-1|", "|1-x|"),
        ("i^2", "-1"),
        ("xy", "y x"),
        ("m+n=29", "29"),
        (r"\{\sqrt[3]{8}, 5\}", r"\{2,5\}"),
        (r"\int_0^1 2x \, dx", "1"),
    ],
)
def test_values_settle_the_rest_in_either_order(
    answers: MathematicalAnswers, first: str, second: str
) -> None:
    assert equal(answers, first, second)
    assert equal(answers, second, first)


rationals = st.fractions(max_denominator=10_000).filter(lambda value: abs(value) < 10**9)


def spellings(value: Fraction) -> list[str]:
    sign, above, below = "-" if value < 0 else "", abs(value.numerator), value.denominator
    written = [
        f"{value}",
        rf"{sign}\frac{{{above}}}{{{below}}}",
        rf"$\dfrac{{{sign}{above}}}{{{below}}}$",
        rf"x = {value}.",
        rf"\boxed{{{value}}}",
        rf"{value}\text{{ cm}}",
        f"{3 * value.numerator}/{3 * below}",
        rf"\left({value}\right)",
    ]
    if below == 1:
        thousands = f"{value.numerator:,}"
        written += [thousands, f"{value}.0", f"{thousands} apples"]
        written.append(thousands.replace(",", r",\!").replace("-", "−"))  # noqa: RUF001
    whole, rest = divmod(above, below)
    if whole and rest:
        written.append(rf"{sign}{whole}\frac{{{rest}}}{{{below}}}")
    if 10**6 % below == 0:
        written.append(f"{value.numerator * (10**6 // below)}e-6")
    return written


@given(rationals)
@example(Fraction(1234))
@example(Fraction(-1234567, 4))
def test_a_number_keeps_its_key_however_it_is_written(value: Fraction) -> None:
    kind = MathematicalAnswers()
    assert {kind.canonical(text) for text in spellings(value)} == {str(value)}


@given(rationals, rationals)
def test_numbers_share_a_class_exactly_if_they_are_equal(first: Fraction, second: Fraction) -> None:
    kind = MathematicalAnswers()
    for one, other in zip(spellings(first), reversed(spellings(second)), strict=False):
        assert equal(kind, one, other) == equal(kind, other, one) == (first == second)


formulas = st.recursive(
    st.integers(0, 12).map(str) | st.sampled_from(["x", "y", r"\pi", "a_1", r"\theta"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]})({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}+{pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}-({pair[1]})"),
        st.tuples(inner, st.integers(-3, 5)).map(lambda pair: f"({pair[0]})^{{{pair[1]}}}"),
        inner.map(lambda base: rf"\sqrt{{{base}}}"),
        inner.map(lambda angle: rf"\sin({angle})"),
        inner.map(lambda value: f"|{value}|"),
    ),
    max_leaves=8,
)


@given(formulas)
def test_a_normal_form_is_read_back_as_itself(formula: str) -> None:
    try:
        node = parse(formula)
    except (UnreadableError, ArithmeticError):
        return
    assert parse(render(node)) == node


@given(formulas, formulas)
def test_what_is_decided_does_not_depend_on_the_order(first: str, second: str) -> None:
    kind = MathematicalAnswers()
    one, other = kind.canonical(first), kind.canonical(second)
    assert kind.decided(one, other) == kind.decided(other, one)


@given(formulas, formulas)
def test_sums_and_products_may_be_written_in_any_order(first: str, second: str) -> None:
    kind = MathematicalAnswers()
    try:
        parse(f"({first})+({second})")
    except (UnreadableError, ArithmeticError):
        return
    assert kind.canonical(f"({first})+({second})") == kind.canonical(f"({second})+({first})")
    assert kind.canonical(f"({first})({second})") == kind.canonical(f"({second})({first})")


def test_without_mpmath_simple_forms_still_decide_and_the_reader_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conviction.answers.formulas.values.find_spec", lambda _: None)
    kind = MathematicalAnswers()
    grouping = Grouping(kind)
    assert grouping.classify("1/2").key == grouping.classify("0.5").key
    assert grouping.classify("x=5").key == grouping.classify(r"5\text{ cm}").key
    assert kind.limits == ()
    assert grouping.classify(r"2\sqrt2").key == grouping.classify(r"\sqrt8").key
    assert grouping.classify(r"\log_2 8").key != grouping.classify("3").key
    assert len(kind.limits) == 1
    assert "pip install 'conviction[math]'" in kind.limits[0]


FORMS = [
    *("#", "-#", "1#.5", ".#", r"\frac{#}{19}", r"-\frac{#}{19}", r"\dfrac{#}{19}", r"\frac #7"),
    *(r"#^\circ", "101_#", r"#\sqrt{11}", r"# \sqrt 5", r"\sqrt{1#}", r"\frac{\sqrt{1#}}{3}"),
    *("#+4i", "#-5i", r"# \pm \sqrt{7}", r"\pi", r"-\frac{\pi}{#}", r"# \pi", "x=#", r"#\%"),
    *("#,-4", "#, 2, 5", "(-#,3)", "(2,3,-#)", r"\left( #, \frac{\pi}{2} \right)", "(1,#]"),
    *(r"(#,\infty)", "p - q", "x^7 - x^4 + # x - 1", "-2x+#", "(a+#)(b+2)", r"\cot x", r"2^{#}"),
    *("2x - y + #z + 3 = 0", r"\text{Evelyn}", r"\text{(C)}", r"\$#,\!500", r"#,\! 500,\! 000"),
    *(r"\begin{pmatrix} -# \\ 7/3 \\ -2 \end{pmatrix}", r"\left( \frac{#}{3}, -2 \right)"),
]
"""Answers as MATH writes them; `#` stands for a number."""

ENDS = [
    *(r"Hence it is $\boxed{@}$.", r"We get $$x + 1 = 9$$ and so \[\boxed{@}.\]", r"$\boxed{@}"),
    *(r"Both give $\boxed{@} \text{ or so}$, as $a^2 \ge 0$.", r"\boxed{0}? No: $y = \boxed{@}.$"),
    r"The first is $\boxed{1}$. [asy] draw((0,0)--(1,2)); [/asy] The second is $\fbox{@}.$$",
]


def test_answers_are_found_in_solutions_written_as_those_of_math_are(
    answers: MathematicalAnswers,
) -> None:
    golds = [form.replace("#", number) for form, number in product(FORMS, "38")]

    def solution(gold: str, end: str) -> str:
        return "So far, $a = 2$.\n" + end.replace("@", gold.replace(r"\frac", r"\tfrac"))

    missed = [
        solution(gold, end)
        for gold, end in product(golds, ENDS)
        if not equal(answers, gold, answers.extract(solution(gold, end)) or "")
    ]
    assert len(golds) * len(ENDS) > 500
    assert missed == []


GOLDS = [
    *("7", "-12", "3.5", "1,234", r"\frac{3}{7}", r"-\frac{11}{2}", r"2\sqrt{5}", r"\sqrt{13}"),
    *(r"\frac{\sqrt{3}}{2}", r"6\pi", r"\frac{\pi}{4}", r"3+2i", r"x^2-5x+6", r"(x+1)(x-2)", "p-q"),
    *(r"\left(3, \frac{\pi}{2}\right)", r"(-1, 4, 0)", "2, 3, 5", r"1 \pm \sqrt{19}", r"[0, 7)"),
    *(
        r"(-\infty, 2) \cup (5, \infty)",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        "90^\\circ",
    ),
    *(
        "52_8",
        r"\text{Evelyn}",
        r"\text{(C)}",
        "y = 2x + 3",
        "x^2 + y^2 = 9",
        r"\frac{x+2}{x-1}",
        "2^{99}",
    ),
    *(
        r"\cot x",
        r"\log_2 5",
        r"\binom{9}{4}",
        r"e^{2}",
        r"x \equiv 3 \pmod{7}",
        r"0.\overline{27}",
    ),
]
DRESSES = [
    *("{}", "${}$", "$${}$$", r"\({}\)", r"\[{}\]", r"\boxed{{{}}}", r"$\boxed{{{}}}$", " {}. "),
    *("**{}**", r"$\displaystyle {}$", "${}$.", r"\fbox{{{}}}", "{}\n", "`{}`", "${}$,"),
]
REWRITES = [
    (r"\frac", r"\dfrac"),
    (r"\left", ""),
    (r"\pi", "π"),
    (r"\infty", "∞"),
    ("-", "\N{MINUS SIGN}"),
    (r"\cup", "\N{UNION}"),
    (" ", r"\,"),
    ("pmatrix", "bmatrix"),
    (r"\pm ", "±"),
]


@needs_mpmath
def test_gold_answers_equal_themselves_in_every_dress(answers: MathematicalAnswers) -> None:
    missed, total = list[str](), 0
    for gold in [*GOLDS, *(form.replace("#", number) for form, number in product(FORMS, "38"))]:
        key = answers.canonical(gold)
        assert not key.startswith(OPEN), gold
        spellings = {
            gold,
            *(gold.replace(old, new) for old, new in REWRITES if r"\right" not in gold),
        }
        for text in sorted(spellings):
            total += len(DRESSES)
            dressed = [dress.format(text) for dress in DRESSES]
            missed += [one for one in dressed if answers.canonical(one) != key]
    assert total > 2_500
    assert missed == []
