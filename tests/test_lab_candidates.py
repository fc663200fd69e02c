"""Policies as they are written on the command line."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.confidence import Metric
from conviction.errors import ConvictionError, InvalidSettingError, UnknownNameError
from conviction.lab.candidates import fitting_windows, parse, usual_grid, usual_policies
from conviction.policies import AdaptiveConsistency, DeepConfLow, DeepConfOffline, Majority


def test_settings_are_read_as_what_the_policy_takes() -> None:
    one, two, three = parse(
        [
            "deepconf-low:window=32,keep=0.2",
            "deepconf-offline: metric=mean, weighted=false, window=none",
            "majority:budget=8",
        ],
        budgets=[64],
    )
    low, offline = DeepConfLow(keep=0.2, budget=64, window=32), DeepConfOffline(64, Metric.MEAN)
    assert one.policy.settings() == low.settings()
    assert two.policy.settings() == {**offline.settings(), "weighted": False}
    assert three.policy.settings() == Majority(8).settings()
    assert three.budget == 8


def test_alternatives_make_one_candidate_each_on_every_machine() -> None:
    found = parse(["esc:window=3/4", "single"], budgets=[8, 16], concurrencies=[1, inf])
    assert [(one.label, one.concurrency) for one in found] == [
        (label, concurrency)
        for label in ("esc@8 window=3", "esc@16 window=3", "esc@8", "esc@16", "single")
        for concurrency in (1, inf)
    ]


def test_a_single_trace_is_measured_against_the_largest_budget() -> None:
    (single,) = parse(["single"], budgets=[8, 16])
    assert (single.policy.budget, single.budget) == (1, 16)


def test_what_does_the_same_is_compared_once() -> None:
    specs = ["majority", "majority:budget=16", "borda:metric=mean,window=16/32/none"]
    assert [one.label for one in parse(specs, budgets=[16])] == [
        "majority@16",
        "borda@16 window=16",
    ]


def test_a_window_that_only_the_gate_has_is_a_difference() -> None:
    spec = "settle-confident:metric=mean,keep=0.5,window=16/32"
    assert [one.label for one in parse([spec], budgets=[16])] == [
        "settle-confident@16 window=16 keep=0.5",
        "settle-confident@16 window=32 keep=0.5",
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("majorty", "Did you mean 'majority'"),
        ("deepconf-low:kepe=0.1", "Its settings: keep, budget"),
        ("deepconf-offline:metric=tial", "Did you mean 'tail'"),
        ("deepconf-low:keep=lots", "it takes a number"),
        ("deepconf-low:window=1.5", "it takes a whole number or none"),
        ("deepconf-low:keep", "'keep' is no setting"),
        ("deepconf-low:keep=2", "between"),
        ("majority:", "'' is no setting"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_would_do(spec: str, words: str) -> None:
    with pytest.raises((InvalidSettingError, UnknownNameError), match=words):
        parse([spec], budgets=[16])


@pytest.mark.parametrize("concurrency", [0, 0.5, 1.5, float("nan"), -inf])
def test_a_machine_has_a_whole_number_of_places(concurrency: float) -> None:
    with pytest.raises(InvalidSettingError, match="concurrency"):
        parse(["majority"], budgets=[4], concurrencies=[concurrency])


@given(
    st.sampled_from(["deepconf-low", "deepconf-high", "deepconf-offline", "borda", "esc"]),
    st.integers(2, 300),
    st.integers(1, 64),
)
def test_the_specification_of_a_candidate_makes_it_again(
    name: str, window: int, budget: int
) -> None:
    (one,) = parse([f"{name}:window={window}"], budgets=[budget])
    (again,) = parse([one.spec], budgets=[budget])
    assert again.policy.settings() == one.policy.settings()


@settings(max_examples=20)
@given(st.integers(1, 600), st.floats(0, 100_000))
def test_every_sweep_consists_of_valid_candidates(budget: int, tokens: float) -> None:
    grid = usual_grid(budget, tokens)
    try:
        found = parse(usual_policies(confidences=True, sweep=True), budgets=[budget], grid=grid)
    except ConvictionError as error:
        pytest.fail(str(error))
    assert found[0].policy.settings() == Majority(budget).settings()
    assert max(one.policy.budget for one in found) == budget
    assert all(one.budget == budget for one in found)
    bars = {one.policy.bar for one in found if isinstance(one.policy, AdaptiveConsistency)}
    assert bars == {0.8, 0.9, 0.95, 0.99}


@pytest.mark.parametrize(
    ("tokens", "windows"),
    [(0, (16,)), (150, (16, 32, 64)), (400, (16, 32, 64, 128)), (20_000, (16, 64, 512, 2048))],
)
def test_windows_fit_the_traces(tokens: float, windows: tuple[int, ...]) -> None:
    assert fitting_windows(tokens) == windows


def test_a_sweep_leaves_out_what_does_not_go_together_but_not_what_was_asked_for() -> None:
    grid = usual_grid(16, 100)
    found = parse(["deepconf-low"], budgets=[4, 16], grid=grid)
    assert {one.policy.budget for one in found} == {4, 16}
    with pytest.raises(InvalidSettingError, match="keep"):
        parse(["deepconf-low:keep=5"], budgets=[16], grid=grid)
