import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.confidence import Metric, measure
from conviction.core import Answer, FinishReason, Trace
from conviction.errors import InvalidSettingError, UnknownNameError
from conviction.gate import Gate
from conviction.policies import (
    Action,
    Conditions,
    DeepConfHigh,
    DeepConfLow,
    DeepConfOffline,
    DeepConfOnline,
    Done,
    Majority,
    Policy,
    Single,
    Start,
    policy,
    policy_names,
    vote_of,
)
from conviction.policies.base import Continue, PendingStarts
from conviction.policies.deepconf_online import PAPER_SETTINGS
from conviction.policies.measures import fitting_window
from conviction.policies.named import written
from conviction.policies.settle import SettleConfident

ANYWHERE = Conditions(concurrency=8, max_tokens=1024, top_k=20)


def trace(
    number: int,
    answer: str | None = "a",
    confidence: float | Sequence[float] = 10.0,
    *,
    tokens: int = 20,
    finish: FinishReason = FinishReason.STOP,
) -> Trace:
    values = np.resize(np.asarray(confidence, np.float32), tokens)
    return Trace(
        id=number,
        finish=finish,
        tokens=tokens,
        confidences=values,
        answer=None if answer is None else Answer(answer, answer),
    )


def pool(*rows: tuple[str | None, float]) -> list[Trace]:
    return [trace(number, answer, confidence) for number, (answer, confidence) in enumerate(rows)]


def feed(prototype: Policy, traces: Sequence[Trace]) -> tuple[Policy, list[Sequence[Action]]]:
    """A fresh copy that heard of all traces, and what it did after `begin` and each of them."""
    used = prototype.fresh()
    return used, [used.begin(ANYWHERE), *(used.on_finished(trace) for trace in traces)]


def replay(prototype: Policy, recorded: Sequence[Trace]) -> tuple[Policy, list[Trace]]:
    """Let a policy draw recorded traces one after another, its gates applied to them."""
    used = prototype.fresh()
    queue: deque[Gate | None] = deque()
    played: list[Trace] = []

    def act(actions: Sequence[Action]) -> bool:
        for action in actions:
            if isinstance(action, Start):
                queue.extend([action.gate] * action.count)
        return any(isinstance(action, Done) for action in actions)

    done = act(used.begin(ANYWHERE))
    while queue and not done:
        gate, whole = queue.popleft(), recorded[len(played)]
        stop = gate.stop_position(whole.confidences) if gate else None
        if stop is not None:
            whole = replace(
                whole,
                finish=FinishReason.LOW_CONFIDENCE,
                tokens=stop,
                confidences=whole.confidences[:stop],
                answer=None,
            )
        played.append(whole)
        done = act(used.on_finished(whole))
    return used, played


confidences = st.lists(
    st.one_of(st.floats(1, 30, width=32), st.just(math.nan)), min_size=0, max_size=40
)
recorded_traces = st.builds(
    lambda answer, values, finish: (answer, values, finish),
    st.sampled_from(["a", "b", None]),
    confidences,
    st.sampled_from([*FinishReason, FinishReason.STOP, FinishReason.STOP]),
).map(lambda row: trace(0, row[0], row[1], tokens=len(row[1]), finish=row[2]))
recordings = st.lists(recorded_traces, min_size=24, max_size=24).map(
    lambda traces: [replace(item, id=number) for number, item in enumerate(traces)]
)
shares = st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])
prototypes = st.one_of(
    st.builds(Majority, budget=st.integers(1, 24)),
    st.builds(Single),
    st.builds(
        DeepConfOffline,
        budget=st.integers(1, 24),
        metric=st.sampled_from(Metric),
        keep=shares,
        weighted=st.booleans(),
        window=st.one_of(st.none(), st.integers(1, 30)),
    ),
    st.builds(
        DeepConfOnline,
        budget=st.integers(8, 24),
        warmup=st.one_of(st.none(), st.integers(1, 8)),
        keep=shares,
        window=st.one_of(st.none(), st.integers(1, 30)),
        consensus=st.floats(0.5, 1.0),
        quorum=st.integers(1, 5),
        weighted=st.booleans(),
    ),
    st.builds(
        SettleConfident,
        budget=st.integers(1, 24),
        metric=st.sampled_from(Metric),
        window=st.integers(1, 6),
        power=st.sampled_from([0.0, 2.0]),
        gain=st.sampled_from([0.0, 1.0]),
        keep=st.sampled_from([None, 0.1, 0.5, 1.0]),
        warmup=st.integers(1, 4),
        first=st.integers(1, 6),
    ),
)


