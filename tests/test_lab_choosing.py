"""What is chosen on one half of the questions, and what the other half makes of it."""

from math import nan

import lab_traces
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.confidence import Metric
from conviction.lab.diagnosis import calibration, calibration_error
from conviction.lab.selection import (
    FEWEST_DIFFERENT,
    FilterChoice,
    RankingChoice,
    advise,
    best_windows,
    choose_filter,
    choose_ranking,
)
from conviction.lab.statistics import Estimate, sign_test

FILTERS = [f"deepconf-offline:metric=mean,keep={keep}" for keep in (0.1, 0.5, 0.9)]
HALF = np.array([True, True, False, False, False])


def chosen(*filters: list[int], majority: list[int] | None = None) -> FilterChoice:
    correct = [majority or [0] * 5, *filters]
    specs = ["majority", *FILTERS[: len(filters)]]
    return choose_filter(lab_traces.trials(specs, correct=np.array(correct)[..., None]), HALF)


def test_a_filter_is_chosen_by_its_own_half_alone() -> None:
    best_there, best_of_all = [1, 1, 0, 0, 0], [1, 0, 1, 1, 1]
    found = chosen(best_there, best_of_all)
    assert found.keep == 0.1
    assert (found.where_chosen.value, found.elsewhere.value) == (1.0, 0.0)
    assert found.questions == (2, 3)


