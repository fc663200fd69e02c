"""Settling with confidence: what votes weigh, what is stopped, and that nothing else changes."""

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.confidence import Metric
from conviction.core import Answer, FinishReason, InvalidSettingError, Trace
from conviction.errors import UnknownNameError
from conviction.gate import Gate
from conviction.lab.replay import PlayedTrace, replay
from conviction.policies import Conditions, Done, Start
from conviction.policies.settle import Settle, SettleConfident, vote_weights
from conviction.voting import lead_probability

ANYWHERE = Conditions(concurrency=64, max_tokens=100, top_k=20)
ONE_AT_A_TIME = Conditions(concurrency=1, max_tokens=100, top_k=20)

answers = st.sampled_from(["a", "b", "c", None])
lengths = st.integers(1, 40)
powers = st.sampled_from([0.0, 0.5, 1.0, 7.0, 100.0])
shares = st.sampled_from([0.1, 0.5, 1.0])
windows = st.one_of(st.none(), st.integers(1, 20))


def trace(
    number: int,
    answer: str | None = "a",
    confidences: float | Sequence[float] = 8.0,
    *,
    tokens: int = 20,
    finish: FinishReason = FinishReason.STOP,
) -> Trace:
    values = np.resize(np.asarray(confidences, np.float32), tokens)
    known = Answer(answer, answer) if answer else None
    return Trace(number, finish, tokens, confidences=values, answer=known)


def heard(policy: SettleConfident, traces: Sequence[Trace]) -> SettleConfident:
    """A policy that has heard of these traces, one at a time."""
    policy = policy.fresh()
    policy.begin(ONE_AT_A_TIME)
    for one in traces:
        policy.on_finished(one)
    return policy


def weights(policy: SettleConfident, traces: Sequence[Trace]) -> dict[str, float]:
    return {one.text: one.weight for one in heard(policy, traces).standing().tally.entries}


def played(
    answer: str | None, confidences: Sequence[float], finish: FinishReason = FinishReason.STOP
) -> PlayedTrace:
    known = Answer(answer, answer) if answer and finish is FinishReason.STOP else None
    values = np.array(confidences, np.float32)
    some = values if np.isfinite(values).any() else None
    return PlayedTrace(values.size, finish, known, confidences=some)


class TestWeights:
    def test_follow_the_confidence_and_have_a_mean_of_one(self) -> None:
        assert vote_weights(np.array([1.0, 3.0]), 1.0).tolist() == [0.5, 1.5]

    def test_are_sharper_with_a_greater_power(self) -> None:
        assert vote_weights(np.array([1.0, 3.0]), 2.0) == pytest.approx([0.2, 1.8])

    @given(st.lists(st.floats(-5, 60) | st.just(nan), min_size=1, max_size=30), powers)
    def test_as_many_votes_count_as_were_cast_in_the_order_of_their_confidence(
        self, confidences: list[float], power: float
    ) -> None:
        found = vote_weights(np.array(confidences), power)
        assert found.sum() == pytest.approx(len(confidences))
        assert (found >= 0).all()
        known = ~np.isnan(confidences)
        order = np.argsort(np.array(confidences)[known], kind="stable")
        assert (np.diff(found[known][order]) >= 0).all()
        assert (found[~known] == 1.0).all()

    @given(st.floats(-9, 60), st.integers(1, 30), powers)
    def test_equal_confidences_weigh_exactly_one(
        self, confidence: float, votes: int, power: float
    ) -> None:
        assert vote_weights(np.full(votes, confidence), power).tolist() == [1.0] * votes

    def test_without_a_positive_confidence_all_votes_weigh_the_same(self) -> None:
        assert vote_weights(np.array([0.0, -3.0, nan]), 2.0).tolist() == [1.0, 1.0, 1.0]

    def test_a_negative_confidence_weighs_nothing_beside_a_positive_one(self) -> None:
        assert vote_weights(np.array([-1.0, 4.0]), 1.0).tolist() == [0.0, 2.0]

    def test_no_power_of_any_confidence_is_too_large(self) -> None:
        assert vote_weights(np.array([1e300, 1e300, 1.0]), 100.0) == pytest.approx([1.5, 1.5, 0])

    def test_no_votes_have_no_weights(self) -> None:
        assert vote_weights(np.empty(0), 1.0).size == 0


