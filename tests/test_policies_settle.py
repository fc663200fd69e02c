"""Settling: what it starts, when it ends, and that it never hangs or overspends."""

from collections.abc import Sequence
from fractions import Fraction
from math import inf

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import Answer, FinishReason, InvalidSettingError, Trace
from conviction.lab.replay import Outcome, PlayedTrace, replay
from conviction.policies import AdaptiveConsistency, Conditions, Done, Start
from conviction.policies.settle import Settle, SettleExact, SettleLean
from conviction.voting import lead_probability

NOTHING = np.empty(0, np.float32)


def played(answers: Sequence[str | None], tokens: Sequence[int] | None = None) -> list[PlayedTrace]:
    lengths = tokens or [10] * len(answers)
    return [
        PlayedTrace(length, FinishReason.STOP, Answer(text, text) if text else None)
        for text, length in zip(answers, lengths, strict=True)
    ]


def run(policy: Settle, answers: Sequence[str | None], concurrency: float = 1) -> Outcome:
    return replay(policy, played(answers), concurrency=concurrency)


def ended(number: int, finish: FinishReason = FinishReason.STOP) -> Trace:
    return Trace(id=number, finish=finish, tokens=1, confidences=NOTHING)


class TestLead:
    @given(st.floats(0, 300), st.floats(0, 300))
    def test_it_is_the_beta_distribution_for_weighted_votes(
        self, leader: float, runner_up: float
    ) -> None:
        with mpmath.workdps(30):
            tail = mpmath.betainc(leader + 1, runner_up + 1, 0.5, 1, regularized=True)
        assert lead_probability(leader, runner_up) == pytest.approx(float(tail), abs=1e-11)

    @pytest.mark.parametrize(
        "votes", [(10_000, 9_900), (5_050, 4_950), (10_000, 0), (9_999, 10_000)]
    )
    def test_ten_thousand_votes_do_no_harm(self, votes: tuple[int, int]) -> None:
        leader, runner_up = votes
        trials = leader + runner_up + 1
        shorter = min(leader, runner_up)
        # C(n, k) one from the other: each by itself would take a minute.
        term = total = 1
        for k in range(1, shorter + 1):
            term = term * (trials - k + 1) // k
            total += term
        tail = Fraction(total, 2**trials)
        exact = tail if leader <= runner_up else 1 - tail
        assert lead_probability(leader, runner_up) == pytest.approx(float(exact), abs=1e-9)


class TestWhenItEnds:
    @pytest.mark.parametrize(
        ("policy", "traces"), [(Settle(), 4), (SettleLean(), 3), (SettleExact(), 4)]
    )
    def test_traces_that_agree_settle_it_at_once(self, policy: Settle, traces: int) -> None:
        outcome = run(policy, ["a"] * 16)
        assert (outcome.ended, outcome.started) == ("settled", traces)

    @pytest.mark.parametrize("answers", [[None] * 100, [str(i) for i in range(100)]])
    @pytest.mark.parametrize(
        ("policy", "most"), [(Settle(budget=100), 59), (SettleLean(budget=100), 40)]
    )
    def test_a_question_that_stays_open_is_given_up(
        self, policy: Settle, most: int, answers: list[str | None]
    ) -> None:
        assert run(policy, answers).started == most

    def test_a_trace_without_an_answer_counts_as_spent(self) -> None:
        # Three votes for and one against are 0.8125; the bar falls below that once 20 have ended.
        silent = [None] * 16
        settled = run(Settle(budget=24), ["a", "b", "a", "a", *silent, *"ab" * 2])
        assert (settled.ended, settled.started) == ("settled", 20)

    def test_failed_traces_lower_no_bar(self) -> None:
        policy = Settle(budget=100, slope=0.2).fresh()
        policy.begin(Conditions(concurrency=1, max_tokens=10, top_k=0))
        for number in range(10):
            actions = policy.on_finished(ended(number, FinishReason.ERROR))
            assert not any(isinstance(action, Done) for action in actions)
        policy.on_finished(ended(10, FinishReason.LENGTH))
        policy.on_finished(ended(11, FinishReason.LENGTH))
        assert policy.on_finished(ended(12, FinishReason.LENGTH)) == [Done("settled")]

    def test_the_budget_ends_it_without_a_verdict_on_it(self) -> None:
        outcome = run(Settle(budget=4), ["a", "b", "a", "b"])
        assert (outcome.ended, outcome.started) == ("budget", 4)

    def test_one_trace_is_enough_where_there_is_no_more(self) -> None:
        outcome = run(Settle(budget=1), ["a"])
        assert (outcome.started, outcome.tally.share) == (1, 1.0)