class TestEveryPolicy:
    @given(prototypes, recordings)
    def test_is_deterministic_and_leaves_its_prototype_alone(
        self, prototype: Policy, traces: list[Trace]
    ) -> None:
        before = repr(prototype)
        (first, acts), (second, same_acts) = (feed(prototype, traces) for _ in range(2))
        assert acts == same_acts
        assert first.standing() == second.standing()
        assert repr(prototype) == before
        assert prototype.standing().tally.entries == ()

    @given(prototypes, recordings)
    def test_does_not_change_by_being_looked_at(
        self, prototype: Policy, traces: list[Trace]
    ) -> None:
        unseen, acts = feed(prototype, traces)
        watched = prototype.fresh()
        seen = [watched.begin(ANYWHERE)]
        for item in traces:
            watched.standing()
            watched.settings()
            seen.append(watched.on_finished(item))
        assert (seen, watched.standing()) == (acts, unseen.standing())

    @given(prototypes, recordings)
    def test_starts_no_more_than_its_budget_and_lets_only_fit_traces_vote(
        self, prototype: Policy, traces: list[Trace]
    ) -> None:
        used, played = replay(prototype, traces)
        assert 1 <= len(played) <= used.budget
        voters = used.standing().tally.voters
        assert voters <= {item.id for item in played if vote_of(item)}

    @given(prototypes, recordings)
    def test_uses_up_its_budget_unless_it_is_done(
        self, prototype: Policy, traces: list[Trace]
    ) -> None:
        used, acts = feed(prototype, traces[: prototype.budget])
        started = sum(a.count for act in acts for a in act if isinstance(a, Start))
        done = any(isinstance(a, Done) for act in acts for a in act)
        assert started == used.budget or done

    @given(prototypes)
    def test_settings_are_plain_json_from_which_it_can_be_made_again(
        self, prototype: Policy
    ) -> None:
        settings = json.loads(json.dumps(prototype.settings(), allow_nan=False))
        assert settings["name"] == prototype.name
        again = type(prototype)(**{key: value for key, value in settings.items() if key != "name"})
        assert repr(again) == repr(prototype)

    @pytest.mark.parametrize("name", policy_names())
    def test_can_be_had_by_its_name(self, name: str) -> None:
        assert policy(name).settings()["name"] == name

    def test_need_be_no_dataclass(self) -> None:
        class Plain(Policy):
            name = "plain"
            begin = on_finished = standing = lambda *_: None

        assert Plain().settings() == {"name": "plain"}


class TestVoting:
    @pytest.mark.parametrize("finish", FinishReason)
    def test_only_a_trace_that_ended_itself_vote_of(self, finish: FinishReason) -> None:
        assert (vote_of(trace(0, finish=finish)) is not None) == (finish is FinishReason.STOP)
        assert not vote_of(trace(0, None, finish=finish))

    @pytest.mark.parametrize(
        "prototype",
        [
            Majority(budget=9),
            DeepConfOffline(budget=9, keep=1.0),
            DeepConfOnline(budget=9, warmup=1, keep=1.0),
            SettleConfident(budget=9, slope=0.0, bar=0.999),
        ],
    )
    @pytest.mark.parametrize("finish", sorted(set(FinishReason) - {FinishReason.STOP}))
    def test_no_policy_counts_a_trace_that_did_not_end_itself(
        self, prototype: Policy, finish: FinishReason
    ) -> None:
        used, _ = feed(prototype, [trace(0), trace(1, "b", 20.0, finish=finish), trace(2, None)])
        assert used.standing().tally.voters == {0}

    def test_majority_gives_each_answer_one_vote(self) -> None:
        used, acts = feed(Majority(budget=3), pool(("b", 30), ("a", 1), ("a", 1)))
        assert acts == [[Start(3)], [], [], []]
        assert [(e.text, e.weight) for e in used.standing().tally.entries] == [("a", 2), ("b", 1)]

    def test_single_is_one_trace(self) -> None:
        used, acts = feed(Single(), pool(("b", 3)))
        assert acts == [[Start(1)], []]
        assert used.budget == 1
        assert used.standing().tally.share == 1.0


