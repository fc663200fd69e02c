"""Each kind of answer gives equal answers one canonical form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.answers import KINDS, AnswerKind, kind, kinds
from conviction.errors import PluginError, UnknownNameError


def same(name: str, *answers: str) -> bool:
    return len({kind(name).canonical(answer) for answer in answers}) == 1


def test_the_kinds_are_registered_under_their_own_names() -> None:
    assert {"choice", "json", "math", "number", "text"} <= set(kinds())
    assert [kind(name).name for name in kinds()] == list(kinds())


def test_an_unknown_kind_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'number'"):
        kind("numbers")


def test_something_else_registered_as_a_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS.builtin, "math", "builtins:dict")
    with pytest.raises(PluginError, match="not a subclass"):
        kind("math")


@pytest.mark.parametrize(
    "answers",
    [
        ("C", "(C)", "c)", "C.", "C. Paris", "(c) Paris", "Option C", r"\text{(C)}", "**C**", "Ⓒ"),
        ("③", "3", "(3)", "3번", "③번"),
        ("ㄱ", "(ㄱ)", "ㄱ."),
        ("가", "(가)"),
        ("A and C", "C, A", "(A), (C)", "A, C"),
        ("ㄱ, ㄷ", "ㄷ,ㄱ", "ㄱ와 ㄷ"),
    ],
)
def test_choices_written_in_any_way_are_one(answers: tuple[str, ...]) -> None:
    assert same("choice", *answers)


def test_different_choices_stay_apart_and_prose_is_no_choice() -> None:
    choice = kind("choice")
    answers = ["A", "B", "1", "2", "ㄱ", "ㄴ", "가", "A and B"]
    assert len({choice.canonical(answer) for answer in answers}) == len(answers)
    for prose in ("A dog", "I think so", "Paris", "3.14"):
        assert choice.extract(f"Answer: {prose}") is None


@pytest.mark.parametrize(
    "answers",
    [
        ("1,234.50", "1234.5", "1 234.5", "$1,234.50", "1.234,50", r"\$1{,}234.5", "１２３４.5"),  # noqa: RUF001
        ("12", "12 apples", "about 12 apples", "12개", "12개입니다", "7 + 5 = 12", "12.", "총12개"),
        ("0.5", "1/2", r"\frac{1}{2}", ".5", "½", r"about \frac12 of it"),
        ("1000", "1e3", "10^3", "1 thousand", "1천", "1,000원"),
        ("-5", "−5", "–5", "-$5"),  # noqa: RUF001  # minus and dash
        ("25000", "2만 5천원", "25,000"),
        ("50%", r"50\%", "50 percent"),
    ],
)
def test_numbers_written_in_any_way_are_one(answers: tuple[str, ...]) -> None:
    assert same("number", *answers)


def test_numbers_are_exact() -> None:
    number = kind("number")
    answers = [
        "0.333",
        "1/3",
        "0.3333333333333333",
        "3",
        "-3",
        "twelve",
        "8:30",
        "8:45",
        "1e999999",
    ]
    assert len({number.canonical(answer) for answer in answers}) == len(answers)


def test_a_percentage_is_the_number_before_its_sign() -> None:
    number = kind("number")
    percent, half, fifty, five = map(number.canonical, ("50%", "0.5", "50", "5"))
    assert percent == fifty
    assert len({percent, half, five}) == 3


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("12 apples", "12"),
        (r"\$5", "5"),
        ("$1,234.50", "1234.5"),
        ("about 3.5 kg", "3.5"),
        ("1/3", "1/3"),
        ("3천5백", "3500"),
        ("25 %", "25%"),
        ("2 hours 30 minutes", "2 hours 30 minutes"),
        ("no idea", "no idea"),
    ],
)
def test_a_number_is_shown_as_a_number_that_is_the_same_answer(answer: str, shown: str) -> None:
    number = kind("number")
    assert number.shown(answer) == shown
    assert number.canonical(shown) == number.canonical(answer)


@pytest.mark.parametrize(
    "answers",
    [
        (
            "The Eiffel Tower!",
            "eiffel tower",
            "  Eiffel\nTower",
            '"Eiffel Tower"',
            "Ｅｉｆｆｅｌ tower",  # noqa: RUF001
        ),
        ("Paris", r"\text{Paris}", "**Paris**", "PARIS."),
        ("서울", "서울."),
    ],
)
def test_texts_are_compared_without_case_articles_and_punctuation(answers: tuple[str, ...]) -> None:
    assert same("text", *answers)


def test_texts_that_say_different_things_stay_apart() -> None:
    text = kind("text")
    answers = ["3.14", "314", "3,14", "the", "!!!", "café", "cafe", "New York", "York"]
    assert len({text.canonical(answer) for answer in answers}) == len(answers)


def test_json_is_compared_by_value() -> None:
    assert same("json", '{"a": 1, "b": [0.10, 2]}', '{"b":[1e-1,2.0],"a":1.0}')
    assert same("json", "100", "1e2")
    json = kind("json")
    answers = [
        "[1, 2]",
        "[2, 1]",
        "1",
        '"1"',
        "true",
        "null",
        "0.1",
        '"1/10"',
        '{"a": 1}',
        "no JSON",
    ]
    assert len({json.canonical(answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("bomb", ["[" * 100_000, "1e999999999", "9" * 5_000, '{"a": NaN}'])
def test_json_that_cannot_be_read_stands_for_itself(bomb: str) -> None:
    assert kind("json").canonical(bomb) == bomb


@pytest.fixture(params=["choice", "json", "math", "number", "text"])
def any_kind(request: pytest.FixtureRequest) -> AnswerKind:
    return kind(request.param)


ALPHABET = st.sampled_from(
    r"0123456789.,/%$€-+*^_={}()[]|\<>~!'" + '"xyieπ√½²°∞만개 \n'
) | st.sampled_from(
    [r"\frac", r"\sqrt", r"\text{a", r"\left(", r"\pm", r"\begin{pmatrix}", r"\\", "&", " or "]
)


@given(st.text() | st.lists(ALPHABET, max_size=30).map("".join))
def test_no_text_breaks_a_kind_and_no_key_is_empty(text: str) -> None:
    for name in ("choice", "json", "math", "number", "text"):
        answers = kind(name)
        key = answers.canonical(text)
        assert key
        assert isinstance(answers.decided(key, answers.canonical("1/2")), bool)
        answers.extract(text)


@given(st.text(max_size=50))
def test_the_same_text_always_has_the_same_key(text: str) -> None:
    for name in ("choice", "json", "math", "number", "text"):
        assert kind(name).canonical(text) == kind(name).canonical(text)