def test_among_equal_filters_the_one_that_drops_least_is_chosen() -> None:
    assert chosen([1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [1, 1, 0, 0, 0]).keep == 0.9


def test_questions_that_gain_and_lose_are_counted_where_it_was_not_chosen() -> None:
    found = chosen([1, 1, 1, 1, 0], majority=[0, 0, 0, 0, 1])
    assert (found.better, found.worse) == (2, 1)
    assert found.p == sign_test(2, 1) == 1.0


def test_draws_of_one_question_count_as_one_question() -> None:
    correct = np.zeros((2, 5, 10))
    correct[1, 2] = 1
    correct[0, 3, :4], correct[1, 3, 4:9] = 1, 1
    found = choose_filter(lab_traces.trials(["majority", FILTERS[0]], correct=correct), HALF)
    assert (found.better, found.worse) == (2, 0)


MEASURES = [(Metric.LOWEST_GROUP, 16), (Metric.LOWEST_GROUP, 32), (Metric.MEAN, None)]


def test_a_ranking_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    areas = np.array(
        [[0.6, 0.6, 0.9, 0.9, 0.9], [0.7, nan, 0.5, 0.4, nan], [0.5, 0.5, 0.9, 0.9, 0.9]]
    )
    found = choose_ranking(MEASURES, areas, HALF)
    assert found is not None
    assert (found.metric, found.window) == MEASURES[1]
    assert found.where_chosen.value == pytest.approx(0.7)
    assert found.elsewhere.value == pytest.approx(0.45)
    assert found.mixed == (1, 2)
    assert best_windows(MEASURES, areas, HALF) == {Metric.LOWEST_GROUP: 32, Metric.MEAN: None}
    assert best_windows(MEASURES, areas, ~HALF)[Metric.LOWEST_GROUP] == 16


def test_where_nothing_can_be_ranked_no_ranking_is_chosen() -> None:
    areas = np.full((3, 5), nan)
    areas[:, 2] = 0.9
    assert choose_ranking(MEASURES, areas, HALF) is None
    assert best_windows(MEASURES, areas, HALF) == {Metric.LOWEST_GROUP: 16, Metric.MEAN: None}
    elsewhere = choose_ranking(MEASURES, areas, ~HALF)
    assert elsewhere is not None
    assert elsewhere.mixed == (1, 0)
    assert "nothing to rank on the other" in advise(chosen([1] * 5), elsewhere, 1)[0]
    assert "ranks best" not in advise(chosen([1] * 5), None, 1)[0]


GAIN, NONE, LOSS = (Estimate(x, x - 0.02, x + 0.02) for x in (0.05, 0.0, -0.05))
UNSURE_GAIN, UNSURE_LOSS = Estimate(0.05, -0.01, 0.1), Estimate(-0.05, -0.1, 0.01)
RANKING = RankingChoice(
    Metric.TAIL, 32, Estimate(0.9, 0.8, 0.95), Estimate(0.7, 0.6, 0.8), mixed=(5, 4)
)
SPEC = "deepconf-offline:keep=0.5"


@pytest.mark.parametrize(
    ("here", "there", "counts", "words", "use"),
    [
        (GAIN, GAIN, (6, 0), "Confidence helps here", SPEC),
        (GAIN, GAIN, (5, 0), "no gain from confidence could be shown", "majority"),
        (GAIN, GAIN, (8, 3), "no gain from confidence could be shown", "majority"),
        (GAIN, UNSURE_GAIN, (9, 0), "no gain from confidence could be shown", "majority"),
        (GAIN, NONE, (3, 3), "no gain from confidence could be shown", "majority"),
        (GAIN, LOSS, (0, 6), "does harm", "majority"),
        (GAIN, LOSS, (0, 5), "no gain from confidence could be shown", "majority"),
        (GAIN, UNSURE_LOSS, (0, 9), "no gain from confidence could be shown", "majority"),
        (GAIN, Estimate(0.0, nan, nan), (0, 0), "no verdict for better or worse", "majority"),
        (NONE, GAIN, (6, 0), "no filter beats it even on the 10", "majority"),
    ],
)
def test_the_advice_follows_the_other_half(
    here: Estimate, there: Estimate, counts: tuple[int, int], words: str, use: str
) -> None:
    better, worse = counts
    choice = FilterChoice(
        Metric.TAIL, None, 0.5, SPEC, (10, 11), here, there, better, worse, sign_test(*counts)
    )
    advice, spec = advise(choice, RANKING, 9)
    assert words in advice
    assert "70% of all pairs on the other half" in advice
    assert spec == use
    assert "nan" not in advice


def test_six_is_the_fewest_questions_that_can_show_a_difference() -> None:
    assert FEWEST_DIFFERENT == 6
    choice = FilterChoice(Metric.TAIL, None, 0.5, SPEC, (5, 5), GAIN, GAIN, 5, 0, sign_test(5, 0))
    advice, use = advise(choice, RANKING, 9)
    assert "too few questions to tell" in advice
    assert "5 questions has to make a difference on at least 6 others, and there are 5" in advice
    assert use == "majority"


def test_runs_without_a_vote_are_no_part_of_the_calibration() -> None:
    trials = lab_traces.trials(
        ["majority"],
        correct=np.array([[[1, 1], [0, 0]]]),
        share=np.array([[[0.65, 0.65], [0.65, 0.65]]]),
        empty=np.array([[[False, False], [True, False]]]),
    )
    (only,) = calibration(trials)
    assert (only.low, only.questions) == (0.6, 1.5)
    assert only.accuracy.value == pytest.approx(2 / 3)
    assert calibration_error([only]) == pytest.approx(2 / 3 - 0.65, abs=1e-6)


@given(st.integers(1, 10), st.integers(1, 60))
def test_a_share_of_some_tenths_belongs_to_the_tenth_that_it_begins(tenths: int, tens: int) -> None:
    share = np.full((1, 1, 1), tenths * tens / (10 * tens))
    (only,) = calibration(lab_traces.trials(["majority"], share=share))
    assert only.low == min(tenths, 9) / 10


def test_a_tenth_on_which_all_questions_agree_is_not_certain() -> None:
    share = np.full((1, 14, 3), 0.85)
    (only,) = calibration(lab_traces.trials(["majority"], share=share, correct=np.ones((1, 14, 3))))
    assert only.accuracy.value == only.accuracy.high == 1.0
    assert only.accuracy.low == pytest.approx(0.785, abs=0.001)