class TestDeepConfOffline:
    @given(recordings, st.sampled_from(Metric), shares, st.booleans(), st.integers(1, 30))
    def test_the_best_share_votes_with_its_confidence(
        self,
        traces: list[Trace],
        metric: Metric,
        keep: float,
        weighted: bool,  # noqa: FBT001  # as hypothesis draws it
        window: int,
    ) -> None:
        prototype = DeepConfOffline(
            budget=len(traces), metric=metric, keep=keep, weighted=weighted, window=window
        )
        standing = feed(prototype, traces)[0].standing()
        scores = {t.id: measure(metric, t.confidences, window) for t in traces if vote_of(t)}
        known = {number: score for number, score in scores.items() if math.isfinite(score)}
        if not known:
            assert standing.tally.voters == set(scores)
            assert bool(standing.notes) == bool(scores)
            assert standing.threshold is None
            return
        bar = np.percentile(list(known.values()), 100 - 100 * keep)
        assert standing.threshold == pytest.approx(bar, rel=1e-12)
        kept = {number for number, score in known.items() if score >= standing.threshold}
        assert standing.tally.voters == kept
        assert len(kept) >= math.floor(keep * len(known))
        total = sum(known[number] for number in kept) if weighted else len(kept)
        assert standing.tally.total == pytest.approx(total)
        assert not standing.notes

    def test_a_confident_minority_wins_when_little_is_kept(self) -> None:
        traces = pool(("wrong", 5), ("wrong", 6), ("wrong", 7), ("right", 20), ("wrong", 4))
        few = feed(DeepConfOffline(budget=5, keep=0.1, window=4), traces)[0].standing()
        all_ = feed(DeepConfOffline(budget=5, keep=1.0, window=4), traces)[0].standing()
        assert few.tally.leader is not None
        assert all_.tally.leader is not None
        assert (few.tally.leader.text, all_.tally.leader.text) == ("right", "wrong")
        assert few.threshold == pytest.approx(20 - 0.4 * 13)

    def test_the_metric_may_be_named(self) -> None:
        assert DeepConfOffline(metric="bottom-10").metric is Metric.BOTTOM_10  # type: ignore[arg-type]

    def test_traces_without_any_known_confidence_vote_as_equals_and_it_says_so(self) -> None:
        standing = feed(DeepConfOffline(budget=2, keep=0.1), pool(("a", math.nan), ("b", math.nan)))
        tally, notes = standing[0].standing().tally, standing[0].standing().notes
        assert [(entry.text, entry.weight) for entry in tally.entries] == [("a", 1), ("b", 1)]
        assert "plain majority" in notes[0]