class TestTheBetaRuleByNeed:
    """Without slope, and with no more in flight than needed, it is Adaptive-Consistency."""

    RULES = st.sampled_from([(0.9, 3), (0.95, 4), (0.99, 6)])
    ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=24, max_size=24)
    TOKENS = st.lists(st.integers(1, 50), min_size=24, max_size=24)

    @given(rule=RULES, answers=ANSWERS, tokens=TOKENS)
    def test_one_after_another_it_is_the_published_rule(
        self, rule: tuple[float, int], answers: list[str | None], tokens: list[int]
    ) -> None:
        bar, first = rule
        traces = played(answers, tokens)
        published = replay(AdaptiveConsistency(budget=24, bar=bar), traces)
        by_need = Settle(budget=24, bar=bar, slope=0.0, first=first, ahead=1.0)
        assert replay(by_need, traces, concurrency=1) == published

    @given(rule=RULES, answers=ANSWERS, tokens=TOKENS, concurrency=st.sampled_from([2, 5, inf]))
    def test_it_starts_no_trace_that_turns_out_needless(
        self,
        rule: tuple[float, int],
        answers: list[str | None],
        tokens: list[int],
        concurrency: float,
    ) -> None:
        bar, first = rule
        by_need = Settle(budget=24, bar=bar, slope=0.0, first=first, ahead=1.0)
        assert replay(by_need, played(answers, tokens), concurrency=concurrency).cancelled == 0

    @pytest.mark.parametrize(("bar", "first"), [(0.9, 3), (0.95, 4), (0.99, 6)])
    def test_where_all_agree_it_starts_what_it_needs_at_once(self, bar: float, first: int) -> None:
        outcome = run(Settle(bar=bar, slope=0.0, first=first, ahead=1.0), ["a"] * 16, concurrency=8)
        assert (outcome.started, outcome.path) == (first, 10)


class TestWhatItStarts:
    def test_it_starts_with_a_few(self) -> None:
        start = Settle(first=6).fresh().begin(Conditions(concurrency=64, max_tokens=9, top_k=0))
        assert start == [Start(6)]

    def test_it_starts_no_more_than_the_engine_runs(self) -> None:
        start = Settle(first=6).fresh().begin(Conditions(concurrency=4, max_tokens=9, top_k=0))
        assert start == [Start(4)]

    @pytest.mark.parametrize(("ahead", "in_flight"), [(1.0, 3), (2.0, 6), (3.0, 9)])
    def test_after_a_setback_as_many_run_as_are_needed_times_ahead(
        self, ahead: float, in_flight: int
    ) -> None:
        policy = Settle(budget=64, slope=0.0, bar=0.95, first=1, ahead=ahead).fresh()
        policy.begin(Conditions(concurrency=64, max_tokens=9, top_k=0))
        # One vote: 1 - 2^-(1 + k + 1) has to pass 0.95, so that three more are needed.
        trace = Trace(0, FinishReason.STOP, 1, NOTHING, answer=Answer("a", "a"))
        assert policy.on_finished(trace) == [Start(in_flight)]

    def test_however_many_may_run_per_vote_it_starts_no_more_than_its_budget(self) -> None:
        outcome = run(Settle(budget=12, ahead=1e6), ["a", "b"] * 6, concurrency=16)
        assert (outcome.ended, outcome.started) == ("budget", 12)

    @given(
        policy=st.builds(
            Settle,
            budget=st.integers(1, 40),
            bar=st.floats(0.5, 0.999),
            slope=st.floats(0, 0.05),
            first=st.integers(1, 12),
            ahead=st.floats(1, 5),
        ),
        answers=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=40, max_size=40),
        tokens=st.lists(st.integers(1, 50), min_size=40, max_size=40),
        concurrency=st.sampled_from([1, 2, 7, inf]),
    )
    def test_it_always_ends_within_its_budget(
        self,
        policy: Settle,
        answers: list[str | None],
        tokens: list[int],
        concurrency: float,
    ) -> None:
        outcome = replay(policy, played(answers, tokens), concurrency=concurrency)
        assert 1 <= outcome.started <= policy.budget
        assert outcome.ended == "settled" or outcome.started == policy.budget
        silent = sum(answer is None for answer in answers[: outcome.started])
        assert len(outcome.tally.voters) + silent + outcome.cancelled >= outcome.started

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"bar": 1.0}, r"bar must be between 0\.5 and 0\.999999999"),
            ({"bar": 0.4}, "bar must be"),
            ({"slope": -0.1}, "slope must be"),
            ({"first": 0}, "first must be"),
            ({"ahead": 0.5}, "ahead must be"),
            ({"budget": 0}, "budget must be"),
        ],
    )
    def test_wrong_settings_are_refused(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(InvalidSettingError, match=message):
            Settle(**settings)  # type: ignore[arg-type]
