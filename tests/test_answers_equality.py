"""Equality of mathematical answers and numbers is an equivalence, over every table of answers."""

import random
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.answers import AnswerKind, Grouping, is_correct, kind
from conviction.answers.formulas import values
from conviction.answers.formulas.algebra import Node

pytest.importorskip("mpmath", reason="mpmath (extra `math`) is not installed")

TABLES = Path(__file__).parent / "data" / "answers"
KINDS = ("math", "number")
LEAST_OWN_PAIRS = 600


def rows(table: str) -> list[tuple[str, str, str, str]]:
    _, *lines = (TABLES / f"{table}.tsv").read_text(encoding="utf-8").splitlines()
    found = [line.split("\t") for line in lines]
    return [(name, a, b, said) for name, a, b, said in found if name in KINDS]


def answers_of(name: str) -> list[str]:
    """Every answer of a kind that stands in a table."""
    pairs = [row for table in ("pairs", "own_pairs") for row in rows(table) if row[0] == name]
    return list(dict.fromkeys(answer for _, a, b, _ in pairs for answer in (a, b)))


def partition(of_kind: AnswerKind, answers: Iterable[str]) -> frozenset[frozenset[str]]:
    grouping = Grouping(of_kind)
    classes: dict[str, set[str]] = {}
    for answer in answers:
        classes.setdefault(grouping.classify(answer).key, set()).add(answer)
    return frozenset(map(frozenset, classes.values()))


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_pair_of_the_own_table_is_equal_or_different_as_it_should_be() -> None:
    by_name = {name: kind(name) for name in KINDS}
    table = rows("own_pairs")
    wrong = [
        (name, a, b)
        for name, a, b, said in table
        if (by_name[name].canonical(a) == by_name[name].canonical(b)) is not (said == "equal")
    ]
    assert len(table) >= LEAST_OWN_PAIRS
    assert wrong == []


def test_every_answer_of_the_tables_equals_itself_in_another_dress(name: str) -> None:
    answers = kind(name)
    forms = ("{}", " {}\n", "${}$", "\u200b{}", "\u202b{}\u202c")
    for answer in answers_of(name):
        dressed = [form.format(answer) for form in forms if "$" not in answer or "$" not in form]
        assert len({answers.canonical(text) for text in dressed}) == 1, answer


def test_an_answer_as_it_is_shown_is_the_same_answer(name: str) -> None:
    answers = kind(name)
    other = [a for a in answers_of(name) if not is_correct(answers, answers.shown(a), a)]
    assert other == []


def test_classes_do_not_depend_on_the_order_of_the_answers(name: str) -> None:
    answers, random_ = kind(name), random.Random(1)  # noqa: S311  # no secret
    texts = answers_of(name)
    expected = partition(answers, texts)
    for _ in range(5):
        random_.shuffle(texts)
        assert partition(answers, texts) == expected


def test_equality_is_the_same_in_both_directions_and_transitive(name: str) -> None:
    answers, random_ = kind(name), random.Random(2)  # noqa: S311  # no secret
    texts = random_.sample(answers_of(name), 120)
    equal = {(a, b): is_correct(answers, a, b) for a in texts for b in texts}
    for a in texts:
        assert equal[a, a]
        for b in texts:
            assert equal[a, b] is equal[b, a], (a, b)
            if equal[a, b]:
                assert all(equal[b, c] is equal[a, c] for c in texts), (a, b)


JOINS = ["", ", ", "=", "<", "+", "^", "/", " and ", " or ", r"\cup ", "!", "|", "(", r"\{", "$"]


@settings(max_examples=150)
@given(st.data())
def test_no_text_of_characters_from_the_tables_breaks_a_kind(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(KINDS))
    one_of = st.sampled_from(answers_of(name))
    answer, other = data.draw(one_of), data.draw(one_of)
    cut = data.draw(st.integers(0, len(answer)))
    spliced = answer[:cut] + data.draw(st.sampled_from(JOINS)) + other[cut:]
    text = data.draw(st.sampled_from((spliced, "".join(data.draw(st.permutations(answer))))))
    answers = kind(name)
    one, two = answers.canonical(text), answers.canonical(text + other)
    assert one
    assert two
    assert answers.canonical(text) == one
    assert answers.decided(one, two) == answers.decided(two, one)
    assert answers.canonical(answers.shown(text))


UNITS = ["m", "g", "N", "L", "C", "s", "J", "W", "V", "K", "h", "m/s", "km/h", "m^2", "kg", "cm"]
WHOLE = st.integers(0, 10**9)
SIGNED = st.fractions(max_denominator=1000).filter(lambda value: abs(value) < 10**6)


def same(*texts: str, of: str = "math") -> bool:
    answers = kind(of)
    return len({answers.canonical(text) for text in texts}) == 1