class TestDeepConfOnline:
    @given(
        st.lists(
            st.lists(st.floats(1, 30, width=32), min_size=1, max_size=40), min_size=1, max_size=16
        ),
        st.sampled_from([0.1, 0.9]),
        st.integers(1, 20),
    )
    def test_the_threshold_is_the_percentile_of_the_lowest_groups_of_the_warm_up(
        self, warm: list[list[float]], keep: float, window: int
    ) -> None:
        def lowest_group(values: list[float]) -> float:
            width = min(window, len(values))
            starts = range(len(values) - width + 1)
            return min(math.fsum(values[i : i + width]) / width for i in starts)

        warmup = len(warm)
        prototype = DeepConfOnline(
            budget=warmup + 5, warmup=warmup, keep=keep, window=window, quorum=warmup + 1
        )
        traces = [trace(i, "a", values, tokens=len(values)) for i, values in enumerate(warm)]
        used, acts = feed(prototype, traces)
        scores = [lowest_group(values) for values in warm]
        bar = np.percentile(scores, 100 - 100 * keep)
        (start,) = acts[-1]
        assert start == Start(5, Gate(window, used.standing().threshold or 0))
        assert used.standing().threshold == pytest.approx(bar, rel=1e-9)
        for entry in used.standing().tally.entries:
            assert entry.weight == pytest.approx(sum(scores[vote] for vote in entry.votes))

    @given(st.permutations(range(8)))
    def test_the_order_in_which_the_warm_up_ends_changes_neither_threshold_nor_voters(
        self, order: list[int]
    ) -> None:
        traces = [trace(i, "ab"[i % 2], [8.0, 9.0 + i, 30.0 - i]) for i in range(8)]
        prototype = DeepConfOnline(budget=9, warmup=8, keep=0.3, window=2)
        standing = feed(prototype, [traces[i] for i in order])[0].standing()
        expected = feed(prototype, traces)[0].standing()
        assert standing.threshold == expected.threshold
        assert standing.tally.voters == expected.tally.voters

    def test_warm_up_traces_below_the_threshold_do_not_vote(self) -> None:
        traces = pool(("a", 4), ("b", 12), ("a", 5), ("b", 10))
        used, _ = feed(DeepConfOnline(budget=8, warmup=4, keep=0.5, window=4), traces)
        standing = used.standing()
        assert standing.threshold == 7.5
        assert standing.tally.voters == {1, 3}
        assert standing.tally.total == 22

    def test_the_gate_stops_what_falls_below_the_warm_up_and_stopped_traces_do_not_vote(
        self,
    ) -> None:
        warm = pool(("a", 10), ("b", 10), ("a", 10), ("b", 10))
        weak = trace(4, "a", [12.0] * 10 + [8.0] * 10)
        strong = trace(5, "b", 11.0)
        prototype = DeepConfOnline(budget=6, warmup=4, window=4)
        used, played = replay(prototype, [*warm, weak, strong])
        assert (played[4].finish, played[4].tokens) == (FinishReason.LOW_CONFIDENCE, 13)
        assert used.standing().tally.voters == {0, 1, 2, 3, 5}

    def test_without_weights_every_vote_counts_one(self) -> None:
        prototype = DeepConfOnline(budget=5, warmup=4, keep=1.0, window=4, weighted=False)
        used, _ = feed(prototype, pool(("a", 9), ("b", 3), ("b", 4), ("b", 2), ("b", 30)))
        assert [entry.weight for entry in used.standing().tally.entries] == [4, 1]

    def test_with_the_papers_settings_two_kept_agreeing_traces_end_the_run_at_16(self) -> None:
        traces = [trace(i, "a" if i < 2 else "b", 20.0 if i < 2 else 10.0) for i in range(512)]
        used, played = replay(DeepConfLow(**{**PAPER_SETTINGS, "window": 4}), traces)
        assert len(played) == 16
        assert used.standing().tally.voters == {0, 1}
        assert used.standing().tally.share == 1.0

    def test_a_quorum_of_three_looks_further(self) -> None:
        traces = [trace(i, "a" if i < 2 else "b", 20.0 if i < 2 else 10.0) for i in range(40)]
        traces[20] = trace(20, "a", 21.0)
        prototype = DeepConfLow(budget=40, warmup=16, window=4, quorum=3)
        used, played = replay(prototype, traces)
        assert len(played) == 21
        assert used.standing().tally.voters == {0, 1, 20}

    def test_dissent_among_the_kept_lets_it_go_on(self) -> None:
        traces = [trace(i, "ab"[i % 2], 20.0 if i < 2 else 10.0) for i in range(16)]
        _, acts = feed(DeepConfLow(**{**PAPER_SETTINGS, "window": 4}), traces)
        assert acts[-1] == [Start(496, Gate(4, 15.0))]

    def test_consensus_is_reached_exactly_at_tau(self) -> None:
        rows = [("b", 10.0)] + [("a", 10.0)] * 30
        _, played = replay(DeepConfHigh(budget=31, warmup=4, window=4, consensus=0.95), pool(*rows))
        assert len(played) == 20  # 19 of 20 is .95; 18 of 19 is not

    def test_a_tau_of_one_is_never_reached_against_a_dissenter(self) -> None:
        rows = [("b", 10.0)] + [("a", 10.0)] * 23
        used, played = replay(DeepConfHigh(budget=24, window=4, consensus=1.0), pool(*rows))
        assert len(played) == 24
        assert used.standing().tally.share == pytest.approx(23 / 24)

    def test_done_names_consensus(self) -> None:
        _, acts = feed(DeepConfHigh(budget=8, warmup=4, window=4), pool(*[("a", 10.0)] * 4))
        assert acts[-1] == [Done("consensus")]

    def test_a_warm_up_as_large_as_the_budget_starts_no_more_and_says_so(self) -> None:
        traces = pool(("a", 9), ("b", 3), ("a", 8), ("c", 2))
        used, acts = feed(DeepConfLow(budget=4, warmup=4, window=4), traces)
        assert acts[-1] == []
        assert any("used up the whole budget" in note for note in used.standing().notes)

    def test_failed_warm_up_traces_neither_set_the_threshold_nor_are_waited_for_again(self) -> None:
        rows = pool(("a", 12), ("b", 10), ("a", 1), ("b", 2))
        rows[2] = replace(rows[2], finish=FinishReason.ERROR, answer=None)
        rows[3] = replace(rows[3], finish=FinishReason.CANCELLED, answer=None)
        used, acts = feed(DeepConfOnline(budget=10, warmup=4, keep=0.5, window=4), rows)
        assert acts[-1] == [Start(6, Gate(4, 11.0))]
        assert used.standing().tally.voters == {0}

    def test_a_warm_up_that_failed_as_a_whole_lets_the_rest_run_free_and_says_so(self) -> None:
        failed = [trace(i, None, finish=FinishReason.ERROR) for i in range(4)]
        used, acts = feed(DeepConfLow(budget=6, warmup=4), failed)
        assert acts[-1] == [Start(2, None)]
        used.on_finished(trace(4, "a", 9.0))
        assert used.standing().tally.voters == {4}
        assert any("no warm-up trace had a known confidence" in n for n in used.standing().notes)

    def test_a_trace_cut_by_its_token_limit_helps_set_the_threshold_but_does_not_vote(self) -> None:
        rows = pool(("a", 8), ("b", 10))
        rows[0] = replace(rows[0], finish=FinishReason.LENGTH)
        used, _ = feed(DeepConfOnline(budget=4, warmup=2, keep=1.0, window=4), rows)
        assert used.standing().threshold == 8
        assert used.standing().tally.voters == {1}

    def test_when_no_trace_passes_it_falls_back_to_the_majority_and_says_so(self) -> None:
        rows = pool((None, 20), ("b", 10), ("b", 9), ("a", 8))
        used, _ = feed(DeepConfLow(budget=8, warmup=4, window=4), rows)
        standing = used.standing()
        assert [(e.text, e.weight) for e in standing.tally.entries] == [("b", 2), ("a", 1)]
        assert any("No trace that passed the threshold" in note for note in standing.notes)
        used.on_finished(trace(4, "a", 30.0))
        assert [e.text for e in used.standing().tally.entries] == ["a"]
        assert not used.standing().notes

    def test_before_the_warm_up_ends_the_majority_so_far_stands_and_it_says_so(self) -> None:
        used, _ = feed(DeepConfLow(budget=8, warmup=4, window=4), pool(("a", 1), ("b", 30)))
        standing = used.standing()
        assert standing.tally.voters == {0, 1}
        assert standing.threshold is None
        assert "warm-up has not ended" in standing.notes[0]

    def test_it_says_when_no_trace_was_long_enough_to_be_stopped(self) -> None:
        prototype = DeepConfHigh(budget=6, warmup=4, window=64)
        rows = pool(("a", 9), ("b", 8), ("a", 8), ("b", 9), ("c", 1))
        used, _ = feed(prototype, rows)
        assert any("had 20 tokens, the window 64" in note for note in used.standing().notes)
        used.on_finished(trace(5, "c", 9.0, tokens=64))
        assert not used.standing().notes

    @given(st.integers(1, 600))
    def test_the_warm_up_it_chooses_fits_its_budget_and_is_shown(self, budget: int) -> None:
        used = DeepConfLow(budget=budget).fresh()
        (start,) = used.begin(ANYWHERE)
        assert isinstance(start, Start)
        assert min(4, budget) <= start.count <= min(16, budget)
        assert used.settings()["warmup"] == start.count
        assert start.gate is None

    def test_the_window_it_chooses_follows_the_warm_up_and_is_shown(self) -> None:
        rows = [trace(i, "ab"[i % 2], 9.0, tokens=90 + i) for i in range(4)]
        used, acts = feed(DeepConfHigh(budget=8, warmup=4), rows)
        assert acts[-1] == [Start(4, Gate(30, 9.0))]
        assert used.settings()["window"] == used.standing().window == 30

    def test_the_papers_settings_are_the_papers(self) -> None:
        settings = DeepConfHigh(**PAPER_SETTINGS).settings()
        assert settings == {
            "name": "deepconf-high",
            "keep": 0.9,
            "budget": 512,
            "warmup": 16,
            "window": 2048,
            "consensus": 0.95,
            "quorum": 1,
            "weighted": True,
        }
        assert DeepConfLow().keep == 0.1


