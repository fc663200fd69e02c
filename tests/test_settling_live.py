"""Rules that settle early, live: whatever answers, engines and faults do, they end in budget."""

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.answers import kind
from conviction.core import FinishReason, Question
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import AllTracesFailedError, StreamError
from conviction.policies import Policy, policy
from conviction.thinking import deliberate
from conviction.verdict import Verdict

RULES = ["settle", "settle-lean", "settle-exact", "adaptive-consistency", "esc"]
SETTLES = {"settle": 4, "settle-lean": 3, "settle-exact": 4, "adaptive-consistency": 4, "esc": 4}
"""Traces that agree until each of them is done."""


async def think(engine: ScriptedEngine, steering: Policy, **options: Any) -> Verdict:
    with anyio.fail_after(20):
        return await deliberate(
            Question.ask("?"), engine=engine, policy=steering, answers=kind("math"), **options
        )


def saying(answers: Sequence[str | None], tokens: int = 4) -> list[Script]:
    return [Script.even(f"Answer: {one}" if one else "Hm.", tokens=tokens) for one in answers]


def failing() -> Script:
    fault = StreamError(tried="read", found="nothing", remedy="Retry.")
    return Script("", np.full(2, 5.0, np.float32), fault=fault, fault_after=1)


def check_the_books(verdict: Verdict, engine: ScriptedEngine) -> None:
    """No trace is over budget, none runs on, and every token is counted."""
    assert len(verdict.traces) <= verdict.budget
    assert engine.running == 0
    assert verdict.usage.generated == sum(engine.generated)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_equal_answers_in_different_words_settle_it_like_one(name: str) -> None:
    ways = [r"\frac{1}{2}", "0.5", "2/4", r"\dfrac12", "1/2", ".5", "3/6", "0.50"]
    engine = ScriptedEngine(saying(ways), concurrency=1)
    verdict = await think(engine, policy(name, budget=8), seed=1)
    assert verdict.ended == "settled"
    assert len(verdict.traces) == SETTLES[name]
    assert verdict.tally.leader is not None
    assert verdict.tally.leader.count == SETTLES[name]
    check_the_books(verdict, engine)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_an_answer_whose_equality_takes_a_comparison_counts_before_the_rule_is_asked(
    name: str,
) -> None:
    # Only a comparison in another process tells these apart from different ones.
    ways = ["x^2 - 1", "(x - 1)(x + 1)", "(x + 1)(x - 1)", "x^2 - 1"]
    engine = ScriptedEngine(saying(ways), concurrency=4)
    verdict = await think(engine, policy(name, budget=4))
    assert [entry.count for entry in verdict.tally.entries] == [len(verdict.tally.voters)]
    assert len(verdict.tally.voters) >= SETTLES[name]
    check_the_books(verdict, engine)


@pytest.mark.anyio
@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("name", RULES)
async def test_without_a_single_answer_the_budget_ends_it(name: str, slots: int) -> None:
    engine = ScriptedEngine(saying([None]), concurrency=slots)
    verdict = await think(engine, policy(name, budget=9))
    assert (verdict.answer, verdict.ended, len(verdict.traces)) == (None, "budget", 9)
    assert any("9 of 9 traces ended without an answer" in one for one in verdict.warnings)
    check_the_books(verdict, engine)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_a_tie_at_the_budget_shows_the_answer_seen_first_and_says_so(name: str) -> None:
    engine = ScriptedEngine(saying(["7", "5"]), concurrency=1)
    verdict = await think(engine, policy(name, budget=8))
    assert (verdict.answer, verdict.ended, verdict.share) == ("7", "budget", 0.5)
    assert verdict.lead == pytest.approx(0.5)
    assert verdict.tally.tied
    assert any(warning.startswith("Tied: ") for warning in verdict.warnings)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_a_budget_of_one_is_one_trace(name: str) -> None:
    if name == "esc":
        expected = "budget"
    else:
        expected = (await think(ScriptedEngine(saying(["7"])), policy(name, budget=1))).ended
    engine = ScriptedEngine(saying(["7"]), concurrency=8)
    verdict = await think(engine, policy(name, budget=1))
    assert (verdict.answer, verdict.ended, len(verdict.traces)) == ("7", expected, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_traces_that_fail_are_replaced_as_far_as_the_budget_goes(name: str) -> None:
    scripts = [failing() if number % 2 else saying(["7"])[0] for number in range(32)]
    engine = ScriptedEngine(scripts, concurrency=2)
    verdict = await think(engine, policy(name, budget=32), restarts=0)
    assert (verdict.answer, verdict.tally.share) == ("7", 1.0)
    if name != "esc":  # It wants a window of traces that all agree, and a failed one does not.
        assert verdict.ended == "settled"
        assert len(verdict.traces) < 16
    assert verdict.finishes()[FinishReason.ERROR] >= 1
    check_the_books(verdict, engine)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_if_all_fail_it_ends_with_the_cause(name: str) -> None:
    engine = ScriptedEngine([failing()], concurrency=3)
    with pytest.raises(AllTracesFailedError, match="nothing"):
        await think(engine, policy(name, budget=7), restarts=0)
    assert len(engine.generated) == 7


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_an_engine_that_is_done_before_anybody_looks_gets_no_more_than_it_needs(
    name: str,
) -> None:
    engine = ScriptedEngine(saying(["7"], tokens=2), concurrency=64, chunk_tokens=64)
    verdict = await think(engine, policy(name, budget=64))
    assert verdict.ended == "settled"
    # One round ahead at most: what it starts with, and three times what one vote leaves to need.
    assert len(verdict.traces) <= 10
    check_the_books(verdict, engine)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RULES)
async def test_a_trace_that_never_ends_does_not_hold_up_a_settled_verdict(name: str) -> None:
    async def stuck_after_the_first_four(request: TraceRequest) -> None:
        if request.trace >= 4:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    engine = ScriptedEngine(saying(["7"]), concurrency=64, pace=stuck_after_the_first_four)
    verdict = await think(engine, policy(name, budget=64))
    assert (verdict.answer, verdict.ended) == ("7", "settled")
    check_the_books(verdict, engine)


@settings(max_examples=60)
@given(
    steering=st.builds(policy, st.sampled_from(RULES), budget=st.integers(1, 20)),
    slots=st.sampled_from([1, 2, 5, 64]),
    answers=st.lists(st.sampled_from(["1", "2", "3", None, "fails"]), min_size=20, max_size=20),
    lengths=st.lists(st.integers(1, 12), min_size=20, max_size=20),
    chunk=st.integers(1, 8),
)
def test_whatever_happens_it_ends_in_budget_with_its_books_right(
    steering: Policy,
    slots: int,
    answers: list[str | None],
    lengths: list[int],
    chunk: int,
) -> None:
    scripts = [
        failing() if answer == "fails" else saying([answer], tokens)[0]
        for answer, tokens in zip(answers, lengths, strict=True)
    ]
    engine = ScriptedEngine(scripts, concurrency=slots, chunk_tokens=chunk)
    budget = steering.budget
    try:
        verdict = anyio.run(lambda: think(engine, steering, restarts=0))
    except AllTracesFailedError:
        assert set(answers[:budget]) == {"fails"}
        return
    assert verdict.ended in {"settled", "budget"}
    if verdict.ended == "budget":
        assert len(verdict.traces) == budget
    check_the_books(verdict, engine)
