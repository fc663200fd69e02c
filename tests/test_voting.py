import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import Answer, Tally
from conviction.errors import InvalidSettingError
from conviction.voting import Ballot, threshold_for

scores = st.lists(st.floats(0, 60), min_size=1, max_size=80).map(np.array)
# Multiples of a quarter add up exactly in any order, so ties are ties and not rounding.
weights = st.integers(0, 200).map(lambda quarters: quarters / 4)
votes = st.lists(st.tuples(st.sampled_from("abcde"), weights), max_size=60)


def cast(cast_votes: list[tuple[str, float]]) -> Ballot:
    ballot = Ballot()
    for trace, (answer, weight) in enumerate(cast_votes):
        ballot.cast(trace, Answer(f"{answer} as written by {trace}", answer), weight)
    return ballot


@given(votes)
def test_a_tally_adds_up_what_was_cast(cast_votes: list[tuple[str, float]]) -> None:
    ballot = cast(cast_votes)
    tally = ballot.tally()
    expected: dict[str, list[int]] = defaultdict(list)
    for trace, (answer, _) in enumerate(cast_votes):
        expected[answer].append(trace)
    assert {entry.key: list(entry.votes) for entry in tally.entries} == expected
    for entry in tally.entries:
        assert entry.weight == sum(cast_votes[trace][1] for trace in entry.votes)
        assert entry.count == len(entry.votes)
        assert entry.text == f"{entry.key} as written by {entry.votes[0]}"
    assert tally.total == sum(weight for _, weight in cast_votes)
    assert tally.voters == frozenset(range(len(cast_votes)))
    assert ballot.count == len(cast_votes)


@given(votes)
def test_answers_rank_by_weight_then_votes_then_the_one_seen_first(
    cast_votes: list[tuple[str, float]],
) -> None:
    entries = cast(cast_votes).tally().entries
    seen = list(dict.fromkeys(answer for answer, _ in cast_votes))
    ranks = [(-entry.weight, -entry.count, seen.index(entry.key)) for entry in entries]
    assert ranks == sorted(ranks)
    assert len(entries) == len(seen)


@given(votes)
def test_after_every_vote_the_running_share_is_that_of_the_tally(
    cast_votes: list[tuple[str, float]],
) -> None:
    ballot = Ballot()
    for trace, (answer, weight) in enumerate(cast_votes):
        ballot.cast(trace, Answer(answer, answer), weight)
        tally = ballot.tally()
        assert ballot.share == tally.share
        assert 0 <= ballot.share <= 1
        if tally.total:
            assert tally.share == max(entry.weight for entry in tally.entries) / tally.total


@given(votes)
def test_after_every_vote_the_front_runners_are_the_two_heaviest(
    cast_votes: list[tuple[str, float]],
) -> None:
    ballot = Ballot()
    for trace, (key, weight) in enumerate(cast_votes):
        ballot.cast(trace, Answer(key, key), weight)
        heaviest = sorted((entry.weight for entry in ballot.tally().entries), reverse=True)
        assert ballot.front_runners == (*heaviest, 0.0)[:2]


def test_the_order_of_votes_decides_nothing_but_exact_ties() -> None:
    ahead = [("a", 1.0), ("b", 1.0), ("b", 0.5)]
    assert {cast(order).tally().entries[0].key for order in (ahead, ahead[::-1])} == {"b"}
    assert cast([("a", 2.0), ("b", 1.0), ("b", 1.0)]).tally().entries[0].key == "b"
    level = cast([("a", 1.0), ("b", 1.0)]).tally()
    assert level.entries[0].key == "a"
    assert level.tied == ("a as written by 0", "b as written by 1")
    assert cast(ahead).tally().tied == ()


def test_an_empty_ballot_has_no_leader_and_no_share() -> None:
    assert Ballot().tally() == Tally()
    assert (Tally().leader, Tally().share, Tally().total, Tally().tied) == (None, 0.0, 0, ())
    assert (Ballot().share, Ballot().count) == (0.0, 0)


def test_votes_without_weight_are_counted_but_settle_nothing() -> None:
    ballot = cast([("a", 0.0), ("b", 0.0), ("b", 0.0)])
    assert ballot.share == ballot.tally().share == 0.0
    assert ballot.tally().entries[0].key == "b"


def test_a_tally_is_a_snapshot() -> None:
    ballot = cast([("a", 1.0)])
    before = ballot.tally()
    ballot.cast(1, Answer("b", "b"), 5.0)
    assert before == cast([("a", 1.0)]).tally()


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, -math.inf])
def test_a_weight_that_would_spoil_the_vote_is_refused(weight: float) -> None:
    ballot = Ballot()
    with pytest.raises(ValueError, match="finite and not negative"):
        ballot.cast(0, Answer("a", "a"), weight)
    assert ballot.tally() == Tally()


@given(scores, st.integers(1, 100))
def test_a_threshold_keeps_as_many_as_the_percentile_does(values: np.ndarray, keep: int) -> None:
    # Whole percents: the reference takes numpy.percentile(scores, 100 - keep).
    kept = (values >= threshold_for(values, keep / 100)).sum()
    assert kept == (values >= np.percentile(values, 100 - keep)).sum() >= 1


@pytest.mark.parametrize(
    ("traces", "keep", "kept"), [(512, 0.1, 52), (512, 0.9, 460), (11, 0.7, 8), (21, 0.95, 20)]
)
def test_shares_that_binary_fractions_miss_keep_the_right_number(
    traces: int, keep: float, kept: int
) -> None:
    values = np.arange(traces) * 1.37
    assert (values >= threshold_for(values, keep)).sum() == kept


@given(scores, st.floats(0.01, 1.0))
def test_the_best_score_is_kept_and_keeping_all_keeps_the_worst(
    values: np.ndarray, keep: float
) -> None:
    assert values.min() <= threshold_for(values, keep) <= values.max()
    assert threshold_for(values, 1.0) == values.min()


@given(scores, st.floats(0.01, 1.0), st.integers(0, 9))
def test_unknown_scores_do_not_move_the_threshold(
    values: np.ndarray, keep: float, unknown: int
) -> None:
    holes = np.resize([math.nan, math.inf, -math.inf], unknown)
    assert threshold_for(np.concatenate([holes, values]), keep) == threshold_for(values, keep)


def test_without_a_known_score_there_is_nothing_to_fall_below() -> None:
    assert threshold_for(np.array([math.nan, math.nan]), 0.1) == -math.inf
    assert threshold_for(np.empty(0), 0.1) == -math.inf


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_share_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(InvalidSettingError, match="keep must be between"):
        threshold_for(np.array([1.0]), keep)
