"""How far a question is from being settled, as policies tell it."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import Answer, FinishReason, Trace
from conviction.policies import (
    AdaptiveConsistency,
    Borda,
    Conditions,
    DeepConfHigh,
    DeepConfOffline,
    Done,
    EarlyStoppingConsistency,
    Majority,
    Policy,
    Single,
    Start,
)
from conviction.policies.base import Action
from conviction.policies.settle import Settle, SettleConfident, SettleExact, SettleLean

CONDITIONS = Conditions(concurrency=1, max_tokens=100, top_k=20)

TELLING = [
    Settle(budget=64),
    SettleLean(budget=64),
    SettleExact(budget=64),
    SettleConfident(budget=64),
    AdaptiveConsistency(budget=64),
    EarlyStoppingConsistency(budget=64),
    DeepConfHigh(budget=64, warmup=4, window=4),
]

answers = st.lists(st.sampled_from(["a", "a", "a", "b", "c", None]), max_size=30)


def trace(number: int, answer: str | None) -> Trace:
    known = Answer(answer, answer) if answer else None
    return Trace(number, FinishReason.STOP, 8, confidences=np.full(8, 9, np.float32), answer=known)


def ended(actions: Sequence[Action]) -> bool:
    return any(isinstance(action, Done) for action in actions)


def heard(prototype: Policy, said: Sequence[str | None]) -> tuple[Policy, int] | None:
    """A policy that has heard of these traces, and how many; None if it is done before."""
    policy = prototype.fresh()
    policy.begin(CONDITIONS)
    for number, answer in enumerate(said):
        if ended(policy.on_finished(trace(number, answer))):
            return None
    return policy, len(said)


def settled_after(policy: Policy, number: int, answer: str) -> int:
    """How many further votes for this answer settle it, or how many can come if none do."""
    policy = policy.fresh()
    left = policy.budget - number
    for more in range(1, left):
        if ended(policy.on_finished(trace(number + more - 1, answer))):
            return more
    return left


@pytest.mark.parametrize("prototype", TELLING, ids=lambda policy: policy.name)
@given(said=answers)
def test_so_many_further_votes_for_the_leader_settle_it_and_fewer_do_not(
    prototype: Policy, said: list[str | None]
) -> None:
    found = heard(prototype, said)
    if found is None or found[0].need is None:
        return
    policy, number = found
    need = policy.need
    assert need is not None
    leader = policy.standing().tally.leader
    actual = settled_after(policy, number, leader.text if leader else "a")
    if isinstance(policy, EarlyStoppingConsistency):
        # Another answer than the leader's may be the one that its window agrees on.
        window = said[len(said) - len(said) % 4 :]
        one = next(iter(set(window)), "a")
        actual = settled_after(policy, number, one if one and len(set(window)) == 1 else "a")
    least = 2 if isinstance(policy, Settle) else 1
    assert max(need, least - number) == actual


@pytest.mark.parametrize("prototype", TELLING, ids=lambda policy: policy.name)
@given(said=answers)
def test_it_is_never_more_than_the_traces_that_can_still_end(
    prototype: Policy, said: list[str | None]
) -> None:
    policy = type(prototype)(budget=8)
    started = sum(one.count for one in policy.begin(CONDITIONS) if isinstance(one, Start))
    for number, answer in enumerate(said[:8]):
        if number == started:
            break
        actions = policy.on_finished(trace(number, answer))
        if ended(actions):
            return
        started += sum(one.count for one in actions if isinstance(one, Start))
        assert policy.need is None or 1 <= policy.need <= max(8 - number - 1, 1)


@pytest.mark.parametrize("policy", [Majority(), Single(), DeepConfOffline(), Borda()])
def test_policies_that_never_settle_cannot_tell(policy: Policy) -> None:
    policy.begin(CONDITIONS)
    assert policy.need is None


def test_during_the_warm_up_online_deepconf_cannot_tell() -> None:
    policy = DeepConfHigh(budget=8, warmup=2)
    policy.begin(CONDITIONS)
    assert policy.need is None
    policy.on_finished(trace(0, "a"))
    assert policy.need is None
    policy.on_finished(trace(1, "b"))
    assert policy.need == 6
