"""`think_many`: many questions, one engine, and perhaps one total of tokens."""

import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

import anyio
import numpy as np
import pytest
import virtual_time
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conviction import athink_many, think_many
from conviction.answers.number import NumberAnswers
from conviction.core import InvalidSettingError, Question, Sampling
from conviction.engines.base import Capabilities, Chunk, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    AllTracesFailedError,
    AnswerError,
    CannotContinueError,
    ConvictionError,
    EngineError,
    EngineUnavailableError,
    MissingLogprobsError,
    NothingGeneratedError,
    StreamError,
)
from conviction.events import Event, TraceFinished, TraceStarted
from conviction.policies import Policy, Start, policy
from conviction.policies.base import Conditions
from conviction.policies.settle import SettleConfident
from conviction.thinking import RESTARTS
from conviction.verdict import Verdict

TOKENS = 10
BROKE = StreamError(tried="read the stream", found="it broke", remedy="Retry.")
GONE = EngineUnavailableError(tried="ask", found="the engine is gone", remedy="Start it.")


class Numbers(NumberAnswers):
    """Numbers; what is broken cannot be compared."""

    quick = True

    def extract(self, text: str) -> str | None:
        if "broken" in text:
            raise AnswerError(tried="compare", found="it is broken", remedy="Mend it.")
        return super().extract(text)


def question(number: int) -> Question:
    return Question.ask(f"Question {number}", id=f"q{number}")


def number_of(request: TraceRequest) -> int:
    return int(request.messages[-1].content.split()[-1])


def says(answer: object, tokens: int = TOKENS) -> Script:
    return Script.even(f"So the answer is {answer}.", tokens=tokens)


def verdicts(outcomes: list[Verdict | ConvictionError]) -> list[Verdict]:
    assert all(isinstance(outcome, Verdict) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Verdict)]


def contested(request: TraceRequest) -> Script:
    """Question 0 is easy; the others get two answers by turns."""
    return says(7 if number_of(request) == 0 else request.trace % 2)


def think(
    engine: ScriptedEngine, count: int, name: str = "settle", budget: int = 16, **options: Any
) -> list[Verdict]:
    return verdicts(
        think_many(
            [question(number) for number in range(count)],
            engine=engine,
            policy=name,
            budget=budget,
            answers="number",
            **options,
        )
    )


# --- What comes out -------------------------------------------------------------------------------


def test_each_question_gets_the_verdict_that_it_gets_alone() -> None:
    together = think(ScriptedEngine(contested, concurrency=1), 4)
    for number, verdict in enumerate(together):
        [alone] = verdicts(
            think_many(
                [question(number)],
                engine=ScriptedEngine(contested, concurrency=1),
                policy="settle",
                answers="number",
            )
        )
        assert verdict.question.id == f"q{number}"
        assert (verdict.tally, verdict.ended, verdict.usage) == (
            *(alone.tally, alone.ended),
            alone.usage,
        )


def test_the_total_goes_to_those_it_settles_and_the_others_end_with_the_votes_they_have() -> None:
    engine = ScriptedEngine(contested, concurrency=1)
    first, *others = think(engine, 3, total_tokens=10 * TOKENS, sampling=Sampling(max_tokens=20))
    assert (first.answer, first.ended, first.warnings) == ("7", "settled", ())
    assert sum(engine.generated) == 10 * TOKENS
    assert sum(len(verdict.traces) for verdict in others) == 6
    for verdict in others:
        assert (verdict.ended, verdict.answer) == ("tokens", "0")
        assert "The total of tokens was spent before the verdict was settled." in verdict.warnings


def test_a_question_that_never_had_its_turn_has_no_answer_and_says_why() -> None:
    engine = ScriptedEngine(contested, concurrency=1)
    found = think(engine, 3, total_tokens=2 * TOKENS, sampling=Sampling(max_tokens=10))
    assert [verdict.answer for verdict in found] == ["7", "0", None]
    assert [verdict.ended for verdict in found] == ["tokens"] * 3
    assert found[2].warnings == (
        "The total of tokens was spent before this question had its turn.",
    )
    assert found[2].traces == ()


def test_a_trace_that_ends_with_the_last_token_of_the_total_votes() -> None:
    engine = ScriptedEngine([says(5)], concurrency=4)
    [verdict] = think(engine, 1, "majority", total_tokens=4 * TOKENS)
    assert (verdict.tally.entries[0].count, verdict.usage.generated) == (4, 4 * TOKENS)


