"""Intervals, AUROC and the Pareto front."""

from math import comb, isfinite, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conviction.lab.statistics import (
    Bootstrap,
    Estimate,
    any_seed,
    auroc,
    mean_of,
    pareto_front,
    sign_test,
    wilson,
)

# Few distinct scores, so that ties are common.
scored = st.lists(st.tuples(st.sampled_from([1.0, 1.5, 2.0, 7.0, nan]), st.booleans()), max_size=30)


@given(scored)
def test_auroc_is_the_share_of_pairs_that_are_ranked_right(
    traces: list[tuple[float, bool]],
) -> None:
    good = [score for score, right in traces if right and isfinite(score)]
    bad = [score for score, right in traces if not right and isfinite(score)]
    pairs = [(a > b) + (a == b) / 2 for a in good for b in bad]
    area = auroc(np.array([s for s, _ in traces]), np.array([r for _, r in traces], bool))
    assert area == pytest.approx(np.mean(pairs) if pairs else nan, nan_ok=True)


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)),
        elements=st.one_of(st.floats(-10, 10), st.just(nan)),
    )
)
def test_every_resample_lies_between_the_least_and_the_greatest_value(values: np.ndarray) -> None:
    means = Bootstrap(*values.shape[1:], resamples=40).means(values)
    for figure, resampled in zip(values, means, strict=True):
        present = figure[np.isfinite(figure)]
        drawn = resampled[np.isfinite(resampled)]
        assert present.size or not drawn.size
        assert (drawn >= present.min(initial=np.inf) - 1e-9).all()
        assert (drawn <= present.max(initial=-np.inf) + 1e-9).all()


def test_the_same_seed_gives_the_same_interval_and_another_a_little_different_one() -> None:
    values = np.random.default_rng(0).random((1, 20, 5))
    first, again = (Bootstrap(20, 5, seed=1).estimates(values) for _ in range(2))
    (other,) = Bootstrap(20, 5, seed=2).estimates(values)
    assert first == again
    assert other != first[0]
    assert other.low == pytest.approx(first[0].low, abs=0.03)


def test_the_interval_of_independent_questions_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (1, 400, 1))
    (estimate,) = Bootstrap(400).estimates(values)
    error = values.std() / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_questions_that_differ_count_although_their_repeats_agree() -> None:
    values = np.repeat([[[0.0], [1.0]]], 100, axis=2)
    (estimate,) = Bootstrap(2, 100).estimates(values)
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_repeats_that_differ_count_although_their_questions_agree() -> None:
    values = np.tile([0.0, 1.0], (1, 50, 1))
    (estimate,) = Bootstrap(50, 2).estimates(values)
    assert 0.3 < estimate.low < 0.48
    assert 0.52 < estimate.high < 0.7


def test_figures_are_resampled_together_so_their_difference_is_paired() -> None:
    values = np.random.default_rng(0).random((1, 30, 4))
    first, second = Bootstrap(30, 4).means(np.concatenate([values, values + 0.25]))
    assert second - first == pytest.approx(np.full(first.shape, 0.25))


def test_what_is_not_there_is_left_out_and_nothing_at_all_has_no_interval() -> None:
    values = np.array([[[1.0], [nan], [1.0]], [[nan], [nan], [nan]]])
    some, none = Bootstrap(3).estimates(values)
    assert some == Estimate(1.0, 1.0, 1.0)
    assert np.isnan([none.value, none.low, none.high]).all()
    assert np.isnan(mean_of([nan]))


@pytest.mark.parametrize(
    ("share", "total", "low", "high"),
    [(1.0, 1, 0.207, 1.0), (0.0, 6, 0.0, 0.390), (0.9, 30, 0.744, 0.965), (0.5, 2, 0.095, 0.905)],
)
def test_scores_intervals_are_wilsons(share: float, total: int, low: float, high: float) -> None:
    assert wilson(share, total) == pytest.approx((low, high), abs=0.001)


def test_a_share_on_which_all_questions_agree_is_not_certain() -> None:
    agree, differ = np.ones((6, 4)), np.repeat([[1.0], [0.0]], 4, axis=1)
    (one,) = Bootstrap(6, 4).shares(agree)
    assert one == Estimate(1.0, *wilson(1.0, 6))
    draws = np.tile([1.0, 0.0], (1, 1, 2))
    assert Bootstrap(1, 4).shares(draws) == [Estimate(0.5, *wilson(0.5, 1))]
    assert Bootstrap(2, 4).shares(differ) == Bootstrap(2, 4).estimates(differ)
    only_two = np.where(np.arange(6)[:, None] < 2, agree, nan)
    assert Bootstrap(6, 4).shares(only_two) == [Estimate(1.0, *wilson(1.0, 2))]


def test_a_difference_on_which_all_questions_agree_is_not_certain() -> None:
    (one,), (many,) = (Bootstrap(count, 2).differences(np.ones((count, 2))) for count in (1, 20))
    assert (one.value, one.high, many.value, many.high) == (1.0, 1.0, 1.0, 1.0)
    assert one.low < 0 < many.low < 1
    (loss,) = Bootstrap(20, 2).differences(-np.ones((20, 2)))
    assert (loss.low, loss.high) == pytest.approx((-1.0, -many.low))
    (none,) = Bootstrap(20, 2).differences(np.zeros((20, 2)))
    assert none.value == 0.0
    assert np.isnan([none.low, none.high]).all()
    some = np.repeat([[1.0], [0.0], [-1.0]], 2, axis=1)
    assert Bootstrap(3, 2).differences(some) == Bootstrap(3, 2).estimates(some)


def test_an_amount_of_one_question_has_no_interval() -> None:
    one = Estimate.of_amount(7.0, np.array([6.0, 8.0]), 1)
    assert np.isnan([one.low, one.high]).all()
    two = Estimate.of_amount(7.0, np.array([6.0, 8.0]), 2)
    assert two.low < 7.0 < two.high


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_sign_test_adds_up_coins(better: int, worse: int) -> None:
    tosses = better + worse
    as_uneven = sum(
        comb(tosses, heads)
        for heads in range(tosses + 1)
        if abs(2 * heads - tosses) >= abs(better - worse)
    )
    assert sign_test(better, worse) == pytest.approx(as_uneven / 2**tosses)


def test_any_whole_number_is_a_seed() -> None:
    values = np.random.default_rng(0).random((1, 20, 5))
    (first,), (other,) = (Bootstrap(20, 5, seed=seed).estimates(values) for seed in (-1, -2))
    assert first != other
    assert any_seed(7) == 7


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25)


@given(points)
def test_nothing_beats_the_front_and_all_else_is_beaten(found: list[tuple[int, int]]) -> None:
    cost, worth = (np.array(column, float) for column in zip(*found, strict=True))
    front = pareto_front(cost, worth)
    for number in range(cost.size):
        no_worse = (cost <= cost[number]) & (worth >= worth[number])
        better = no_worse & ((cost < cost[number]) | (worth > worth[number]))
        equal_before = no_worse[:number] & ~better[:number]
        assert front[number] == (not better.any() and not equal_before.any())