class TestTheVote:
    POOL = (trace(0, "a", 4.0), trace(1, "a", 4.0), trace(2, "b", 16.0))

    def test_confident_votes_outweigh_more_numerous_ones(self) -> None:
        assert weights(SettleConfident(), self.POOL) == {"b": 2.0, "a": 1.0}

    def test_without_a_power_all_votes_weigh_the_same(self) -> None:
        assert weights(SettleConfident(power=0.0), self.POOL) == {"a": 2.0, "b": 1.0}

    def test_a_vote_of_unknown_confidence_counts_one(self) -> None:
        unknown = trace(3, "c", nan)
        assert weights(SettleConfident(), [*self.POOL, unknown]) == {"b": 2.0, "a": 1.0, "c": 1.0}

    def test_votes_of_equal_weight_go_to_the_answer_seen_first(self) -> None:
        policy = heard(SettleConfident(), [trace(0, "b"), trace(1, "a")])
        tally = policy.standing().tally
        assert tally.tied == ("b", "a")
        assert tally.leader is not None
        assert tally.leader.text == "b"

    @pytest.mark.parametrize(
        ("metric", "confidences"),
        [
            (Metric.MEAN, [[9, 9, 9, 9], [1, 1, 1, 9]]),
            (Metric.TAIL, [[1, 1, 9, 9], [9, 9, 3, 3]]),
            (Metric.LOWEST_GROUP, [[9, 9, 9, 9], [9, 3, 3, 9]]),
            (Metric.BOTTOM_10, [[9, 9, 9, 9], [9, 3, 3, 9]]),
        ],
    )
    def test_each_metric_weighs_by_what_it_measures(
        self, metric: Metric, confidences: list[list[float]]
    ) -> None:
        pool = [trace(n, "ab"[n], values, tokens=4) for n, values in enumerate(confidences)]
        assert weights(SettleConfident(metric=metric, window=2), pool) == {"a": 1.5, "b": 0.5}

    def test_a_gain_raises_the_weight_of_traces_whose_confidence_rose(self) -> None:
        rising, falling = np.linspace(6, 10, 20).tolist(), np.linspace(10, 6, 20).tolist()
        pool = [trace(0, "falls", falling), trace(1, "rises", rising)]
        assert weights(SettleConfident(), pool) == pytest.approx({"falls": 1.0, "rises": 1.0})
        found = weights(SettleConfident(gain=1.0), pool)
        # The mean is 8, the last tenth of two tokens 9.89, the first 6.11.
        assert found["rises"] == pytest.approx((8 + 72 / 19) / 8, rel=1e-6)
        assert found["falls"] == pytest.approx((8 - 72 / 19) / 8, rel=1e-6)

    def test_the_lead_is_that_of_the_weights(self) -> None:
        # Weights of 1.5, 1.5 and 0, nearly: more than a lead of two to one, less than of three.
        bar = 0.93
        assert lead_probability(2, 1) < bar < lead_probability(3, 0)
        votes = [trace(0, "a", 30.0), trace(1, "b", 1.0), trace(2, "a", 30.0)]
        policy = SettleConfident(bar=bar, slope=0.0, power=8.0).fresh()
        policy.begin(ONE_AT_A_TIME)
        assert [policy.on_finished(one) for one in votes][-1] == [Done("settled")]
        policy = SettleConfident(bar=bar, slope=0.0, power=0.0).fresh()
        policy.begin(ONE_AT_A_TIME)
        assert [policy.on_finished(one) for one in votes][-1] == [Start(1)]

    def test_says_so_where_no_vote_has_a_known_confidence(self) -> None:
        assert heard(SettleConfident(), []).standing().notes == ()
        assert heard(SettleConfident(), [trace(0)]).standing().notes == ()
        (note,) = heard(SettleConfident(), [trace(0, "a", nan)]).standing().notes
        assert "all weigh the same" in note


