"""Regenerating: when it happens, which traces are asked, and what the votes weigh then."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.answers import kind
from conviction.core import Answer, FinishReason, InvalidSettingError, Question, Trace
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.policies.base import Action, Conditions, Continue, Done, Start, Stop
from conviction.policies.settle import Settle, SettleRegenerate
from conviction.sharing import Slots
from conviction.thinking import deliberate

ONE_AT_A_TIME = Conditions(concurrency=1, max_tokens=100, top_k=0)
STOP = FinishReason.STOP


def trace(
    number: int,
    answer: str | None,
    *,
    finish: FinishReason = STOP,
    continues: int | None = None,
) -> Trace:
    known = Answer(answer, answer) if answer else None
    return Trace(number, finish, 10, answer=known, continues=continues)


def begun(**settings: Any) -> SettleRegenerate:
    policy = SettleRegenerate(**settings).fresh()
    policy.begin(ONE_AT_A_TIME)
    return policy


def voted(
    answers: Sequence[str | None], **settings: Any
) -> tuple[SettleRegenerate, Sequence[Action]]:
    """A policy that has heard of traces with these answers, and its last actions."""
    policy = begun(**settings)
    actions: Sequence[Action] = []
    for number, answer in enumerate(answers):
        actions = policy.on_finished(trace(number, answer))
    return policy, actions


def continued(actions: Sequence[Action]) -> list[int]:
    return [action.trace for action in actions if isinstance(action, Continue)]


def hear(policy: SettleRegenerate, actions: Sequence[Action], *answers: str | None) -> list[Action]:
    """Let the continuations end with these answers."""
    last: Sequence[Action] = []
    for number, (source, answer) in enumerate(zip(continued(actions), answers, strict=True)):
        last = policy.on_finished(trace(100 + number, answer, continues=source))
    return list(last)


def weights(policy: SettleRegenerate) -> dict[str, float]:
    return {entry.text: entry.weight for entry in policy.standing().tally.entries}


class TestUntilItEnds:
    @given(st.lists(st.sampled_from(["a", "b", None]), min_size=12, max_size=12))
    def test_it_does_as_settle_does_with_as_many_traces(self, answers: list[str | None]) -> None:
        ours, plain = begun(), Settle(budget=12).fresh()
        plain.begin(ONE_AT_A_TIME)
        for number, answer in enumerate(answers):
            one = trace(number, answer)
            found, expected = ours.on_finished(one), plain.on_finished(one)
            assert ours.standing() == plain.standing()
            if not any(isinstance(action, Start) for action in expected):
                return
            assert found == expected

    def test_traces_that_agree_settle_it_and_nothing_is_regenerated(self) -> None:
        policy, actions = voted(["a"] * 4)
        assert actions == [Done("settled")]
        assert policy.standing().notes == ()

    @pytest.mark.parametrize("answers", [[None] * 12, [*["a"] * 2, *[None] * 10]])
    def test_without_two_answers_there_is_nothing_to_ask(self, answers: list[str | None]) -> None:
        _, actions = voted(answers)
        assert continued(actions) == []

    def test_failed_traces_alone_ask_nothing(self) -> None:
        policy, actions = begun(), [Start(1)]
        for number in range(12):
            actions = policy.on_finished(trace(number, None, finish=FinishReason.ERROR))
        assert actions == []

    def test_a_safe_lead_at_the_end_of_the_budget_is_left_alone(self) -> None:
        answers = ["b", *["a"] * 4, "b", "a", "a"]
        assert continued(voted(answers, budget=12, bar=0.9999, slope=0.0, safe=0.9)[1]) == []
        assert continued(voted(answers, budget=12, bar=0.9999, slope=0.0, safe=0.95)[1]) != []


class TestWhatIsAsked:
    def test_front_runners_are_asked_in_turns_in_order_of_voting(self) -> None:
        _, actions = voted(["b", "a", "c", "a", "b", "a"], budget=12, regenerate=6)
        assert continued(actions) == [1, 0, 3, 4, 5, 0]
        assert {action.keep for action in actions if isinstance(action, Continue)} == {0.75}

    def test_what_runs_is_stopped_when_it_begins(self) -> None:
        policy = SettleRegenerate(budget=20, regenerate=2, slope=0.1).fresh()
        policy.begin(Conditions(concurrency=6, max_tokens=100, top_k=0))
        policy.on_finished(trace(3, "a"))
        policy.on_finished(trace(1, "b"))
        actions = policy.on_finished(trace(2, "a"))
        while not continued(actions):
            actions = policy.on_finished(trace(0, "b"))
        [stop] = [action for action in actions if isinstance(action, Stop)]
        assert {0, 4, 5} <= set(stop.traces)

    @pytest.mark.anyio
    async def test_what_waits_for_a_slot_then_is_never_run(self) -> None:
        def script(request: TraceRequest) -> Script:
            return Script.even(f"thinking and = {request.trace % 2}", tokens=10)

        verdict = await deliberate(
            Question.ask("?"),
            engine=ScriptedEngine(script, concurrency=8),
            policy=SettleRegenerate(budget=40, slope=0.1, ahead=20),
            answers=kind("number"),
            place=Slots(1).place(),
        )
        assert verdict.ended == "contested"
        # The third vote ended it, with seven traces more in line.
        assert [one.continues is not None for one in verdict.traces] == [False] * 3 + [True] * 4

    def test_what_was_stopped_changes_nothing_and_what_was_whole_still_votes(self) -> None:
        policy, actions = voted(["a", "b"] * 6)
        assert policy.on_finished(trace(12, None, finish=FinishReason.CANCELLED)) == []
        assert policy.on_finished(trace(13, "b")) == []
        assert policy.standing().tally.leader == policy.standing().tally.entries[0]
        assert policy.standing().tally.entries[0].text == "b"
        assert len(continued(actions)) == 4

    def test_never_more_than_the_budget_in_all(self) -> None:
        policy = begun(budget=9, regenerate=5)
        actions: Sequence[Action] = []
        started = 1
        number = 0
        while not continued(actions):
            actions = policy.on_finished(trace(number, "ab"[number % 2]))
            started += sum(action.count for action in actions if isinstance(action, Start))
            number += 1
        assert started + len(continued(actions)) == 9


class TestWhatVotesWeigh:
    def test_an_answer_that_comes_again_counts_more(self) -> None:
        policy, actions = voted(["a", "a", "a", "b", "b", "c"], budget=10)
        assert weights(policy) == {"a": 3.0, "b": 2.0, "c": 1.0}
        ended = hear(policy, actions, "c", "b", "b", "b")
        assert ended == [Done("contested")]
        # a came again in none of two, b in both; c was not asked, so it weighs like a.
        assert weights(policy) == pytest.approx({"b": 2 * 3 / 4, "a": 3 * 1 / 4, "c": 1 / 4})
        leader = policy.standing().tally.leader
        assert leader is not None
        assert (leader.text, leader.votes) == ("b", (3, 4))
        [note] = policy.standing().notes
        assert "a came again in 0 of 2, b came again in 2 of 2" in note

    def test_equal_rates_change_no_order(self) -> None:
        policy, actions = voted(["b", "a", "a", "b", "c", "c"], budget=10)
        before = [entry.text for entry in policy.standing().tally.entries]
        hear(policy, actions, *"baba")
        assert [entry.text for entry in policy.standing().tally.entries] == before

    @pytest.mark.parametrize(
        ("finish", "tried"),
        [(FinishReason.ERROR, 0), (FinishReason.CANCELLED, 0), (FinishReason.LENGTH, 1)],
    )
    def test_a_continuation_that_did_not_end_says_nothing_one_without_end_says_no(
        self, finish: FinishReason, tried: int
    ) -> None:
        policy, actions = voted(["a", "b"] * 3, budget=8, regenerate=2)
        first, second = continued(actions)
        assert policy.on_finished(trace(6, "a", finish=finish, continues=first)) == []
        assert policy.on_finished(trace(7, "b", continues=second)) == [Done("contested")]
        assert weights(policy)["a"] == pytest.approx(3 / (tried + 2))
        assert weights(policy)["b"] == pytest.approx(3 * 2 / 3)

    def test_if_all_continuations_fail_the_plain_vote_stands(self) -> None:
        policy, actions = voted(["a", "b"] * 6)
        plain = policy.standing()
        last: Sequence[Action] = []
        for number, source in enumerate(continued(actions)):
            one = trace(20 + number, None, finish=FinishReason.ERROR, continues=source)
            last = policy.on_finished(one)
        assert last == [Done("contested")]
        assert policy.standing() == plain

    @given(
        st.lists(st.sampled_from(["a", "b", "c"]), min_size=12, max_size=12),
        st.lists(st.sampled_from(["a", "b", "c", None]), min_size=4, max_size=4),
    )
    def test_the_verdict_is_one_of_the_two_front_runners(
        self, answers: list[str], ends: list[str | None]
    ) -> None:
        policy = begun()
        actions: Sequence[Action] = []
        for number, answer in enumerate(answers):
            actions = policy.on_finished(trace(number, answer))
            if not any(isinstance(action, Start) for action in actions):
                break
        if not continued(actions):
            return
        front = [entry.text for entry in policy.standing().tally.entries[:2]]
        assert policy.need == 4
        hear(policy, actions, *ends)
        leader = policy.standing().tally.leader
        assert leader is not None
        assert leader.text in front


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"regenerate": 0}, "regenerate"),
        ({"keep": 1.0}, "keep"),
        ({"safe": 0.4}, "safe"),
        ({"budget": 4, "regenerate": 4}, "budget of 4"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSettingError, match=named):
        SettleRegenerate(**settings)


@pytest.mark.anyio
async def test_live_the_answer_that_comes_again_wins() -> None:
    own = ["= 3", "= 3", "= 4", "= 4", "= 3"]

    def script(request: TraceRequest) -> Script:
        if request.prefix:
            return Script.even(" so 4", tokens=2)
        return Script.even(f"thinking and thinking {own[request.trace % 5]}", tokens=10)

    verdict = await deliberate(
        Question.ask("?"),
        engine=ScriptedEngine(script, concurrency=2),
        policy=SettleRegenerate(budget=9, regenerate=4),
        answers=kind("number"),
    )
    assert (verdict.answer, verdict.ended) == ("4", "contested")
    asked = [one for one in verdict.traces if one.continues is not None]
    assert [one.tokens for one in asked] == [2] * 4
    assert {one.text for one in asked} == {"thinking and so 4"}
    assert not verdict.tally.voters & {one.id for one in asked}
    assert any("3 came again in 0 of 2" in warning for warning in verdict.warnings)
