"""The rules that the lab measures others against."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.confidence import Metric
from conviction.core import Answer, FinishReason, Trace
from conviction.errors import InvalidSettingError, UnknownNameError
from conviction.policies import (
    AdaptiveConsistency,
    BestOfN,
    Borda,
    Conditions,
    Done,
    EarlyStoppingConsistency,
    Majority,
    Policy,
    Start,
)
from conviction.voting import lead_probability

CONDITIONS = Conditions(concurrency=8, max_tokens=100, top_k=20)


def trace(
    number: int,
    answer: str | None,
    finish: FinishReason = FinishReason.STOP,
    confidences: Sequence[float] = (),
) -> Trace:
    known = Answer(answer, answer) if answer is not None else None
    values = np.array(confidences, np.float32)
    return Trace(number, finish, len(values), confidences=values, answer=known)


def run(policy: Policy, answers: Sequence[str | None]) -> tuple[int, str | None, bool]:
    """Traces started, the verdict, and whether the policy ended the run itself."""
    actions = list(policy.begin(CONDITIONS))
    started = finished = 0
    while True:
        for action in actions:
            match action:
                case Start(count):
                    started += count
                case Done():
                    leader = policy.standing().tally.leader
                    return started, leader.text if leader else None, True
                case _:
                    raise AssertionError
        if finished == started:
            leader = policy.standing().tally.leader
            return started, leader.text if leader else None, False
        actions = list(policy.on_finished(trace(finished, answers[finished])))
        finished += 1


class TestLeadProbability:
    @pytest.mark.parametrize(
        ("votes", "value"),
        [((0, 0), 0.5), ((1, 0), 0.75), ((2, 0), 0.875), ((4, 0), 0.96875), ((5, 5), 0.5)],
    )
    def test_has_its_known_values(self, votes: tuple[int, int], value: float) -> None:
        assert lead_probability(*votes) == pytest.approx(value, rel=1e-12)

    @given(st.integers(0, 300), st.integers(0, 300))
    def test_is_the_closed_form(self, leader: int, runner_up: int) -> None:
        trials = leader + runner_up + 1
        exact = Fraction(sum(comb(trials, k) for k in range(leader + 1)), 2**trials)
        assert lead_probability(leader, runner_up) == pytest.approx(float(exact), rel=1e-9)

    @pytest.mark.parametrize(("votes", "value"), [((5000, 5000), 0.5), ((10_000, 0), 1.0)])
    def test_bears_ten_thousand_votes(self, votes: tuple[int, int], value: float) -> None:
        assert lead_probability(*votes) == pytest.approx(value, rel=1e-9)


class TestAdaptiveConsistency:
    def test_stops_when_the_leader_is_far_enough_ahead(self) -> None:
        assert run(AdaptiveConsistency(budget=16), ["a"] * 16) == (4, "a", True)
        assert run(AdaptiveConsistency(budget=16, bar=0.99), ["a"] * 16) == (6, "a", True)

    def test_goes_on_while_answers_contradict_each_other(self) -> None:
        answers = ["a", "b"] * 8
        assert run(AdaptiveConsistency(budget=16), answers) == (16, "a", False)

    def test_counts_no_vote_of_a_trace_without_an_answer(self) -> None:
        answers = [None, "a", None, "a", "a", "a", None, None]
        assert run(AdaptiveConsistency(budget=8), answers) == (6, "a", True)

    def test_asks_only_when_a_whole_wave_has_ended(self) -> None:
        assert run(AdaptiveConsistency(budget=16, wave=6), ["a"] * 16) == (6, "a", True)
        assert run(AdaptiveConsistency(budget=16, wave=3), ["a"] * 16) == (6, "a", True)
        assert run(AdaptiveConsistency(budget=7, wave=5), ["a", "b"] * 4) == (7, "a", False)

    def test_a_lead_within_a_wave_settles_nothing(self) -> None:
        # Those that end first are all "a", the slow ones "b"; only both together count.
        answers = [*"aaaabb", *"bbbbbb", *"bbbbbb"]
        assert run(AdaptiveConsistency(budget=18, wave=6), answers) == (18, "b", True)

    def test_does_not_settle_without_a_vote(self) -> None:
        assert run(AdaptiveConsistency(budget=8, bar=0.5001), [None] * 8) == (8, None, False)
        assert run(AdaptiveConsistency(budget=8, bar=0.5001), [None, "a"] * 4) == (2, "a", True)

    @pytest.mark.parametrize(
        "settings", [{"bar": 0.4}, {"bar": 0.5}, {"bar": 1.0}, {"wave": 0}, {"budget": 0}]
    )
    def test_refuses_senseless_settings(self, settings: dict[str, float]) -> None:
        with pytest.raises(InvalidSettingError):
            AdaptiveConsistency(**settings)  # type: ignore[arg-type]


class TestEarlyStoppingConsistency:
    def test_stops_at_the_first_window_of_one_mind(self) -> None:
        answers = ["b", "a", "a", "a", "a", "a", "a", "a", "c", "c", "c", "c"]
        assert run(EarlyStoppingConsistency(budget=12), answers) == (8, "a", True)

    def test_a_missing_answer_is_no_agreement(self) -> None:
        answers = ["a", "a", "a", None] * 3
        assert run(EarlyStoppingConsistency(budget=12), answers) == (12, "a", False)

    def test_a_window_of_silent_traces_is_no_agreement(self) -> None:
        assert run(EarlyStoppingConsistency(budget=8), [None] * 8) == (8, None, False)
        answers = [None, None, None, None, "a", "a", "a", "a", "b", "b", "b", "b"]
        assert run(EarlyStoppingConsistency(budget=12), answers) == (8, "a", True)

    def test_the_answer_is_that_of_all_traces_so_far(self) -> None:
        answers = ["a", "a", "a", "b", "a", "a", "b", "a", "b", "b", "b", "b"]
        assert run(EarlyStoppingConsistency(budget=16), answers) == (12, "a", True)

    def test_a_window_that_the_budget_cuts_short_settles_nothing(self) -> None:
        assert run(EarlyStoppingConsistency(budget=6), ["a", "b", "a", "b", "a", "a"]) == (
            *(6, "a"),
            False,
        )

    def test_needs_windows_of_two(self) -> None:
        with pytest.raises(InvalidSettingError):
            EarlyStoppingConsistency(window=1)


def ended(policy: Policy, traces: Sequence[Trace]) -> Policy:
    policy.begin(CONDITIONS)
    for item in traces:
        assert policy.on_finished(item) == []
    return policy


SURE = [
    trace(0, "a", confidences=[1.0, 2.0]),
    trace(1, "b", confidences=[9.0, 5.0]),
    trace(2, "a", confidences=[3.0, 3.0]),
    trace(3, "c", FinishReason.LENGTH, [20.0]),
    trace(4, "a", confidences=[2.0, 2.0]),
    trace(5, "c", confidences=[nan]),
]


class TestRanks:
    def test_best_of_n_follows_the_most_confident_trace(self) -> None:
        tally = ended(BestOfN(budget=6), SURE).standing().tally
        assert [(entry.text, entry.votes) for entry in tally.entries] == [("b", (1,))]

    def test_the_metric_decides_who_that_is(self) -> None:
        traces = [trace(0, "a", confidences=[1.0, 9.0]), trace(1, "b", confidences=[6.0, 6.0])]
        policy = BestOfN(budget=2, metric=Metric.TAIL, window=1)
        leader = ended(policy, traces).standing().tally.leader
        assert leader is not None
        assert leader.text == "a"

    def test_borda_weighs_votes_by_rank(self) -> None:
        tally = ended(Borda(budget=6, power=1.0), SURE).standing().tally
        assert {entry.text: entry.weight for entry in tally.entries} == {
            "a": 4.0 + 3.0 + 2.0,
            "b": 5.0,
            "c": 1.0,
        }

    def test_borda_without_power_is_the_majority(self) -> None:
        borda, majority = ended(Borda(budget=6, power=0.0), SURE), ended(Majority(budget=6), SURE)
        votes = [
            {entry.text: entry.weight for entry in policy.standing().tally.entries}
            for policy in (borda, majority)
        ]
        assert votes[0] == votes[1]

    def test_without_traces_nobody_leads(self) -> None:
        assert ended(BestOfN(budget=2), [trace(0, None)]).standing().tally.leader is None

    def test_unknown_metrics_are_refused(self) -> None:
        with pytest.raises(UnknownNameError):
            BestOfN(metric="none")  # type: ignore[arg-type]
        with pytest.raises(InvalidSettingError):
            Borda(power=-1.0)