class TestTheGate:
    def test_is_set_at_a_percentile_of_the_warm_up(self) -> None:
        policy = SettleConfident(keep=0.5, warmup=3, window=4, first=1, ahead=1.0).fresh()
        begun = policy.begin(ONE_AT_A_TIME)
        pool = [trace(0, "a", 5.0), trace(1, "b", 7.0), trace(2, "c", [9.0] * 4 + [6.0] * 4)]
        acts = [policy.on_finished(one) for one in pool]
        assert [begun, *acts] == [[Start(1)], [Start(1)], [Start(1)], [Start(1, Gate(4, 6.0))]]
        standing = policy.standing()
        assert (standing.threshold, standing.window) == (6.0, 4)

    def test_stays_as_it_was_set(self) -> None:
        policy = heard(SettleConfident(keep=1.0, warmup=1), [trace(0, "a", 5.0)])
        assert policy.on_finished(trace(1, "b", 3.0)) == [Start(1, Gate(16, 5.0))]
        assert policy.on_finished(trace(2, "c", 9.0)) == [Start(1, Gate(16, 5.0))]

    def test_takes_a_third_of_a_trace_as_its_window(self) -> None:
        policy = SettleConfident(keep=1.0, warmup=1).fresh()
        policy.begin(ONE_AT_A_TIME)
        assert policy.on_finished(trace(0, tokens=90)) == [Start(1, Gate(30, 8.0))]
        policy.on_finished(trace(1, "b", tokens=900))
        assert policy.standing().window == 30

    def test_only_complete_traces_warm_up(self) -> None:
        broken = [trace(0, finish=FinishReason.ERROR), trace(1, finish=FinishReason.CANCELLED)]
        policy = heard(SettleConfident(keep=1.0, warmup=1), broken)
        assert policy.standing().threshold is None
        policy.on_finished(trace(2, None, finish=FinishReason.LENGTH))
        assert policy.standing().threshold == 8.0

    def test_is_not_set_where_no_confidence_is_known(self) -> None:
        policy = heard(SettleConfident(keep=0.5, warmup=1), [trace(0, "a", nan)])
        assert policy.on_finished(trace(1, "b", 8.0)) == [Start(1)]

    def test_is_off_unless_wanted(self) -> None:
        policy = heard(SettleConfident(warmup=1), [trace(0, "a", 8.0)])
        assert policy.on_finished(trace(1, "b", 8.0)) == [Start(1)]
        assert policy.standing().threshold is None

    def test_a_stopped_trace_lowers_the_bar_and_votes_for_nothing(self) -> None:
        stopped = trace(2, "b", finish=FinishReason.LOW_CONFIDENCE)
        prototype = SettleConfident(bar=0.9, slope=0.01, keep=1.0, warmup=1)
        policy = heard(prototype, [trace(0), trace(1)])
        # Two votes lead with 0.875, which the bar passes when a third trace has ended.
        assert policy.standing().tally.voters == {0, 1}
        assert policy.on_finished(stopped) == [Done("settled")]
        assert policy.standing().tally.voters == {0, 1}
        policy = heard(prototype, [trace(0), trace(1)])
        failed = trace(2, None, finish=FinishReason.ERROR)
        assert policy.on_finished(failed) == [Start(1, Gate(16, 8.0))]

    def test_weak_traces_cost_less(self) -> None:
        weak = [9.0] * 10 + [1.0] * 30
        pool = [played("ab"[n % 2], [9.0] * 40) for n in range(4)]
        pool += [played("ab"[n % 2], weak) for n in range(12)]
        settings = {"slope": 0.0, "first": 1, "window": 5}
        gated = replay(SettleConfident(keep=1.0, **settings), pool, concurrency=1)  # type: ignore[arg-type]
        free = replay(SettleConfident(**settings), pool, concurrency=1)  # type: ignore[arg-type]
        assert (gated.stopped, gated.tokens) == (12, 4 * 40 + 12 * 11)
        assert (free.stopped, free.tokens) == (0, 16 * 40)