@given(
    st.integers(0, 99),
    st.text("0123456789", max_size=3),
    st.text("0123456789", min_size=1, max_size=6),
)
def test_a_repeating_decimal_is_its_fraction(whole: int, fixed: str, period: str) -> None:
    size = 10 ** len(fixed)
    value = whole + Fraction(int(fixed or 0), size)
    value += Fraction(int(period), (10 ** len(period) - 1) * size)
    overline = rf"{whole}.{fixed}\overline{{{period}}}"
    dots = rf"\dot{{{period[0]}}}" + (rf"{period[1:-1]}\dot{{{period[-1]}}}" if period[1:] else "")
    assert same(overline, f"{whole}.{fixed}({period})", f"{whole}.{fixed}{dots}", str(value))
    if value.denominator > 1 and set(period) - {"0", "9"}:
        assert not same(overline, f"{whole}.{fixed}{period}")


@given(WHOLE, st.sampled_from(UNITS))
def test_a_single_number_loses_its_unit_and_a_product_its_variable_does_not(
    number: int, unit: str
) -> None:
    spellings = (rf"{number}\text{{ {unit}}}", rf"{number}\,\mathrm{{{unit}}}", f"{number} {unit}")
    assert same(str(number), *spellings)
    if len(unit) == 1 and number > 1:
        assert not same(f"{number}{unit}", str(number))


@given(st.integers(1, 23), st.integers(1, 59), st.integers(1, 59))
def test_durations_and_times_keep_all_their_parts(hours: int, minutes: int, other: int) -> None:
    for of in KINDS:
        duration = f"{hours} hours {minutes} minutes"
        assert same(duration, f"{hours}시간 {minutes}분", f"{hours} h and {minutes} min", of=of)
        assert same(duration, f"{hours} hours {other} minutes", of=of) is (minutes == other)
        assert same(f"{hours}:{minutes:02}", f"{hours}:{other:02}", of=of) is (minutes == other)
        assert not same(duration, str(hours), of=of)
    morning, evening = f"{hours % 12 or 12}:{minutes:02} AM", f"{hours % 12 or 12}:{minutes:02} PM"
    assert not same(morning, evening)
    assert same(evening, evening.replace("PM", "p.m."), evening.replace(" PM", "pm"))


MONTHS = "January February March April May June July August September October November December"


@given(st.integers(1, 12), st.integers(1, 28), st.integers(1, 28))
def test_dates_are_one_in_several_spellings(month: int, day: int, other: int) -> None:
    name = MONTHS.split()[month - 1]
    date = f"{name} {day}"
    assert same(
        date, f"{day} {name}", f"{name[:3]} {day}", f"{month}월 {day}일", f"the {day}th of {name}"
    )
    assert same(date, f"{name} {other}") is (day == other)
    assert same(f"{date}, 2024", f"2024-{month:02}-{day:02}", f"2024년 {month}월 {day}일")


@given(st.integers(1, 9999), st.integers(0, 9999), st.integers(0, 9999))
def test_eastern_numbers_are_read_by_their_scales(large: int, middle: int, small: int) -> None:
    value = large * 10**8 + middle * 10**4 + small
    written = f"{large}억" + (f" {middle}만" if middle else "") + (f" {small}" if small else "")
    for of in KINDS:
        assert same(written.removesuffix(f" {small}") if not small else written, str(value), of=of)
        assert same(f"{value:,}원", f"₩{value:,}", str(value), of=of)


@given(st.integers(0, 10**12))
def test_money_of_many_countries_is_its_number(amount: int) -> None:
    digits = str(amount)
    head, tail = digits[:-3], digits[-3:]
    pairs = [head[max(0, end - 2) : end] for end in range(len(head), 0, -2)][::-1]
    rupees = ",".join([*pairs, tail])
    for of in KINDS:
        assert same(
            *(
                form.format(f"{amount:,}")
                for form in ("{}", r"\${}", "€{}", "£{}", "USD {}", "{}원")
            ),
            f"₹{rupees}",
            f"Rs. {rupees}",
            digits,
            of=of,
        )


COEFFICIENT = st.integers(-9, 9).filter(bool)


