"""Figures of one run, and of two: intervals, McNemar's test, and what may be compared."""

from dataclasses import replace
from fractions import Fraction
from math import isnan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.errors import InvalidSettingError
from conviction.evaluation.compare import compare, paired_difference
from conviction.evaluation.results import QuestionResult, RunData, RunDescription
from conviction.evaluation.stored import Run
from conviction.evaluation.summary import proportion, summarise
from conviction.lab.statistics import sign_test
from conviction.verdict import Usage


def result(
    number: int, *, correct: bool | None, tokens: int = 100, gold: str | None = "7"
) -> QuestionResult:
    """A question that was answered rightly or wrongly, or that failed (None)."""
    failed = correct is None
    return QuestionResult(
        id=f"q{number}",
        question=f"hash {number}",
        gold=gold,
        answer=None if failed else "7" if correct else "8",
        correct=None if gold is None else correct,
        share=0.5,
        ended="failed" if failed else "budget",
        tokens=tokens,
        usage=Usage(voted=tokens),
        traces=4,
        seconds=2.0,
        error="the engine is gone" if failed else None,
    )


def run(outcomes: list[bool | None], tokens: int = 100, name: str = "run") -> Run:
    data = RunData("data.jsonl", len(outcomes), "data", "prompts")
    results = [
        result(number, correct=correct, tokens=tokens) for number, correct in enumerate(outcomes)
    ]
    return Run(Path(name), RunDescription({"answers": "math"}, "m", 20, data), tuple(results))


# --- One run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_the_interval_of_a_share_is_wilsons(
    successes: int, total: int, low: float, high: float
) -> None:
    share = proportion(successes, total)
    assert share.value == successes / total
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 5000), st.data())
def test_a_share_lies_in_its_interval_and_its_mirror_in_the_mirrored_one(
    total: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, total))
    share, mirror = proportion(successes, total), proportion(total - successes, total)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_failed_questions_count_only_if_asked_for() -> None:
    results = run([True, True, False, None]).results
    left_out = summarise(results, 5)
    counted = summarise(results, 5, failures_wrong=True)
    assert (left_out.right, left_out.counted, left_out.accuracy.value) == (2, 3, 2 / 3)
    assert (counted.right, counted.counted, counted.accuracy.value) == (2, 4, 0.5)
    assert (left_out.finished, left_out.failed, left_out.complete) == (3, 1, False)
    assert (left_out.tokens.value, left_out.all_tokens) == (100.0, 400)
    assert left_out.failures == ("the engine is gone",)


def test_a_run_of_nothing_has_no_accuracy_and_says_so_in_json() -> None:
    summary = summarise((), 3)
    assert isnan(summary.accuracy.value)
    assert summary.to_dict()["accuracy"] == {"value": None, "low": None, "high": None}
    ungraded = summarise([result(1, correct=True, gold=None)], 1)
    assert ungraded.complete
    assert isnan(ungraded.accuracy.value)