def test_a_total_less_than_one_trace_is_spent_on_one() -> None:
    engine = ScriptedEngine([says(5, tokens=100)], concurrency=4)
    found = think(engine, 3, total_tokens=30)
    assert engine.generated == [31]
    assert [verdict.usage.cancelled for verdict in found] == [31, 0, 0]
    assert [verdict.answer for verdict in found] == [None] * 3


def test_lost_tokens_of_broken_streams_count_towards_the_total() -> None:
    engine = ScriptedEngine([replace(says(5), fault=BROKE, fault_after=6)], concurrency=1)
    [outcome] = think_many(
        [question(0)],
        engine=engine,
        policy="majority",
        answers="number",
        total_tokens=40,
        sampling=Sampling(max_tokens=10),
        restarts=2,
    )
    assert isinstance(outcome, Verdict)
    assert sum(engine.generated) == 41
    assert (outcome.ended, outcome.usage.generated) == ("tokens", 41)


def test_a_question_that_fails_leaves_the_others_their_verdicts() -> None:
    def script(request: TraceRequest) -> Script:
        return replace(says(1), fault=GONE) if number_of(request) == 1 else says(1)

    outcomes = think_many(
        [question(number) for number in range(3)],
        engine=ScriptedEngine(script),
        policy="settle",
        answers="number",
    )
    assert [type(outcome) for outcome in outcomes] == [Verdict, AllTracesFailedError, Verdict]


def test_events_tell_their_question() -> None:
    seen: list[tuple[int, Event]] = []
    think(
        ScriptedEngine(contested),
        3,
        on_event=lambda number, happened: seen.append((number, happened)),
    )
    ended = Counter(number for number, happened in seen if isinstance(happened, TraceFinished))
    assert set(ended) == {0, 1, 2}
    assert ended[0] < ended[1]


def test_no_questions_have_no_verdicts() -> None:
    assert think_many([], total_tokens=5) == []


def test_think_many_answers_inside_a_running_loop() -> None:
    async def cell() -> list[Verdict]:
        return think(ScriptedEngine(contested), 2)

    assert [verdict.answer for verdict in anyio.run(cell)] == ["7", "0"]


def test_a_time_limit_and_an_interrupt_end_all_with_the_votes_they_have() -> None:
    async def main() -> None:
        slow = ScriptedEngine(contested, delay=0.01)
        interrupt = anyio.Event()
        interrupt.set()
        for options in ({"time_limit": 0.5}, {"interrupt": interrupt}):
            found = await athink_many(
                [question(number) for number in range(40)],
                engine=slow,
                policy="majority",
                budget=100,
                answers="number",
                **options,  # pyright: ignore[reportArgumentType]
            )
            assert slow.running == 0
            # Without a single token, there is no verdict.
            ended = {one.ended for one in found if isinstance(one, Verdict | NothingGeneratedError)}
            assert ended == ({"time"} if "time_limit" in options else {"interrupted"})

    virtual_time.run(main)


class Silent(ScriptedEngine):
    """Says nothing of itself for a while, at the first time of asking."""

    def __init__(self, seconds: float) -> None:
        super().__init__(contested, delay=0.1)
        self._seconds = seconds

    async def capabilities(self) -> Capabilities:
        seconds, self._seconds = self._seconds, 0.0
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            self._seconds = seconds
            raise
        return await super().capabilities()


@pytest.mark.parametrize("ended", ["time", "interrupted"])
def test_an_engine_that_says_nothing_of_itself_holds_up_no_end(ended: str) -> None:
    async def main() -> None:
        interrupt = anyio.Event()
        async with anyio.create_task_group() as tasks:
            if ended == "interrupted":
                tasks.start_soon(interrupt_after, 2.0, interrupt)
            found = await athink_many(
                [question(0), question(1)],
                engine=Silent(inf),
                answers="number",
                time_limit=2.0 if ended == "time" else None,
                interrupt=interrupt,
            )
        endings = [one.ended for one in found if isinstance(one, NothingGeneratedError)]
        assert endings == [ended, ended]

    virtual_time.run(main)


async def interrupt_after(seconds: float, interrupt: anyio.Event) -> None:
    await anyio.sleep(seconds)
    interrupt.set()


