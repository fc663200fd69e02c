"""Fair shares: how long a question waits, whatever other clients and questions want."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import anyio
import numpy as np
import pytest
import virtual_time
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conviction import fair_shares
from conviction.answers import kind
from conviction.core import FinishReason, Question, Trace
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.fair_shares import FairShares
from conviction.policies import policy
from conviction.sharing import NearestFirst, Place, Slots, Turns
from conviction.thinking import deliberate

HEAD_START = 4
PROMISED = 4 / 5
NUMBERS = kind("number")


# --- Whose turn it is, step by step ---------------------------------------------------------------


@dataclass
class Table:
    """Questions that share slots on a clock that is moved by hand."""

    concurrency: int = 1
    now: float = 0.0
    turns: list[str] = field(default_factory=list[str])
    held: Counter[str] = field(default_factory=Counter[str])
    places: dict[str, Place] = field(default_factory=dict[str, Place])
    running: deque[tuple[str, float]] = field(default_factory=deque[tuple[str, float]])

    def __post_init__(self) -> None:
        self.shares = FairShares(lambda: self.now)
        self.slots = Slots(self.concurrency, turns=self.shares)

    def ask(
        self, name: str, traces: int = 100_000, *, client: str = "", most: int | None = None
    ) -> None:
        place = self.slots.place(client=client, most=most)
        self.places[name] = place
        place.begin = lambda: self._begin(name)
        place.want(traces, None)

    def _begin(self, name: str) -> None:
        self.turns.append(name)
        self.running.append((name, self.now))

    def run(self, seconds: float, **lengths: float) -> None:
        """Let traces run for so long; each lasts as long as its question's name says, or 1 s."""
        until = self.now + seconds
        while self.running:
            ends = [began + lengths.get(name, 1.0) for name, began in self.running]
            first = min(range(len(ends)), key=ends.__getitem__)
            if ends[first] > until:
                break
            name, began = self.running[first]
            del self.running[first]
            self.now = ends[first]
            self.held[name] += self.now - began
            place = self.places[name]
            place.ended(Trace(0, FinishReason.STOP, 1, confidences=np.zeros(1, np.float32)))
            place.want(place.waiting, None)
        self.now = until

    def leave(self, name: str) -> None:
        self.running = deque(one for one in self.running if one[0] != name)
        with self.places.pop(name):
            pass


def test_questions_share_evenly_by_the_time_that_slots_are_held_not_by_traces() -> None:
    table = Table()
    for name in ("long", "short"):
        table.ask(name)
    table.run(400, long=10, short=1)
    assert table.held["long"] == pytest.approx(table.held["short"], abs=20)
    assert table.turns.count("short") > 8 * table.turns.count("long")


def test_a_client_with_many_questions_gets_no_more_than_one_with_one() -> None:
    table = Table(concurrency=4)
    for number in range(20):
        table.ask(f"many {number}", client="greedy")
    table.ask("one", client="modest")
    table.run(200)
    greedy = sum(held for name, held in table.held.items() if name != "one")
    assert table.held["one"] == pytest.approx(greedy, rel=0.1)
    each = [table.held[f"many {number}"] for number in range(20)]
    assert max(each) - min(each) <= 2 * HEAD_START


def test_a_newcomer_has_a_head_start_of_four_mean_traces_and_then_its_share() -> None:
    table = Table()
    for name in ("a", "b"):
        table.ask(name)
    table.run(100)
    before = len(table.turns)
    table.ask("new")
    table.run(60)
    came = table.turns[before:]
    assert came[: HEAD_START + 1].count("new") >= HEAD_START - 1
    assert came.count("new") == pytest.approx(60 / 3 + HEAD_START * 2 / 3, abs=2)
    assert abs(came.count("a") - came.count("b")) <= 1


def test_newcomers_with_few_traces_keep_no_older_question_waiting_for_more_than_its_share() -> None:
    table = Table()
    table.ask("old")
    number = count()
    for _ in range(400):
        while sum(name != "old" for name in table.places) < 3:
            table.ask(f"new {next(number)}", traces=1)
        table.run(1)
        for name in [name for name, place in table.places.items() if name != "old" and place.begun]:
            if all(name != running for running, _ in table.running):
                table.leave(name)
    # Of four questions that share a slot at any time, one is the old one.
    assert table.held["old"] >= PROMISED * 400 / 4 - HEAD_START