# --- Two runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 6, 2 * (1 + 7) / 2**7),
        (0, 5, 2 / 2**5),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
        (4, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_what_one_computes_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert sign_test(only_first, only_second) == p
    assert sign_test(only_second, only_first) == p


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_chance_of_coins_at_least_that_uneven(first: int, second: int) -> None:
    row = [Fraction(1)]
    for _ in range(first + second):
        row = [(a + b) / 2 for a, b in zip([*row, Fraction(0)], [Fraction(0), *row], strict=True)]
    uneven = abs(first - second)
    chance = sum(p for heads, p in enumerate(row) if abs(first + second - 2 * heads) >= uneven)
    assert sign_test(first, second) == pytest.approx(float(chance), rel=1e-12)


def test_thousands_of_questions_are_no_trouble() -> None:
    assert sign_test(4000, 4000) == 1.0
    assert 0 < sign_test(3000, 5000) < 1e-100


def test_runs_are_paired_question_by_question() -> None:
    first = run([True, True, True, False, False, False, False, True], tokens=200)
    second = run([True, True, True, True, True, True, False, False], tokens=50)
    found = compare(first, second)
    assert (found.questions, found.both_right, found.neither_right) == (8, 3, 1)
    assert (found.only_first_right, found.only_second_right) == (1, 3)
    assert found.p == 2 * (1 + 4) / 2**4
    assert (found.accuracies[0].value, found.accuracies[1].value) == (0.5, 0.75)
    assert found.difference.value == 0.25
    assert found.difference.low < 0 < found.difference.high
    assert found.tokens_ratio.value == 0.25
    assert not found.worse
    assert found.notes == ()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_swapping_the_runs_turns_the_difference_round(pairs: list[tuple[bool, bool]]) -> None:
    first, second = run([a for a, _ in pairs]), run([b for _, b in pairs])
    there, back = compare(first, second), compare(second, first)
    assert there.p == back.p
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.questions == len(pairs)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # The table of Cavo et al. (2012), and the interval that the R package contingencytables gives
    # for it; that takes the second from the first, so its signs are the other way round.
    found = paired_difference(59, 6, 16, 161)
    assert found.value == 10 / 161
    assert (found.low, found.high) == (
        pytest.approx(0.0046, abs=5e-5),
        pytest.approx(0.1186, abs=5e-5),
    )


def test_runs_that_are_right_together_are_known_to_differ_by_less() -> None:
    # Both are right in 50 of 100; they differ in 20, in 50, and in 80 questions.
    widths = [
        found.high - found.low
        for apart in (10, 25, 40)
        for found in [paired_difference(50 - apart, apart, apart, 100)]
    ]
    assert widths == sorted(set(widths))


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_a_difference_lies_within_its_interval_which_always_has_a_width(
    counts: tuple[int, int, int, int],
) -> None:
    both, only_first, only_second, _ = counts
    found = paired_difference(both, only_first, only_second, sum(counts))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 1 / (sum(counts) + 4)
    exchanged = paired_difference(both, only_second, only_first, sum(counts))
    assert found.low == pytest.approx(-exchanged.high, abs=1e-12)


@given(
    st.lists(st.sampled_from([(True, True), (True, False), (False, False)]), min_size=1, max_size=5)
)
def test_a_few_questions_never_show_that_a_run_is_worse(pairs: list[tuple[bool, bool]]) -> None:
    assert not compare(run([a for a, _ in pairs]), run([b for _, b in pairs])).worse


def test_worse_means_more_than_chance() -> None:
    good, bad = run([True] * 40), run([True] * 20 + [False] * 20)
    assert compare(good, bad).worse
    assert not compare(bad, good).worse
    assert not compare(good, run([True] * 39 + [False])).worse


def test_what_chance_alone_often_does_is_not_worse() -> None:
    three_lost = compare(run([True] * 8), run([True] * 5 + [False] * 3))
    assert (three_lost.p, three_lost.worse) == (0.25, False)
    assert three_lost.to_dict()["worse"] is False
    # The interval alone would say so here, and the exact test does not.
    close = compare(run([True] * 7 + [False]), run([False] * 6 + [True] * 2))
    assert (close.difference.high < 0, close.p, close.worse) == (True, 0.125, False)


def test_runs_that_agree_on_every_question_are_not_known_to_be_equal() -> None:
    for outcomes in ([True], [True] * 8, [False] * 8, [True] * 4 + [False] * 4):
        difference = compare(run(list(outcomes)), run(list(outcomes))).difference
        assert difference.low < difference.value == 0 < difference.high


def test_tokens_have_no_interval_where_all_questions_agree_and_one_where_they_differ() -> None:
    same = compare(run([True] * 3, tokens=200), run([True] * 3, tokens=50)).to_dict()
    assert same["tokens_ratio"] == {"value": 0.25, "low": None, "high": None}
    alone = summarise(run([True]).results, 1).to_dict()["tokens_per_question"]
    assert alone == {"value": 100.0, "low": None, "high": None}
    mixed = [result(number, correct=True, tokens=100 * (number + 1)) for number in range(3)]
    tokens = summarise(mixed, 3).tokens
    assert tokens.low < tokens.value == 200 < tokens.high
    ratio = compare(run([True] * 3), replace(run([True] * 3), results=tuple(mixed))).tokens_ratio
    assert ratio.low < ratio.value == 2 < ratio.high


def test_failed_and_missing_questions_are_left_out_and_told() -> None:
    first = run([True, None, False, True], name="first")
    second = run([True, True, True], name="second")
    found = compare(first, second)
    assert (found.questions, found.only_second_right) == (2, 1)
    assert any("only first has: 1" in note for note in found.notes)
    assert any("failed in one of the runs: 1" in note for note in found.notes)
    counted = compare(first, second, failures_wrong=True)
    assert (counted.questions, counted.only_second_right) == (3, 2)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"question": "other"}, "other words"), ({"gold": "9"}, "'7' and '9'"), ({"id": "x"}, "no q")],
)
def test_other_questions_or_right_answers_are_refused(change: dict[str, str], word: str) -> None:
    first = run([True])
    [only] = first.results
    fields = {name: getattr(only, name) for name in only.__struct_fields__}
    second = replace(first, results=(QuestionResult(**{**fields, **change}),))
    with pytest.raises(InvalidSettingError, match=word):
        compare(first, second)


def test_runs_without_right_answers_are_refused() -> None:
    ungraded = replace(run([True]), results=(result(0, correct=True, gold=None),))
    with pytest.raises(InvalidSettingError, match="no right answer"):
        compare(ungraded, ungraded)