def test_the_time_that_an_engine_takes_to_say_what_it_can_do_counts() -> None:
    async def main() -> None:
        found = verdicts(
            await athink_many(
                [question(0)], engine=Silent(1.5), answers="number", policy="majority", time_limit=2
            )
        )
        assert [verdict.ended for verdict in found] == ["time"]
        assert virtual_time.now() <= 2.0 + 1e-6

    virtual_time.run(main)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, -5, 2.5])
def test_a_total_that_is_none_is_refused_before_anything_starts(total: int) -> None:
    engine = ScriptedEngine(contested)
    with pytest.raises(InvalidSettingError, match="total_tokens"):
        think(engine, 2, total_tokens=total)
    assert engine.generated == []


@pytest.mark.parametrize("limit", [-1.0, nan])
def test_a_time_limit_that_is_none_is_refused_before_anything_starts(limit: float) -> None:
    with pytest.raises(InvalidSettingError, match="time_limit"):
        think(ScriptedEngine(contested), 2, time_limit=limit)


def test_one_text_is_no_list_of_questions() -> None:
    with pytest.raises(InvalidSettingError, match="one text in place of a list"):
        think_many("What is 2 + 2?", engine=ScriptedEngine(contested))


def test_every_question_is_checked_before_anything_starts() -> None:
    engine = ScriptedEngine(contested)
    with pytest.raises(InvalidSettingError, match="it is empty"):
        think_many(["2 + 2?", " "], engine=engine)
    assert engine.generated == []


def test_what_concerns_the_engine_ends_all_as_it_is() -> None:
    with pytest.raises(MissingLogprobsError):
        think(ScriptedEngine(contested, top_k=0), 4, "deepconf-low")


def test_an_engine_that_cannot_continue_is_refused_before_any_question_begins() -> None:
    engine = ScriptedEngine(contested, continues=False)
    with pytest.raises(CannotContinueError):
        think(engine, 4, "settle-regenerate")
    assert engine.generated == []


@pytest.mark.parametrize("total", [30, 100, 130, 350, 700])
def test_continued_traces_are_paid_for_by_the_total_and_never_exceed_it(total: int) -> None:
    engine = ScriptedEngine(contested, concurrency=1)
    found = think(engine, 4, "settle-regenerate", total_tokens=total)
    assert sum(verdict.usage.generated for verdict in found) == sum(engine.generated) <= total
    continued = sum(one.continues is not None for verdict in found for one in verdict.traces)
    whole = sum(verdict.ended == "contested" for verdict in found)
    assert 4 * whole <= continued
    assert bool(continued) == (total > 130)
    assert bool(whole) == (total > 350)


class Uncounting(ScriptedEngine):
    """Gives texts, and no token."""

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield replace(chunk, confidences=np.empty(0, np.float32))


def test_an_engine_that_counts_no_tokens_is_refused_where_there_is_a_total() -> None:
    with pytest.raises(EngineError, match="nothing can be counted"):
        think(Uncounting(contested), 3, total_tokens=100)
    assert len(think(Uncounting(contested), 3)) == 3


# --- Whatever happens -----------------------------------------------------------------------------


@dataclass
class Crowd:
    """Many questions at an engine of random speeds, lengths, answers and failures."""

    questions: int
    policy: Policy
    concurrency: int
    chunk_tokens: int
    max_tokens: int
    total: int | None
    faults: float
    seed: int
    events: list[tuple[int, Event]] = field(default_factory=list)
    most_running: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311  # speeds, not secrets
        self.engine = ScriptedEngine(
            self.script,
            concurrency=self.concurrency,
            chunk_tokens=self.chunk_tokens,
            pace=self.pace,
        )

    def script(self, request: TraceRequest) -> Script:
        number = number_of(request)
        own = random.Random(f"{self.seed}/{number}/{request.trace}")  # noqa: S311
        script = says(own.choice([number, number, 1, 2]), tokens=own.randint(1, 40))
        if own.random() < self.faults / 10:
            return replace(script, text="broken")
        if own.random() < 0.1:
            return replace(script, text="no idea")
        if own.random() < self.faults:
            fault = own.choice([BROKE, GONE])
            return replace(script, fault=fault, fault_after=own.randint(0, 40))
        return script

    async def pace(self, _: TraceRequest) -> None:
        self.most_running = max(self.most_running, self.engine.running)
        await anyio.sleep(self.chance.choice([0.0, 0.1, 0.5, 3.0]))

    async def think(self) -> list[Verdict | ConvictionError]:
        return await athink_many(
            [question(number) for number in range(self.questions)],
            engine=self.engine,
            policy=self.policy,
            answers=Numbers(),
            sampling=Sampling(max_tokens=self.max_tokens),
            total_tokens=self.total,
            on_event=lambda number, happened: self.events.append((number, happened)),
        )

    @property
    def first(self) -> int:
        """Traces that every question wants at first."""
        actions = self.policy.fresh().begin(Conditions(self.concurrency, self.max_tokens, 20))
        return sum(action.count for action in actions if isinstance(action, Start))