def test_a_flood_of_questions_that_hang_up_before_their_first_token_counts_by_its_time() -> None:
    table = Table()
    table.ask("patient")
    for number in range(300):
        name = f"gone {number}"
        table.ask(name)
        table.run(0.9, **{name: 1000.0})
        table.leave(name)
    assert table.held["patient"] >= 0.9 * 300 / 2 - 2 * HEAD_START


def test_who_used_slots_that_no_other_needed_does_not_pay_for_it() -> None:
    table = Table(concurrency=4)
    table.ask("sequential", most=1)
    table.ask("busy")
    table.run(1000)
    assert table.held["busy"] > 2.5 * table.held["sequential"]
    before = table.held["busy"]
    table.ask("new")
    table.run(60)
    # A third of 240 s, less the head start of the newcomer and of itself.
    assert table.held["busy"] - before >= 80 - 2 * HEAD_START


def test_who_needed_little_for_long_gets_no_more_than_a_head_start_for_it() -> None:
    table = Table(concurrency=4)
    table.ask("sequential", most=1)
    table.ask("busy")
    table.run(1000)
    table.places["sequential"].most = None
    before = table.held.copy()
    table.run(60)
    assert table.held["sequential"] - before["sequential"] <= 120 + 2 * HEAD_START
    assert table.held["busy"] - before["busy"] >= 120 - 2 * HEAD_START


def test_a_question_that_says_nothing_yet_keeps_none_waiting() -> None:
    table = Table()
    table.slots.place(client="silent")
    table.ask("ready")
    assert table.turns == ["ready"]


def test_nothing_is_kept_of_clients_and_questions_that_left() -> None:
    table = Table(concurrency=2)
    for number in range(50):
        table.ask(f"q {number}", client=f"c {number % 7}")
    table.run(5)
    for number in range(50):
        table.leave(f"q {number}")
    shares = table.shares
    assert (shares._questions, shares._client_of, shares._clients.members) == ({}, {}, 0)
    assert (table.slots.running, shares._clients._running) == (0, 0)
    assert shares.next() is None
    assert shares._clients._line == []


def test_a_trace_takes_few_steps_however_many_questions_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Steps of a heap, each of which takes log n.
    steps: Counter[str] = Counter()
    for name in ("heappush", "heappop"):
        real = getattr(fair_shares, name)

        def counted(*arguments: object, name: str = name, real: object = real) -> object:
            steps[name] += 1
            return real(*arguments)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(fair_shares, name, counted)
    each: list[float] = []
    for questions in (20, 1000):
        table = Table(concurrency=16)
        for number in range(questions):
            table.ask(f"q {number}", client=f"c {number % 40}")
        steps.clear()
        before = len(table.turns)
        table.run(200)
        each.append(steps.total() / (len(table.turns) - before))
    assert max(each) < 15
    assert each[1] < 1.5 * each[0]


# --- Whatever happens -----------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    concurrency=st.integers(1, 5),
    story=st.lists(
        st.tuples(
            st.sampled_from(["ask", "want", "run", "run", "leave"]),
            st.integers(0, 7),
            st.integers(0, 9),
        ),
        max_size=60,
    ),
)
def test_no_slot_is_idle_while_a_trace_may_begin(
    concurrency: int, story: list[tuple[str, int, int]]
) -> None:
    table = Table(concurrency)
    for what, which, amount in story:
        name = f"q{which}"
        place = table.places.get(name)
        if what == "ask" and place is None:
            table.ask(name, amount, client=f"c{which % 3}", most=amount % 3 or None)
        elif what == "want" and place is not None:
            place.want(amount, amount or None)
        elif what == "run":
            table.run(amount / 3, **{f"q{number}": 0.5 + number for number in range(8)})
        elif what == "leave" and place is not None:
            table.leave(name)
        running = Counter(name for name, _ in table.running)
        assert {name: one.running for name, one in table.places.items() if one.running} == running
        assert table.slots.running == len(table.running) <= concurrency
        if any(one.ready for one in table.places.values()):
            assert len(table.running) == concurrency
    for name in list(table.places):
        table.leave(name)
    assert (table.slots.running, table.shares._client_of) == (0, {})