@given(COEFFICIENT, COEFFICIENT, st.integers(-9, 9), COEFFICIENT)
def test_a_line_is_one_either_way_round_and_scaled(a: int, b: int, c: int, k: int) -> None:
    line = f"{a}x+({b})y={c}"
    assert same(line, f"{c}=({b})y+{a}x", f"{a}x+({b})y-({c})=0", f"{k * a}x+({k * b})y={k * c}")
    assert not same(line, f"{a}x+({b})y={c + 1}")
    assert not same(line, f"{a}x-({b})y={c}") or not c
    assert same(f"{a}x^2+({b})y^2={c}", f"{k * c}={k * a}x^2+({k * b})y^2")


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=6), st.randoms())
def test_lists_are_multisets_and_tuples_have_an_order(
    numbers: list[int], random_: random.Random
) -> None:
    shuffled = numbers[:]
    random_.shuffle(shuffled)
    plain, other = (", ".join(map(str, found)) for found in (numbers, shuffled))
    assert same(plain, other, rf"\{{{other}\}}", other.replace(",", " and"))
    assert same(f"({plain})", rf"\left({other}\right)") is (numbers == shuffled)
    assert same(f"({plain})", rf"\langle {plain}\rangle")
    longer = f"{plain}, {numbers[0]}"
    assert not same(plain, longer)


ENDS = st.tuples(st.integers(-9, 9), st.integers(-9, 9)).filter(lambda ends: ends[0] < ends[1])


@given(ENDS, st.sampled_from("(["), st.sampled_from(")]"))
def test_an_interval_is_its_inequality(ends: tuple[int, int], opening: str, closing: str) -> None:
    (low, high), low_in, high_in = ends, opening == "[", closing == "]"
    interval = f"{opening}{low},{high}{closing}"
    one, two = (r"\le " if low_in else "<"), (r"\le " if high_in else "<")
    back_one, back_two = (r"\ge " if high_in else ">"), (r"\ge " if low_in else ">")
    assert same(
        interval,
        f"{low}{one}x{two}{high}",
        f"{high}{back_one}x{back_two}{low}",
        rf"x \in {interval}",
        f"x{back_two}{low} and x{two}{high}",
    )
    outside = rf"(-\infty,{low}{')' if low_in else ']'}\cup{'(' if high_in else '['}{high},\infty)"
    assert same(outside, rf"\mathbb{{R}}\setminus {interval}") or not (low_in or high_in)
    assert not same(interval, outside)


def test_a_condition_of_all_numbers_is_dropped_and_any_other_one_counts() -> None:
    assert same("f(x)=3x", r"f(x)=3x \text{ for all real } x", "3x, where x is a real number")
    assert not same("3x where x is odd", "3x where x is even")
    assert not same(r"3x \text{ for all } x>0", r"3x \text{ for all } x<0")


def test_each_answer_is_read_and_each_formula_calculated_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calculated: list[object] = []
    key_of = values.key_of

    def counted(node: Node) -> str:
        calculated.append(node)
        return key_of(node)

    monkeypatch.setattr(values, "key_of", counted)
    formulas = [rf"{n}+\sqrt{{{n}x}}" for n in range(2, 34)]
    numbers = [f"{n % 40} apples" for n in range(448)]
    grouping = Grouping(kind("math"))
    answers = formulas * 2 + numbers
    assert len(answers) == 512
    found = {grouping.classify(text).key for text in answers}
    assert len(found) == 32 + 40
    assert len(calculated) == 32


TOWERS = [
    *("10^(5^5^5)", "9^{9^{9^9}}", r"10^{10^{10^{10}}}", "(((5!)!)!)!", "1000000!", "2^{10^{9}}"),
    *(r"\sum_{k=1}^{10^{12}} k", r"\prod_{k=1}^{10^9} k", r"\binom{10^{30}}{10^{29}}"),
    *(
        r"e^{e^{e^{e^{10}}}}",
        r"\int_0^1 \int_0^1 \int_0^1 \sin(xyz) dx dy dz",
        r"x^{x^{x^{10^{10}}}}",
    ),
    *(r"\sin(10^{10^{6}})", r"\frac{1}{0}", r"\log_1 5", r"\int_0^{\infty} \sin(x^2) dx"),
    "(" * 500 + "x" + ")" * 500,
    "^".join("x" * 900),
    r"\sqrt" * 300 + "2",
    "|" * 1000,
    r"\frac" * 350,
    "1e9999999999",
    "9" * 1990,
]


@pytest.mark.parametrize("tower", TOWERS)
def test_what_explodes_is_bounded_and_equal_to_itself_only(tower: str) -> None:
    answers = kind("math")
    key = answers.canonical(tower)
    assert key == answers.canonical(f" {tower} ")
    assert is_correct(answers, tower, tower)
    for other in ("0", "1", "5", "x", r"\sqrt2"):
        assert not is_correct(answers, tower, other), other


def test_what_cannot_be_calculated_is_left_open_and_never_said_to_differ() -> None:
    answers = kind("math")
    tower, other, plain = map(answers.canonical, ("9^{9^{9^9}}", "9^{9^9}", "5"))
    assert len({tower, other, plain}) == 3
    for pair in ((tower, other), (other, tower), (tower, plain), (plain, tower)):
        assert not answers.decided(*pair)
        assert answers.equivalent(*pair) is None
    assert answers.decided(plain, answers.canonical("6"))