policies: st.SearchStrategy[Policy] = st.one_of(
    st.builds(
        policy,
        st.sampled_from(["settle", "settle-lean", "majority", "adaptive-consistency", "esc"]),
        budget=st.integers(2, 12),
    ),
    st.builds(policy, st.sampled_from(["deepconf-low", "deepconf-high"]), budget=st.just(12)),
    st.builds(SettleConfident, budget=st.integers(2, 12), keep=st.just(0.5), warmup=st.just(2)),
)
crowds = st.builds(
    Crowd,
    questions=st.integers(1, 8),
    policy=policies,
    concurrency=st.integers(1, 9),
    chunk_tokens=st.sampled_from([1, 1, 3, 50]),
    max_tokens=st.sampled_from([25, 40]),
    total=st.one_of(st.none(), st.integers(1, 300), st.integers(200, 3_000)),
    faults=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=300)
@given(crowds)
def test_whatever_happens_every_question_ends_and_the_total_holds(crowd: Crowd) -> None:
    outcomes = virtual_time.run(crowd.think)
    assert len(outcomes) == crowd.questions
    assert crowd.engine.running == 0
    assert crowd.most_running <= crowd.concurrency
    spent = sum(crowd.engine.generated)
    finished = [seen.trace for _, seen in crowd.events if isinstance(seen, TraceFinished)]
    heard = sum(one.tokens + one.lost_tokens for one in finished)
    # Of traces that still run when comparing answers fails, nobody hears.
    if any(isinstance(outcome, AnswerError) for outcome in outcomes):
        assert heard <= spent
    else:
        assert heard == spent
    for outcome in outcomes:
        assert isinstance(outcome, Verdict | AllTracesFailedError | AnswerError)
    check_turns(crowd, outcomes)
    cut = [one for one in outcomes if isinstance(one, Verdict) and one.ended == "tokens"]
    event(f"{len(cut) > 0} cut of {len(outcomes) > 1}")
    if crowd.total is None:
        assert cut == []
        return
    assert spent <= crowd.total + crowd.concurrency * crowd.chunk_tokens
    if cut:
        # What is left covers no trace: none was cut short before its time.
        again = RESTARTS + 1
        assert spent > crowd.total - again * crowd.max_tokens or not spent


def check_turns(crowd: Crowd, outcomes: list[Verdict | ConvictionError]) -> None:
    """Nobody had a further trace, or two first ones more, while another lacked a first one."""
    waited = waited_until(crowd, outcomes)
    begun: Counter[int] = Counter()
    for position, (number, seen) in enumerate(crowd.events):
        if isinstance(seen, TraceStarted):
            for other in range(crowd.questions):
                if waited[other] > position and begun[other] < crowd.first:
                    assert begun[number] <= begun[other]
            begun[number] += 1
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, Verdict):
            assert len(outcome.traces) == begun[number] <= crowd.policy.budget


def waited_until(crowd: Crowd, outcomes: list[Verdict | ConvictionError]) -> dict[int, float]:
    """Until which event a question surely waited for another trace."""
    # Until then it waited for sure: it began another, or the total ended before it could.
    waited: dict[int, float] = dict.fromkeys(range(crowd.questions), -1)
    for position, (number, seen) in enumerate(crowd.events):
        if isinstance(seen, TraceStarted):
            waited[number] = position
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, Verdict) and outcome.ended == "tokens":
            waited[number] = inf
    return waited


@settings(max_examples=150)
@given(crowds, st.floats(0, 20))
def test_cancelling_the_caller_at_any_time_frees_the_engine(crowd: Crowd, moment: float) -> None:
    async def main() -> bool:
        with anyio.move_on_after(moment) as scope:
            await crowd.think()
        assert crowd.engine.running == 0
        before = list(crowd.engine.generated)
        await anyio.sleep(100)
        assert crowd.engine.generated == before
        return scope.cancelled_caught

    event(f"cancelled: {virtual_time.run(main)}")
