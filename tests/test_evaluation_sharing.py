"""Evaluations whose questions share a total of tokens: what is spent, kept, told and refused."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_runs import lines, spent

from conviction.answers import kind
from conviction.core import InvalidSettingError, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import AllTracesFailedError, EngineUnavailableError, RecordingError
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import EvaluationPlan, PromptedQuestion, check_plan
from conviction.evaluation.run import EvaluationProgress, evaluate
from conviction.evaluation.stored import RUN, RunWriter, read_run
from conviction.evaluation.summary import Sharing, summarise_sharing
from conviction.policies import policy
from conviction.prompts import PromptStyle
from conviction.store import StoreWriter

pytestmark = pytest.mark.anyio

TOKENS = 10
GONE = EngineUnavailableError(tried="ask", found="the engine is gone", remedy="Start it.")


def number(request: TraceRequest) -> int:
    return int(request.messages[-1].content.split()[2])


def says(answer: object) -> Script:
    return Script.even(f"So the answer is {answer}.", tokens=TOKENS)


def half_contested(request: TraceRequest) -> Script:
    """Even questions are answered rightly; of the odd ones every other trace is wrong."""
    right = number(request) * 10
    return says(right + (number(request) % 2) * (request.trace % 2))


def plan(total: int | None, count: int = 6, name: str = "settle", budget: int = 16) -> Any:
    asked = tuple(
        PromptedQuestion.of(
            DatasetQuestion(f"q{i}", f"What is {i} * 10?", str(i * 10), f"line {i}"),
            answers="number",
            style=PromptStyle.PLAIN,
        )
        for i in range(count)
    )
    return EvaluationPlan(
        asked,
        policy(name, budget=budget),
        answers="number",
        sampling=Sampling(max_tokens=TOKENS),
        total_tokens=total,
    )


async def run(
    wanted: EvaluationPlan, folder: Path, engine: ScriptedEngine | None = None, **options: Any
) -> EvaluationProgress:
    with anyio.fail_after(1_000):
        return await evaluate(
            wanted,
            folder,
            engine=engine or ScriptedEngine(half_contested, concurrency=1),
            answers=kind("number"),
            **options,
        )


async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """Stands in for a worker thread, for which virtual time cannot wait."""
    await anyio.lowlevel.checkpoint()
    return work(*arguments)


def told(progress: EvaluationProgress) -> Sharing:
    assert progress.sharing is not None
    assert progress.sharing.total is not None
    return summarise_sharing(progress.results, progress.sharing.total, progress.sharing.spent)


# --- What comes of it -----------------------------------------------------------------------------


async def test_the_total_settles_what_it_can_and_the_votes_decide_the_rest(tmp_path: Path) -> None:
    engine = ScriptedEngine(half_contested, concurrency=1)
    progress = await run(plan(24 * TOKENS), tmp_path / "run", engine)
    assert progress.complete
    assert sum(engine.generated) == spent(tmp_path / "run") == 24 * TOKENS
    assert told(progress) == Sharing(24 * TOKENS, 24 * TOKENS, 3, 0, 3, 0)
    by_id = {line["id"]: line for line in lines(tmp_path / "run")}
    assert [by_id[f"q{i}"]["ended"] for i in range(6)] == ["settled", "tokens"] * 3
    assert all(line["correct"] is not None for line in by_id.values())


async def test_a_total_for_less_than_a_trace_each_leaves_questions_unanswered_and_wrong(
    tmp_path: Path,
) -> None:
    progress = await run(plan(4 * TOKENS), tmp_path / "run")
    assert told(progress) == Sharing(4 * TOKENS, 4 * TOKENS, 0, 0, 4, 2)
    unanswered = [result for result in progress.results if result.answer is None]
    assert {result.id for result in unanswered} == {"q4", "q5"}
    assert {(result.correct, result.ended) for result in unanswered} == {(False, "tokens")}


async def test_more_than_enough_ends_as_without_a_total(tmp_path: Path) -> None:
    progress = await run(plan(100_000, name="majority", budget=4), tmp_path / "run")
    assert told(progress) == Sharing(100_000, 6 * 4 * TOKENS, 0, 6, 0, 0)


async def test_progress_tells_what_is_settled_contested_and_spent(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    def listen(progress: EvaluationProgress) -> None:
        assert progress.sharing is not None
        seen.append((progress.settled, progress.sharing.contested, progress.sharing.spent))

    await run(plan(40 * TOKENS), tmp_path / "run", on_progress=listen)
    settled, contested, tokens = zip(*seen, strict=True)
    assert list(settled) == sorted(settled)
    assert list(tokens) == sorted(tokens)
    assert (settled[0], tokens[0], tokens[-1]) == (0, 0, 40 * TOKENS)
    assert max(contested) >= 3
    assert len(set(tokens)) > 20


@settings(max_examples=40)
@given(
    total=st.integers(1, 800),
    concurrency=st.integers(1, 9),
    chunk_tokens=st.sampled_from([1, 4]),
    stops=st.lists(st.floats(0, 3), max_size=3),
)
def test_however_often_it_is_interrupted_the_total_holds_over_all_programs(
    total: int,
    concurrency: int,
    chunk_tokens: int,
    stops: list[float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("run") / "run"
    generated: list[int] = []

    async def once(seconds: float) -> EvaluationProgress | None:
        engine = ScriptedEngine(
            half_contested, concurrency=concurrency, chunk_tokens=chunk_tokens, delay=0.1
        )
        try:
            with anyio.move_on_after(seconds):
                return await run(plan(total), folder, engine)
        finally:
            generated.extend(engine.generated)
            assert engine.running == 0
        return None

    async def main() -> EvaluationProgress | None:
        for stop in stops:
            if await once(stop):
                break
            if spent(folder) is not None:
                assert spent(folder) == sum(generated)
        return await once(1e6)

    with patch.object(anyio.to_thread, "run_sync", at_once):
        progress = virtual_time.run(main)
    assert progress is not None
    assert progress.complete
    assert spent(folder) == sum(generated) == told(progress).spent
    assert sum(generated) <= total + concurrency * chunk_tokens


# --- Going on -------------------------------------------------------------------------------------


async def test_a_run_that_is_done_spends_nothing_more(tmp_path: Path) -> None:
    first = await run(plan(24 * TOKENS), tmp_path / "run")
    engine = ScriptedEngine(half_contested)
    again = await run(plan(24 * TOKENS), tmp_path / "run", engine)
    assert engine.generated == []
    assert told(again) == told(first)


@pytest.mark.parametrize("total", [None, 23 * TOKENS, 25 * TOKENS])
async def test_another_total_is_another_run(tmp_path: Path, total: int | None) -> None:
    await run(plan(24 * TOKENS), tmp_path / "run")
    with pytest.raises(InvalidSettingError, match=f"total_tokens {total} against 240"):
        check_plan(plan(total), tmp_path / "run")


async def test_a_run_without_a_verdict_that_begins_again_with_another_total_owes_nothing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    description = plan(100).description("x", None)
    with RunWriter(folder, description) as writer:
        writer.spend(90)
    with RunWriter(folder, description) as writer:
        assert writer.spent == 90
    with RunWriter(folder, plan(200).description("x", None)) as writer:
        assert writer.spent == 0


async def test_tokens_of_questions_that_failed_count_when_they_are_asked_again(
    tmp_path: Path,
) -> None:
    def script(request: TraceRequest) -> Script:
        right = half_contested(request)
        return replace(right, fault=GONE, fault_after=5) if number(request) == 1 else right

    wanted = plan(100_000, count=3, name="majority", budget=2)
    failed = await run(wanted, tmp_path / "run", ScriptedEngine(script))
    assert told(failed).spent == 2 * (2 * TOKENS + 5)
    mended = await run(wanted, tmp_path / "run")
    assert mended.complete
    assert told(mended).spent == 2 * (3 * TOKENS + 5)
    assert sum(result.tokens for result in mended.results) == 2 * 3 * TOKENS


async def test_results_count_even_if_the_number_beside_them_is_lower(tmp_path: Path) -> None:
    await run(plan(24 * TOKENS), tmp_path / "run")
    with StoreWriter(tmp_path / "run", RUN) as store, store.transaction():
        store.delete("spent", "1")
        store.insert("spent", tokens=100)
    assert told(await run(plan(24 * TOKENS), tmp_path / "run")).spent == 24 * TOKENS


async def test_a_damaged_number_is_told_and_not_passed_over(tmp_path: Path) -> None:
    await run(plan(24 * TOKENS), tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "run")) as file, file:
        file.execute("UPDATE spent SET tokens = 100")
    with pytest.raises(RecordingError, match=r"row \d+ of table spent is damaged"):
        await run(plan(24 * TOKENS), tmp_path / "run")


async def test_the_number_never_falls(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", plan(10**12).description("x", None)) as writer:
        for tokens in (5, 10**11, 7):
            writer.spend(tokens)
    assert spent(tmp_path / "run") == 10**11


# --- What goes wrong ------------------------------------------------------------------------------


async def test_a_disk_that_refuses_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RunWriter, tokens: int) -> None:
        del self, tokens
        raise RecordingError(tried="write", found="No space left", remedy="Make room.")

    monkeypatch.setattr(RunWriter, "spend", refuse)
    engine = ScriptedEngine(half_contested, concurrency=2, delay=0.001)
    with pytest.raises(RecordingError, match="No space left"):
        await run(plan(1_000), tmp_path / "run", engine)
    assert engine.running == 0


async def test_an_engine_that_goes_ends_the_run_before_questions_end_with_too_few_votes(
    tmp_path: Path,
) -> None:
    def script(request: TraceRequest) -> Script:
        right = half_contested(request)
        return replace(right, fault=GONE) if request.trace >= 2 else right

    with pytest.raises(AllTracesFailedError, match="the engine is gone"):
        await run(plan(10_000, count=40), tmp_path / "run", ScriptedEngine(script, concurrency=4))
    assert read_run(tmp_path / "run").results == ()
    assert spent(tmp_path / "run") == 40 * 2 * TOKENS


@pytest.mark.parametrize("changes", [{"questions_at_once": 3}, {"time_limit": 5.0}])
def test_what_keeps_questions_from_sharing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettingError, match=f"total_tokens and {next(iter(changes))}"):
        replace(plan(100), **changes)


@pytest.mark.parametrize("total", [0, -1, 1.5])
def test_a_total_is_a_whole_number_of_at_least_one(total: int) -> None:
    with pytest.raises(InvalidSettingError, match="total_tokens"):
        plan(total)


def test_a_run_without_a_total_leaves_no_number(tmp_path: Path) -> None:
    anyio.run(run, plan(None), tmp_path / "run")
    assert spent(tmp_path / "run") is None