@given(st.lists(st.integers(0, 70_000), max_size=9))
def test_a_fitting_window_is_a_third_of_the_median_trace_within_bounds(tokens: list[int]) -> None:
    window = fitting_window([trace(0, tokens=n, confidence=1.0) for n in tokens])
    assert 16 <= window <= 2048
    if tokens and 48 <= np.median(tokens) <= 6144:
        assert window == pytest.approx(np.median(tokens) / 3, abs=0.51)


@given(
    st.lists(
        st.integers(1, 5).map(Start)
        | st.integers(0, 3).map(Continue)
        | st.sampled_from((1, 2, math.inf)),
        max_size=30,
    )
)
def test_pending_traces_come_out_one_by_one_or_many_at_once_in_the_order_asked_for(
    steps: list[Start | Continue | float],
) -> None:
    pending = PendingStarts(Majority(budget=150))
    expected: deque[Start | Continue] = deque()
    for step in steps:
        if isinstance(step, Start | Continue):
            pending.add(step)
            expected.extend([step] * step.count)
        elif expected:
            action, count = pending.take(step)
            assert 1 <= count <= step
            assert all(expected.popleft() is action for _ in range(count))
        assert len(pending) == len(expected)
    assert pending.asked == sum(step.count for step in steps if isinstance(step, Start | Continue))
    pending.clear()
    assert not pending


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("majority", {"budget": 0}, "use budget = 0: budget must be at least 1"),
            ("majority", {"budget": -3}, "budget must be at least 1"),
            ("majority", {"budget": 2.5}, "budget must be a whole number"),
            ("majority", {"budget": "8"}, "use budget = '8': budget must be a number"),
            ("majority", {"budget": math.inf}, "budget must be at least 1"),
            ("deepconf-offline", {"keep": 0}, "keep must be between"),
            ("deepconf-offline", {"keep": math.nan}, "keep must be between"),
            ("deepconf-offline", {"keep": 10}, "keep must be between"),
            ("deepconf-offline", {"window": 0}, "window must be at least 1"),
            ("deepconf-offline", {"window": 7.5}, "window must be a whole number"),
            ("deepconf-low", {"window": -1}, "window must be at least 1"),
            ("deepconf-low", {"warmup": 0}, "warmup must be at least 1"),
            ("deepconf-low", {"warmup": 17}, "larger than the budget.* Raise the budget"),
            ("deepconf-low", {"consensus": 1.5}, "consensus must be between"),
            ("deepconf-low", {"quorum": 0}, "quorum must be at least 1"),
            ("majority", {"keep": 0.1}, "set keep of the policy 'majority'.*settings: budget"),
            ("single", {"budget": 3}, "no such setting. Its settings: none"),
            ("deepconf-low", {"_ballot": None}, "no such setting"),
        ],
    )
    def test_wrong_ones_are_refused_with_what_is_right(
        self, name: str, settings: dict[str, object], message: str
    ) -> None:
        with pytest.raises(InvalidSettingError, match=message):
            policy(name, **settings)

    def test_settings_can_be_written_behind_the_name(self) -> None:
        built = policy("deepconf-low: keep=0.2, window=none, weighted=false", budget=8)
        assert built.settings() == DeepConfLow(keep=0.2, weighted=False, budget=8).settings()

    def test_a_setting_given_apart_wins_over_one_behind_the_name(self) -> None:
        assert policy("majority:budget=4", budget=8).budget == 8

    @pytest.mark.parametrize("name", policy_names())
    def test_all_settings_of_every_policy_can_be_written_behind_its_name(self, name: str) -> None:
        settings = policy(name).settings()
        pairs = ",".join(f"{key}={written(settings[key])}" for key in settings if key != "name")
        assert policy(f"{name}:{pairs}" if pairs else name).settings() == settings

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("majority:", "'' is no setting"),
            ("majority:budget", "'budget' is no setting"),
            ("majority:budget=many", "it takes a whole number"),
            ("majority:budget=4/8", "2 values of budget"),
            ("deepconf-low:weighted=perhaps", "it takes true or false"),
        ],
    )
    def test_a_specification_that_is_none_is_refused(self, spec: str, message: str) -> None:
        with pytest.raises(InvalidSettingError, match=message):
            policy(spec)

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [("deepconf-lo", "deepconf-low"), ("Majority", "majority"), ("singel", "single")],
    )
    def test_a_mistyped_name_gets_a_suggestion(self, wrong: str, right: str) -> None:
        with pytest.raises(UnknownNameError, match=f"Did you mean '{right}'"):
            policy(wrong)

    def test_a_name_like_no_other_gets_the_list(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"Known: adaptive-consistency, .*single"
        ) as caught:
            policy("xyzzy")
        assert "Did you mean" not in str(caught.value)

    def test_a_mistyped_metric_gets_a_suggestion(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'tail'"):
            policy("deepconf-offline", metric="tial")

    @pytest.mark.parametrize("cause", [{"keep": 0}, {"nonsense": 1}])
    def test_they_are_the_users_mistake_by_exit_code(self, cause: dict[str, object]) -> None:
        with pytest.raises(InvalidSettingError) as caught:
            policy("deepconf-offline", **cause)
        assert caught.value.exit_code == 2