@given(
    prototype=st.builds(
        SettleConfident,
        metric=st.sampled_from(Metric),
        window=windows,
        power=powers,
        gain=st.sampled_from([0.0, 1.0]),
    ),
    # A sum of so few of them is exact, so that all means are equal to the last bit.
    confidence=st.sampled_from([nan, 0.0, 0.5, 8.0, 10.25]),
    rows=st.lists(st.tuples(answers, lengths), min_size=16, max_size=16),
    concurrency=st.sampled_from([1, 3, inf]),
)
def test_where_all_weigh_the_same_it_is_plain_settling(
    prototype: SettleConfident,
    confidence: float,
    rows: list[tuple[str | None, int]],
    concurrency: float,
) -> None:
    pool = [played(answer, [confidence] * tokens) for answer, tokens in rows]
    confident = replay(prototype, pool, concurrency=concurrency)
    assert confident == replay(Settle(), pool, concurrency=concurrency)


@given(
    prototype=st.builds(
        SettleConfident,
        budget=st.integers(1, 24),
        bar=st.floats(0.5, 0.999),
        slope=st.floats(0, 0.05),
        first=st.integers(1, 12),
        ahead=st.floats(1, 5),
        metric=st.sampled_from(Metric),
        window=windows,
        power=powers,
        gain=st.sampled_from([0.0, 1.0, 9.0]),
        keep=st.one_of(st.none(), shares),
        warmup=st.integers(1, 30),
    ),
    pool=st.lists(
        st.builds(
            played,
            answers,
            st.lists(st.floats(0, 30, width=32) | st.just(nan), min_size=1, max_size=30),
            st.sampled_from([FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH]),
        ),
        min_size=24,
        max_size=24,
    ),
    concurrency=st.sampled_from([1, 2, 7, inf]),
)
def test_it_always_ends_within_its_budget_and_loses_no_vote(
    prototype: SettleConfident, pool: list[PlayedTrace], concurrency: float
) -> None:
    outcome = replay(prototype, pool, concurrency=concurrency)
    assert 1 <= outcome.started <= prototype.budget
    assert outcome.ended == "settled" or outcome.started == prototype.budget
    assert outcome.stopped == 0 or prototype.keep is not None
    silent = sum(one.answer is None for one in pool[: outcome.started])
    votes = len(outcome.tally.voters)
    assert votes + silent + outcome.cancelled + outcome.stopped >= outcome.started
    assert outcome.tally.total == pytest.approx(votes)


def test_failed_traces_end_it_with_the_budget() -> None:
    policy = SettleConfident(budget=4, keep=0.5, warmup=2).fresh()
    started = sum(one.count for one in policy.begin(ANYWHERE) if isinstance(one, Start))
    acts = [policy.on_finished(trace(n, None, finish=FinishReason.ERROR)) for n in range(4)]
    assert started == 4
    assert acts == [[], [], [], []]
    assert policy.standing().tally.entries == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": -1.0}, "power must be"),
        ({"power": nan}, "power must be"),
        ({"gain": -0.1}, "gain must be"),
        ({"keep": 0.0}, "keep must be"),
        ({"keep": 1.1}, "keep must be"),
        ({"warmup": 0}, "warmup must be"),
        ({"window": 0}, "window must be"),
        ({"bar": 1.0}, "bar must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        SettleConfident(**settings)  # type: ignore[arg-type]


def test_a_mistyped_metric_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tail'"):
        SettleConfident(metric="tale")  # type: ignore[arg-type]


def test_a_metric_may_be_given_by_its_name() -> None:
    assert SettleConfident(metric="tail").metric is Metric.TAIL  # type: ignore[arg-type]
