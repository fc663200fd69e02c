"""Slots that many questions share: whose turn it is, and what a total of tokens lets begin."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conviction.core import FinishReason, InvalidSettingError, Trace
from conviction.sharing import Place, Slots


def trace(tokens: int, finish: FinishReason = FinishReason.STOP, lost: int = 0) -> Trace:
    return Trace(0, finish, tokens, confidences=np.zeros(tokens, np.float32), lost_tokens=lost)


@dataclass
class Table:
    """Questions that share slots, and the order in which their traces began."""

    slots: Slots
    questions: int
    turns: list[int] = field(default_factory=list[int])
    ended: set[int] = field(default_factory=set[int])

    def __post_init__(self) -> None:
        self.places = [self.slots.place() for _ in range(self.questions)]
        for number, place in enumerate(self.places):
            place.begin = lambda number=number: self.turns.append(number)
            place.end = lambda number=number: self.end(number)

    def end(self, number: int) -> None:
        self.ended.add(number)
        self.places[number].want(0, None)

    def finish(self, number: int, tokens: int = 1, **kind: FinishReason) -> None:
        place = self.places[number]
        if place.counts:
            place.generated(tokens)
        place.ended(trace(tokens, **kind))
        place.want(place.waiting, place.need)


def one_at_a_time(questions: int, first: int, wanted: Sequence[int], needs: Sequence[int]) -> Table:
    """One slot; every question wants `first`, and then its `wanted` with its need."""
    table = Table(Slots(1), questions)
    for place in table.places:
        place.want(first, None)
    while len(table.turns) < questions * first:
        table.finish(table.turns[-1])
    for place, more, need in zip(table.places, wanted, needs, strict=True):
        place.want(more, need)
    while table.slots.running:
        table.finish(table.turns[-1])
    return table


class TestTurns:
    def test_all_get_their_first_trace_before_any_gets_its_second(self) -> None:
        table = Table(Slots(4), 3)
        for place in table.places:
            assert table.turns == []
            place.want(2, None)
        assert table.turns == [0, 1, 2, 0]

    def test_nothing_begins_before_all_have_said_what_they_want_or_have_left(self) -> None:
        table = Table(Slots(4), 3)
        table.places[0].want(2, None)
        table.places[1].want(2, None)
        assert table.turns == []
        with table.places[2]:
            pass
        assert table.turns == [0, 1, 0, 1]

    def test_further_traces_go_to_those_that_need_the_fewest_votes(self) -> None:
        table = one_at_a_time(3, 1, [1, 1, 1], [9, 1, 5])
        assert table.turns == [0, 1, 2, 1, 2, 0]

    def test_whoever_cannot_tell_shares_evenly(self) -> None:
        table = Table(Slots(1), 3)
        for place in table.places:
            place.want(1, None)
        while len(table.turns) < 3:
            table.finish(table.turns[-1])
        for place in table.places:
            place.want(50, None)
        while len(table.turns) < 60:
            table.finish(table.turns[-1])
            counts = [table.turns.count(number) for number in range(3)]
            assert max(counts) - min(counts) <= 1

    def test_a_need_that_changes_while_it_waits_changes_its_turn(self) -> None:
        table = Table(Slots(1), 3)
        for place in table.places:
            place.want(1, None)
        table.finish(0)
        table.finish(1)
        table.places[0].want(1, 2)
        table.places[1].want(1, 3)
        table.places[0].want(1, 4)
        table.finish(2)
        assert table.turns == [0, 1, 2, 1]

    @pytest.mark.parametrize("need", [1, 2, 7])
    def test_waiting_counts_so_that_much_need_starves_nobody(self, need: int) -> None:
        # The others need one vote each, for ever.
        table = Table(Slots(1), 4)
        for place in table.places:
            place.want(1, None)
        while len(table.turns) < 4:
            table.finish(table.turns[-1])
        for number, place in enumerate(table.places):
            place.want(1_000, 1 if number else need)
        while len(table.turns) < 600:
            table.finish(table.turns[-1])
        waits = np.diff([turn for turn, number in enumerate(table.turns[4:]) if number == 0])
        assert max(waits) <= need + 4
        assert max(waits) >= need

    def test_what_a_question_holds_goes_to_others_when_it_leaves(self) -> None:
        table = Table(Slots(2), 2)
        table.places[0].want(5, None)
        table.places[1].want(0, None)
        assert table.turns == [0, 0]
        table.places[1].want(3, 1)
        with table.places[0]:
            pass
        assert table.turns == [0, 0, 1, 1]
        assert (table.slots.running, table.places[0].waiting) == (2, 0)


class TestTotal:
    def test_traces_of_one_length_spend_the_total_to_the_last_token(self) -> None:
        table = Table(Slots(4, total=100, longest=10), 2)
        for place in table.places:
            place.want(50, None)
        for _ in range(10):
            table.finish(0 if table.places[0].running else 1, 10)
        assert (table.slots.spent, len(table.turns), table.slots.over) == (100, 10, True)
        assert table.ended == {0, 1}

    def test_before_any_trace_has_ended_each_counts_with_the_most_it_may_generate(self) -> None:
        table = Table(Slots(8, total=100, longest=30), 1)
        table.places[0].want(8, None)
        assert len(table.turns) == 3

    def test_one_alone_may_begin_however_little_is_left(self) -> None:
        table = Table(Slots(8, total=1, longest=30), 2)
        table.places[0].want(8, None)
        table.places[1].want(8, None)
        assert table.turns == [0]
        table.places[0].generated(1)
        assert not table.slots.over
        table.places[0].generated(1)
        assert table.ended == {0, 1}

    def test_the_rest_that_covers_no_mean_trace_is_left(self) -> None:
        table = Table(Slots(1, total=25, longest=30), 1)
        table.places[0].want(8, None)
        table.finish(0, 10)
        table.finish(0, 10)
        assert (table.slots.spent, table.slots.over) == (20, True)

    def test_a_trace_that_runs_longer_than_the_mean_is_reckoned_with(self) -> None:
        table = Table(Slots(2, total=50, longest=10), 1)
        table.places[0].want(8, None)
        table.places[0].generated(30)
        table.finish(0, 5)
        # 5 spent, 30 by the running trace; the mean is 5.
        assert len(table.turns) == 3
        table.places[0].generated(12)
        table.finish(0, 1)
        # 48 spent, and no room for another mean trace of 3.
        assert len(table.turns) == 3

    @pytest.mark.parametrize("finish", [FinishReason.ERROR, FinishReason.CANCELLED])
    def test_tokens_of_failed_and_cancelled_traces_count_but_say_nothing_of_lengths(
        self, finish: FinishReason
    ) -> None:
        table = Table(Slots(1, total=100, longest=50), 1)
        table.places[0].want(9, None)
        table.finish(0, 10)
        for _ in range(5):
            table.finish(0, 2, finish=finish)
        assert table.slots.spent == 20
        assert table.slots._sum_of_lengths / table.slots._lengths == 10

    def test_tokens_of_attempts_that_broke_off_belong_to_their_trace(self) -> None:
        table = Table(Slots(2, total=100, longest=10), 1)
        table.places[0].want(2, None)
        table.places[0].generated(14)
        table.places[0].ended(trace(6, lost=8))
        table.places[0].want(5, None)
        # 14 spent, and two of the mean, 14, are reckoned with: none is left over from the first.
        assert (table.slots.spent, table.slots._live, table.slots.running) == (14, 0, 2)

    def test_what_was_spent_before_counts(self) -> None:
        table = Table(Slots(8, total=100, spent=100, longest=10), 2)
        for place in table.places:
            place.want(3, None)
        assert (table.turns, table.ended, table.slots.spent) == ([], {0, 1}, 100)

    def test_a_question_that_comes_after_the_end_ends_at_once(self) -> None:
        table = Table(Slots(8, total=9, spent=10), 1)
        table.places[0].want(1, None)
        late = table.slots.place()
        ended: list[bool] = []
        late.end = lambda: ended.append(True)
        late.want(3, None)
        assert ended == [True]

    def test_without_a_total_there_is_no_end_and_tokens_count_when_traces_end(self) -> None:
        table = Table(Slots(1), 1)
        table.places[0].want(100, None)
        for _ in range(99):
            table.finish(0, 1_000)
        assert (table.slots.spent, table.slots.over) == (99_000, False)
        assert not table.places[0].counts

    def test_a_question_that_exceeds_its_own_total_ends_alone(self) -> None:
        slots = Slots(2)
        own, other = slots.place(total=10), slots.place()
        ended: list[str] = []
        own.end = lambda: ended.append("own")
        other.end = lambda: ended.append("other")
        own.want(4, None)
        other.want(4, None)
        own.generated(10)
        assert ended == []
        own.generated(1)
        assert ended == ["own"]
        assert (own.counts, other.counts) == (True, False)
        own.ended(trace(11))
        assert slots.spent == 11

    def test_a_questions_own_total_counts_towards_that_of_all(self) -> None:
        slots = Slots(1, total=10)
        place = slots.place(total=100)
        ended: list[bool] = []
        place.end = lambda: ended.append(True)
        place.want(1, None)
        place.generated(11)
        assert (ended, slots.over) == ([True], True)

    @pytest.mark.parametrize("total", [0, -1, 1.5])
    def test_a_questions_own_total_is_a_whole_number_too(self, total: int) -> None:
        with pytest.raises(InvalidSettingError, match="total_tokens"):
            Slots(4).place(total=total)

    @pytest.mark.parametrize("total", [0, -1, 1.5])
    def test_a_total_is_a_whole_number_of_at_least_one(self, total: int) -> None:
        with pytest.raises(InvalidSettingError, match="total_tokens"):
            Slots(4, total=total)


# --- Whatever happens -----------------------------------------------------------------------------


@dataclass
class Happening:
    """One thing that happens, to be read as far as it makes sense."""

    kind: str
    question: int
    amount: int
    need: int | None


happenings = st.builds(
    Happening,
    st.sampled_from(["want", "want", "tokens", "tokens", "end", "end", "end", "fail", "leave"]),
    st.integers(0, 5),
    st.integers(0, 12),
    st.one_of(st.none(), st.integers(1, 9)),
)


@settings(max_examples=500)
@given(
    slots=st.integers(1, 6),
    total=st.one_of(st.none(), st.integers(1, 20), st.integers(1, 200)),
    longest=st.integers(1, 15),
    first=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    story=st.lists(happenings, min_size=5, max_size=80),
)
def test_whatever_happens_slots_turns_and_total_hold(
    slots: int, total: int | None, longest: int, first: list[int], story: list[Happening]
) -> None:
    shared = Slots(slots, total=total, longest=longest)
    watch = Watch(shared, len(first))
    for place, wanted in zip(watch.places, first, strict=True):
        place.want(wanted, None)
    for now in story:
        watch.let(now)
        watch.check()
    event("over" if shared.over else "not over")
    for number in range(len(first)):
        watch.leave(number)
        watch.check()
    assert (shared.running, shared.contested, shared._live) == (0, 0, 0)


class Watch:
    """Plays a story, and checks every trace that begins against the rules, in their own words."""

    def __init__(self, slots: Slots, questions: int) -> None:
        self.slots = slots
        self.places = [slots.place() for _ in range(questions)]
        self.running: list[list[int]] = [[] for _ in range(questions)]
        self.lengths: list[int] = []
        self.spent = 0
        self.left: set[int] = set()
        self.passed = [0] * questions
        self.most_need = [0] * questions
        for number, place in enumerate(self.places):
            place.begin = lambda number=number: self.begins(number)
            place.end = lambda place=place: place.want(0, None)

    def begins(self, number: int) -> None:
        place = self.places[number]
        waiting = [one for one in self.places if one.waiting and one is not place]
        first = place.begun <= (place.first or 0)
        lacking = [one for one in waiting if one.begun < (one.first or 0)]
        if first:
            assert all(place.begun - 1 <= one.begun for one in lacking)
        else:
            assert lacking == []
            for other in waiting:
                self.passed[other.number] += 1
                bound = self.most_need[other.number] + len(self.places)
                assert self.passed[other.number] <= bound
        self.passed[number] = self.most_need[number] = 0
        self.look(number)
        if self.slots.total is not None:
            self.covered()
        self.running[number].append(0)

    def covered(self) -> None:
        """The total covers the trace that begins, by the sum that the documentation names."""
        live = [tokens for traces in self.running for tokens in traces]
        if not live and not self.lengths:
            assert self.spent < (self.slots.total or 0)
            return
        mean = float(np.mean(self.lengths)) if self.lengths else self.slots._longest
        promised = max(sum(live), mean * len(live)) + mean
        assert self.spent - sum(live) + promised <= (self.slots.total or 0) + 1e-6

    def look(self, number: int) -> None:
        place = self.places[number]
        need = place.begun if place.need is None else place.need
        if place.waiting:
            self.most_need[number] = max(self.most_need[number], need)
        else:
            self.passed[number] = self.most_need[number] = 0

    def let(self, now: Happening) -> None:
        number = now.question % len(self.places)
        if number in self.left:
            return
        place, running = self.places[number], self.running[number]
        match now.kind:
            case "want" if not self.slots.over:
                waited = place.waiting
                need = place.begun if now.need is None else now.need
                if now.amount:
                    kept = self.most_need[number] if waited else 0
                    self.most_need[number] = max(kept, need)
                place.want(now.amount, now.need)
                self.look(number)
            case "tokens" if running:
                running[now.amount % len(running)] += now.amount
                self.generate(place, now.amount)
            case "end" | "fail" if running:
                tokens = running.pop(now.amount % len(running))
                whole = now.kind == "end"
                if whole:
                    self.lengths.append(tokens)
                place.ended(trace(tokens, FinishReason.STOP if whole else FinishReason.ERROR))
                place.want(place.waiting, place.need)
            case "leave" if now.amount > 9:
                self.leave(number)
            case _:
                pass

    def leave(self, number: int) -> None:
        self.left.add(number)
        self.running[number] = []
        with self.places[number]:
            pass

    def generate(self, place: Place, tokens: int) -> None:
        self.spent += tokens
        if place.counts:
            place.generated(tokens)

    def check(self) -> None:
        slots = self.slots
        assert slots.running == sum(map(len, self.running)) <= slots._concurrency
        assert slots.running == sum(place.running for place in self.places)
        if slots.total is not None:
            assert slots.spent == self.spent
            assert slots.over or self.spent <= slots.total
        assert slots.contested == sum(
            place.begun > (place.first or 0)
            for place in self.places
            if place.number not in self.left
        )
        waiting = any(place.waiting for place in self.places)
        if slots.over:
            assert not waiting
        elif waiting and slots.running < slots._concurrency:
            # Slots are idle only because the total covers no more beside what runs.
            assert slots.total is not None
            assert slots.running
            with pytest.raises(AssertionError):
                self.covered()