# --- How long a question waits --------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question that a client asks.

    Attributes:
        contested: Whether all its traces answer differently; else all agree.
        seconds: The shortest and the longest that a trace of it takes.
        at: Seconds after which it is asked.
    """

    number: int
    client: str
    policy: str
    contested: bool
    seconds: tuple[int, int]
    at: float = 0.0


@dataclass
class Outcome:
    """When a question was asked and answered, and its longest trace, in virtual seconds."""

    asked: Asked
    began: float
    ended: float
    longest: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Crowd:
    """Questions, by their number, at one engine in virtual time."""

    slots: int
    turns: Turns
    by_number: dict[int, Asked] = field(default_factory=dict[int, Asked])
    longest: Counter[int] = field(default_factory=Counter[int])
    outcomes: list[Outcome] = field(default_factory=list[Outcome])

    def __post_init__(self) -> None:
        self.engine = ScriptedEngine(self._script, concurrency=self.slots, pace=self._pace)
        self.shared = Slots(self.slots, turns=self.turns)

    def _script(self, request: TraceRequest) -> Script:
        contested = self._asked(request).contested
        return Script.even(f"So the answer is {request.trace if contested else 7}.", tokens=1)

    async def _pace(self, request: TraceRequest) -> None:
        """Before its only token, and again before its end: half of its time."""
        asked = self._asked(request)
        own = random.Random(f"{asked.number}/{request.trace}")  # noqa: S311  # lengths, not secrets
        seconds = own.uniform(*asked.seconds)
        self.longest[asked.number] = max(self.longest[asked.number], seconds)  # pyright: ignore[reportArgumentType]
        await anyio.sleep(seconds / 2)

    def _asked(self, request: TraceRequest) -> Asked:
        return self.by_number[int(request.messages[-1].content)]

    async def ask(self, asked: Asked) -> Outcome:
        await anyio.sleep(asked.at)
        self.by_number[asked.number] = asked
        began = virtual_time.now()
        with self.shared.place(client=asked.client) as place:
            await deliberate(
                Question.ask(str(asked.number)),
                engine=self.engine,
                policy=policy(asked.policy),
                answers=NUMBERS,
                place=place,
            )
        outcome = Outcome(asked, began, virtual_time.now(), self.longest[asked.number])
        self.outcomes.append(outcome)
        return outcome


def together(slots: int, asked: list[Asked]) -> list[Outcome]:
    async def main() -> list[Outcome]:
        crowd = Crowd(slots, FairShares(virtual_time.now))
        async with anyio.create_task_group() as tasks:
            for one in asked:
                tasks.start_soon(crowd.ask, one)
        assert crowd.engine.running == 0
        return crowd.outcomes

    return virtual_time.run(main)


def alone(slots: int, asked: Asked) -> float:
    """The seconds that a question takes with the engine for itself."""

    async def main() -> Outcome:
        return await Crowd(slots, NearestFirst()).ask(asked)

    return virtual_time.run(main).seconds


def bound(slots: int, clients: int, questions: int, seconds_alone: float, longest: float) -> float:
    """What `FairShares` promises, where no trace takes longer than `longest`."""
    head_start = HEAD_START * max(longest, 1.0)  # One second is assumed before a trace has ended.
    m = 1.0
    for sharing in (clients, questions):
        m *= sharing / PROMISED if sharing > 1 else 1
    return (m + 1) * seconds_alone + m / slots * (head_start + longest) + 2 * longest


def sharing_with(one: Outcome, outcomes: list[Outcome]) -> tuple[int, int]:
    """The most clients at a time while it was there, and the most questions of its client."""
    moments = [other.began for other in outcomes if one.began <= other.began <= one.ended]
    there = [[other for other in outcomes if other.began <= at <= other.ended] for at in moments]
    clients = max(len({other.asked.client for other in now}) for now in there)
    own = max(sum(other.asked.client == one.asked.client for other in now) for now in there)
    return clients, own


questions = st.builds(
    partial(Asked, 0),
    client=st.sampled_from("aaab") | st.sampled_from("abcdefgh"),
    policy=st.sampled_from(
        [
            "settle",
            "settle-lean",
            "majority:budget=10",
            "adaptive-consistency",
            "esc",
            "deepconf-low",
        ]
    ),
    contested=st.booleans(),
    seconds=st.sampled_from([(1, 2), (5, 20), (5, 80), (40, 80)]),
    at=st.floats(0, 300),
)


@settings(max_examples=60)
@given(
    slots=st.sampled_from([1, 2, 4, 8]),
    drawn=st.lists(questions, min_size=2, max_size=24),
)
def test_no_question_takes_longer_than_its_share_of_the_slots_lets_it(
    slots: int, drawn: list[Asked]
) -> None:
    asked = [
        Asked(number, one.client, one.policy, one.contested, one.seconds, one.at)
        for number, one in enumerate(drawn)
    ]
    outcomes = together(slots, asked)
    assert len(outcomes) == len(asked)
    longest = max(one.longest for one in outcomes)
    for one in outcomes:
        clients, own = sharing_with(one, outcomes)
        by_itself = alone(slots, one.asked)
        event(f"shared by {min(clients * own, 20) // 5 * 5} or more")
        assert one.seconds <= bound(slots, clients, own, by_itself, longest)


async def flooded(
    crowd: Crowd, easy: list[str], contested: Asked, patience: float
) -> Outcome | None:
    """The outcome of a contested question while clients ask easy ones, one after another, each.

    None if it does not come within so many seconds.
    """
    outcome = None
    numbers = count(1)

    async def ask_on(client: str) -> None:
        while True:
            await crowd.ask(replace(contested, number=next(numbers), client=client, **EASY))

    async with anyio.create_task_group() as tasks:
        for client in easy:
            tasks.start_soon(ask_on, client)
        with anyio.move_on_after(patience):
            outcome = await crowd.ask(contested)
        tasks.cancel_scope.cancel()
    return outcome


SLOTS = 8
CONTESTED = Asked(0, "patient", "settle:budget=40", contested=True, seconds=(5, 20), at=30.0)
EASY = {"policy": "settle", "contested": False, "at": 0.0}


@pytest.mark.parametrize(
    ("easy", "clients", "own"),
    [
        pytest.param([f"client {number}" for number in range(15)], 16, 1, id="of many clients"),
        pytest.param(["patient"] * 15, 1, 16, id="of its own client"),
        pytest.param(["another"] * 15, 2, 1, id="of one other client"),
    ],
)
def test_a_flood_of_easy_questions_does_not_starve_a_contested_one(
    easy: list[str], clients: int, own: int
) -> None:
    crowd, by_itself = Crowd(SLOTS, FairShares(virtual_time.now)), alone(SLOTS, CONTESTED)
    promised = bound(SLOTS, clients, own, by_itself, 20)
    outcome = virtual_time.run(partial(flooded, crowd, easy, CONTESTED, promised))
    assert outcome is not None
    assert outcome.seconds <= 1.5 * clients * own * by_itself
    # The others go on meanwhile.
    assert len(crowd.outcomes) > 2 * clients * own


def test_the_order_for_questions_that_are_all_there_would_starve_it() -> None:
    crowd = Crowd(SLOTS, NearestFirst())
    easy = [f"client {number}" for number in range(15)]
    patience = 3 * bound(SLOTS, 16, 1, alone(SLOTS, CONTESTED), 20)
    assert virtual_time.run(partial(flooded, crowd, easy, CONTESTED, patience)) is None


def test_an_easy_question_is_answered_soon_among_contested_ones() -> None:
    contested = [
        replace(CONTESTED, number=number, client=f"client {number}", policy="majority:budget=64")
        for number in range(1, 13)
    ]
    easy = replace(CONTESTED, client="easy", **EASY | {"at": 400.0})
    [outcome] = [one for one in together(SLOTS, [*contested, easy]) if one.asked == easy]
    assert outcome.seconds <= 4 * alone(SLOTS, replace(easy, at=0.0))
