"""Evaluations over many questions: what is asked, kept, refused and asked again."""

import re
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_runs import as_folder, described, lines
from tens import questions

from conviction.answers import kind
from conviction.answers.number import NumberAnswers
from conviction.core import Sampling
from conviction.engines.base import Capabilities, Chunk, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    AllTracesFailedError,
    CannotContinueError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    MissingLogprobsError,
    NothingGeneratedError,
    RecordingError,
    StreamError,
)
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import EvaluationPlan, PromptedQuestion, check_plan
from conviction.evaluation.run import EvaluationProgress, evaluate
from conviction.evaluation.stored import RUN, RunWriter, read_run
from conviction.evaluation.summary import summarise
from conviction.policies import policy
from conviction.recordings import Pool
from conviction.store import StoreWriter
from conviction.thinking import deliberate
from conviction.verdict import Usage

pytestmark = pytest.mark.anyio

Answers = Callable[[int, TraceRequest], Script]


def number(request: TraceRequest) -> int:
    return int(request.messages[-1].content.split()[2])


def says(answer: object) -> Script:
    return Script.even(f"So the answer is {answer}.", tokens=4)


def rightly(request: TraceRequest) -> Script:
    return says(number(request) * 10)


def failing(*numbers: int) -> Callable[[TraceRequest], Script]:
    """Every trace of these questions fails."""
    gone = EngineUnavailableError(tried="ask", found="the engine is gone", remedy="Start it.")

    def script(request: TraceRequest) -> Script:
        right = rightly(request)
        return replace(right, fault=gone, fault_after=2) if number(request) in numbers else right

    return script


def plan(count: int = 6, name: str = "majority", budget: int = 2) -> EvaluationPlan:
    return EvaluationPlan(
        questions(count),
        policy(name, **({} if name == "single" else {"budget": budget})),
        answers="number",
        sampling=Sampling(),
        questions_at_once=1,
    )


async def run(
    wanted: EvaluationPlan,
    folder: Path,
    engine: ScriptedEngine | None = None,
    **options: object,
) -> EvaluationProgress:
    with anyio.fail_after(20):
        return await evaluate(
            wanted,
            folder,
            engine=engine or ScriptedEngine(rightly),
            answers=kind("number"),
            **options,  # pyright: ignore[reportArgumentType]
        )


async def test_every_question_gets_a_line_with_its_verdict_and_its_cost(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda request: says(10) if request.trace else says("10.0"))
    progress = await run(plan(3), tmp_path / "run", engine)
    assert progress.complete
    found = lines(tmp_path / "run")
    assert [line["id"] for line in found] == ["q0", "q1", "q2"]
    assert [line["correct"] for line in found] == [False, True, False]
    assert {line["answer"] for line in found} == {"10"}
    assert {(line["share"], line["ended"], line["tokens"]) for line in found} == {(1, "budget", 8)}
    assert [line["lead"] for line in found] == pytest.approx([0.875] * 3)
    assert {line["votes"] for line in found} == {2}
    assert read_run(tmp_path / "run").results == tuple(progress.results)
    told = described(tmp_path / "run")
    assert told["settings"]["policy"] == {"name": "majority", "budget": 2}
    assert (told["model"], told["engine"], told["top_k"]) == ("scripted", "scripted", 20)
    assert told["data"]["questions"] == 3
    assert "conviction" in told["versions"]


@settings(max_examples=25)
@given(
    said=st.lists(st.sampled_from(["10", "20", "30.0", "nothing"]), min_size=1, max_size=6),
    name=st.sampled_from(["single", "majority", "deepconf-offline", "esc"]),
    at_once=st.integers(1, 4),
)
def test_a_question_among_others_has_the_verdict_that_it_has_alone(
    said: list[str], name: str, at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run") / "run"
    wanted = replace(plan(4, name, budget=6), questions_at_once=at_once)

    def script(request: TraceRequest) -> Script:
        answer = said[(request.trace + number(request)) % len(said)]
        return Script(f"So the answer is {answer}.", np.full(4, 5.0 + request.trace, np.float32))

    async def both() -> None:
        # One trace at a time, so that the order in which traces end is the same.
        together = await run(wanted, folder, ScriptedEngine(script, concurrency=1))
        for asked in wanted.asked:
            alone = await deliberate(
                asked.question,
                engine=ScriptedEngine(script, concurrency=1),
                policy=wanted.policy,
                answers=kind("number"),
            )
            [result] = [one for one in together.results if one.id == asked.recorded.id]
            assert (result.answer, result.share, result.usage, result.ended) == (
                *(alone.answer, alone.share),
                *(alone.usage, alone.ended),
            )

    anyio.run(both)


async def test_an_answer_that_cannot_be_compared_with_the_right_one_is_told(
    tmp_path: Path,
) -> None:
    class Failing(NumberAnswers):
        def decided(self, first: str, second: str) -> bool:
            return "0" not in (first, second)

        def equivalent(self, first: str, second: str) -> bool | None:
            del first, second

    engine = ScriptedEngine(lambda _: says(10))
    with anyio.fail_after(20):
        await evaluate(plan(3), tmp_path / "run", engine=engine, answers=Failing())
    found = lines(tmp_path / "run")
    assert [line["correct"] for line in found] == [False, True, False]
    told = "The answer could not be compared with the right one, and counts as wrong."
    assert [told in line["warnings"] for line in found] == [True, False, False]


async def test_questions_share_the_engine_a_few_at_a_time(tmp_path: Path) -> None:
    running: set[int] = set()
    most = 0

    async def pace(request: TraceRequest) -> None:
        nonlocal most
        running.add(number(request))
        most = max(most, len(running))
        await anyio.sleep(0.001)

    def done(progress: EvaluationProgress) -> None:
        running.difference_update(int(result.id[1:]) for result in progress.results)

    engine = ScriptedEngine(rightly, concurrency=8, pace=pace)
    wanted = replace(plan(20, budget=4), questions_at_once=None)
    progress = await run(wanted, tmp_path / "run", engine, on_progress=done)
    assert progress.complete
    assert most == 8 / 4 + 1


@pytest.mark.parametrize(
    ("name", "budget", "expected"), [("single", 1, 65), ("majority", 64, 2), ("majority", 16, 5)]
)
async def test_as_many_questions_run_at_once_as_keep_the_engine_busy(
    name: str, budget: int, expected: int
) -> None:
    wanted = replace(plan(1, name, budget), questions_at_once=None)
    assert wanted.at_once(Capabilities("m", 20, concurrency=64)) == expected


# --- Going on -------------------------------------------------------------------------------------


async def test_a_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    engine = ScriptedEngine(rightly)
    with anyio.CancelScope() as scope:
        await run(
            plan(6),
            tmp_path / "run",
            engine,
            on_progress=lambda progress: len(progress.results) == 2 and scope.cancel(),
        )
    assert scope.cancelled_caught
    kept = lines(tmp_path / "run")
    assert len(kept) == 2
    again = ScriptedEngine(rightly)
    progress = await run(plan(6), tmp_path / "run", again)
    assert (progress.kept, progress.complete) == (2, True)
    assert len(again.generated) == 4 * 2
    assert lines(tmp_path / "run")[:2] == kept
    assert sorted(str(line["id"]) for line in lines(tmp_path / "run")) == [
        f"q{i}" for i in range(6)
    ]
    nothing = ScriptedEngine(rightly)
    await run(plan(6), tmp_path / "run", nothing)
    assert nothing.generated == []


async def test_a_verdict_that_is_in_when_ctrl_c_comes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.CancelScope() as scope:

        def grade(*_: object) -> bool:
            anyio.from_thread.run_sync(scope.cancel)
            return True

        monkeypatch.setattr("conviction.evaluation.run.compared", grade)
        await run(plan(3), tmp_path / "run")
    assert scope.cancelled_caught
    assert [(line["id"], line["correct"]) for line in lines(tmp_path / "run")] == [("q0", True)]


async def test_a_run_goes_on_from_any_transaction_that_was_cut_short(tmp_path: Path) -> None:
    """What a program that is killed leaves is a beginning of the write-ahead log."""
    path, log = tmp_path / "run", tmp_path / "run-wal"
    description = plan(3).description("x", Capabilities("scripted", 20, 64))
    with RunWriter(path, description) as writer:
        for result in (await run(plan(3), tmp_path / "whole")).results:
            writer.append(result)
        file, whole = path.read_bytes(), log.read_bytes()
    counts: list[int] = []
    for size in (*range(0, len(whole), 1013), len(whole)):
        path.write_bytes(file)
        log.write_bytes(whole[:size])
        (tmp_path / "run-shm").unlink(missing_ok=True)
        left = lines(path)
        counts.append(len(left))
        assert [line["id"] for line in left] == ["q0", "q1", "q2"][: len(left)]
        check_plan(plan(3), path)
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


async def test_damage_is_named_and_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run"
    await run(plan(2), path)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE results SET json = replace(json, '10', '11') WHERE id = 2")
    damaged = path.read_bytes()
    engine = ScriptedEngine(rightly)
    with pytest.raises(RecordingError, match="row 2 of table results is damaged"):
        await run(plan(2), path, engine)
    assert engine.generated == []
    assert path.read_bytes() == damaged


async def test_a_result_that_was_taken_out_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    await run(plan(2), path)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM results WHERE id = 2")
    with pytest.raises(RecordingError, match="table results holds 1 whole rows, and 2"):
        read_run(path)


async def test_a_run_of_an_earlier_version_is_read_and_never_added_to(tmp_path: Path) -> None:
    await run(plan(3), tmp_path / "run")
    whole = as_folder(tmp_path / "run", tmp_path / "folder")
    assert read_run(tmp_path / "folder").results == whole.results
    assert read_run(tmp_path / "folder").description == whole.description
    with pytest.raises(InvalidSettingError, match="earlier version, which can only be read"):
        check_plan(plan(3), tmp_path / "folder")
    with pytest.raises(InvalidSettingError, match="earlier version"):
        await run(plan(3), tmp_path / "folder")
    old = tmp_path / "folder" / "results.jsonl"
    text = old.read_bytes()
    for size in range(0, len(text), 7):
        old.write_bytes(text[:size])
        assert len(read_run(tmp_path / "folder").results) == text[:size].count(b"\n")
    for damaged in (b"{]\n" + text, text.split(b"\n")[0] + b"\n" + text):
        old.write_bytes(damaged)
        with pytest.raises(RecordingError, match=r"results\.jsonl: line [12] "):
            read_run(tmp_path / "folder")


async def test_two_programs_at_one_run_do_not_mix(tmp_path: Path) -> None:
    description = plan(2).description("x", Capabilities("scripted", 20, 64))
    with (
        RunWriter(tmp_path / "run", description),
        pytest.raises(RecordingError, match="another program"),
    ):
        await run(plan(2), tmp_path / "run")
    assert (await run(plan(2), tmp_path / "run")).complete


# --- Other settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (plan(3, budget=3), "policy.budget 3 against 2"),
        (replace(plan(3), sampling=Sampling(temperature=0.1)), "sampling.temperature"),
        (replace(plan(3), seed=7), "seed 7 against 0"),
        (replace(plan(3), answers="text"), "answers text"),
        (plan(4), "number of questions 4 against 3"),
        (replace(plan(3), asked=[*questions(4)][1:]), "questions and right answers"),
    ],
)
async def test_other_settings_are_refused_before_anything_is_asked(
    tmp_path: Path, other: EvaluationPlan, word: str
) -> None:
    await run(plan(3), tmp_path / "run")
    before = lines(tmp_path / "run")
    engine = ScriptedEngine(rightly)
    with pytest.raises(InvalidSettingError, match=word):
        check_plan(other, tmp_path / "run")
    with pytest.raises(InvalidSettingError, match=word):
        await run(other, tmp_path / "run", engine)
    assert engine.generated == []
    assert lines(tmp_path / "run") == before


async def test_another_model_or_k_is_refused_but_another_address_is_not(tmp_path: Path) -> None:
    await run(plan(3), tmp_path / "run")
    with pytest.raises(InvalidSettingError, match="k 5 against 20"):
        await run(plan(3), tmp_path / "run", ScriptedEngine(rightly, top_k=5))
    check_plan(plan(3), tmp_path / "run")
    check_plan(replace(plan(3), path="elsewhere.csv", questions_at_once=9), tmp_path / "run")


async def test_a_run_without_a_verdict_takes_other_settings(tmp_path: Path) -> None:
    with pytest.raises(MissingLogprobsError):
        await run(plan(3, "deepconf-low"), tmp_path / "run", ScriptedEngine(rightly, top_k=0))
    assert (await run(plan(3), tmp_path / "run")).complete
    assert read_run(tmp_path / "run").description.settings["policy"]["name"] == "majority"


async def test_an_engine_that_cannot_continue_is_refused_before_a_token(tmp_path: Path) -> None:
    engine = ScriptedEngine(rightly, continues=False)
    with pytest.raises(CannotContinueError):
        await run(plan(3, "settle-regenerate:regenerate=1"), tmp_path / "run", engine)
    assert engine.generated == []


@pytest.mark.parametrize("name", ["thesis.txt", "thesis.txt/run", "thesis.txt/a/b"])
async def test_a_file_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("precious", encoding="utf-8")
    found = "it is not a run" if name == "thesis.txt" else f"{file} is a file, not a folder"
    with pytest.raises(InvalidSettingError, match=re.escape(found)):
        check_plan(plan(1), tmp_path / name)
    with pytest.raises(InvalidSettingError, match=re.escape(str(tmp_path / name))):
        read_run(tmp_path / name)
    with pytest.raises(InvalidSettingError, match=re.escape(found)):
        await run(plan(1), tmp_path / name)
    assert file.read_text(encoding="utf-8") == "precious"


async def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(InvalidSettingError, match="it is a folder"):
        check_plan(plan(1), tmp_path)
    with pytest.raises(InvalidSettingError, match="it holds no run"):
        read_run(tmp_path)
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "run.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(RecordingError, match="version 99"):
        read_run(tmp_path / "newer")


# --- Failures -------------------------------------------------------------------------------------


async def test_a_question_that_fails_is_kept_with_its_reason_and_asked_again(
    tmp_path: Path,
) -> None:
    progress = await run(plan(4), tmp_path / "run", ScriptedEngine(failing(1)))
    assert not progress.complete
    [failed] = [result for result in progress.results if result.failed]
    assert (failed.id, failed.correct, failed.ended, failed.tokens) == ("q1", None, "failed", 4)
    assert "the engine is gone" in str(failed.error)
    assert len(lines(tmp_path / "run")) == 4
    engine = ScriptedEngine(rightly)
    progress = await run(plan(4), tmp_path / "run", engine)
    assert progress.complete
    assert len(engine.generated) == 2
    assert [line["id"] for line in lines(tmp_path / "run")] == ["q0", "q2", "q3", "q1"]


async def test_a_failed_question_costs_also_what_its_restarted_traces_generated_before(
    tmp_path: Path,
) -> None:
    fault = StreamError(tried="read", found="it broke", remedy="Retry.")
    engine = ScriptedEngine([replace(says(1), fault=fault, fault_after=3)])
    progress = await run(replace(plan(1, "single"), restarts=2), tmp_path / "run", engine)
    [failed] = progress.results
    assert failed.failed
    assert engine.generated == [3, 3, 3]
    assert (failed.tokens, failed.usage.failed, failed.traces) == (9, 9, 1)


async def test_an_engine_that_is_gone_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    engine = ScriptedEngine(failing(*range(2, 9)))
    with pytest.raises(AllTracesFailedError, match="the engine is gone"):
        await run(plan(9), tmp_path / "run", engine)
    results = read_run(tmp_path / "run").results
    assert [(result.id, result.failed) for result in results] == [
        *(("q0", False), ("q1", False)),
        *(("q2", True), ("q3", True), ("q4", True)),
    ]
    assert (await run(plan(9), tmp_path / "run")).complete


async def test_failures_with_successes_between_them_do_not_end_the_run(tmp_path: Path) -> None:
    progress = await run(plan(9), tmp_path / "run", ScriptedEngine(failing(0, 2, 4, 6, 8)))
    assert [result.failed for result in progress.results] == [True, False] * 4 + [True]


async def test_a_disk_that_refuses_ends_the_run_without_half_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = StoreWriter.insert

    def refuse(self: StoreWriter, table: str, **values: Any) -> int:
        number = insert(self, table, **values)
        if values.get("question") == "q2":
            raise OSError(28, "No space left on device")
        return number

    monkeypatch.setattr(StoreWriter, "insert", refuse)
    with pytest.raises(RecordingError, match="no room left"):
        await run(plan(4), tmp_path / "run")
    monkeypatch.undo()
    assert [line["id"] for line in lines(tmp_path / "run")] == ["q0", "q1"]
    assert (await run(plan(4), tmp_path / "run")).complete


# --- Traces ---------------------------------------------------------------------------------------


async def test_traces_are_recorded_beside_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(failing(2))
    await run(plan(4), tmp_path / "run", engine, pool=tmp_path / "pool")
    await run(plan(4), tmp_path / "run", pool=tmp_path / "pool")
    pool = Pool.open(tmp_path / "pool")
    assert (pool.model, pool.top_k) == ("scripted", 20)
    assert {question.id: question.traces for question in pool.questions} == {
        f"q{i}": 2 for i in range(4)
    }
    for question in pool.questions:
        assert pool.traces(question.id).correct.all()


async def test_a_pool_of_other_settings_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    await run(plan(2), tmp_path / "one", pool=tmp_path / "pool")
    engine = ScriptedEngine(rightly)
    hotter = replace(plan(2), sampling=Sampling(temperature=1.0))
    with pytest.raises(RecordingError, match="sampling"):
        await run(hotter, tmp_path / "two", engine, pool=tmp_path / "pool")
    assert engine.generated == []


async def test_without_right_answers_there_are_verdicts_and_no_grades(tmp_path: Path) -> None:
    ungraded: Sequence[PromptedQuestion] = [
        PromptedQuestion.as_it_is(DatasetQuestion("a", "What is 1 * 10?", None, "line 1"))
    ]
    progress = await run(replace(plan(), asked=ungraded), tmp_path / "run")
    assert [(one.answer, one.correct) for one in progress.results] == [("10", None)]


async def test_a_description_that_got_lost_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    await run(plan(2), path)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM description")
    with pytest.raises(RecordingError, match="table description holds 0 whole rows, and 1"):
        await run(plan(2, "single"), path)


# --- A failure is not a result --------------------------------------------------------------------


class Unreachable(ScriptedEngine):
    """Answers what it can do, and nothing else for these questions; tries again for ever."""

    def __init__(self, *numbers: int, told: bool = True) -> None:
        super().__init__(rightly)
        self._numbers = numbers
        self._told = told

    @property
    def failure(self) -> EngineError | None:
        refused = EngineError(tried="reach it", found="connection refused", remedy="Start it.")
        return refused if self._told else None

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        if number(request) in self._numbers:
            await anyio.sleep_forever()
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk


async def test_a_question_without_a_token_failed_and_is_asked_again(tmp_path: Path) -> None:
    hurried = replace(plan(4), time_limit=0.2)
    progress = await run(hurried, tmp_path / "run", Unreachable(1, 3))
    assert not progress.complete
    failed = [result for result in progress.results if result.failed]
    assert [result.id for result in failed] == ["q1", "q3"]
    assert {(result.ended, result.answer, result.correct, result.tokens) for result in failed} == {
        ("failed", None, None, 0)
    }
    assert all("connection refused" in (result.error or "") for result in failed)
    figures = summarise(progress.results, 4).to_dict()
    assert (figures["finished"], figures["failed"], figures["counted"]) == (2, 2, 2)
    assert not figures["complete"]

    engine = ScriptedEngine(rightly)
    again = await run(hurried, tmp_path / "run", engine)
    assert again.complete
    assert len(engine.generated) == 2 * 2


async def test_an_engine_that_cannot_be_reached_ends_the_evaluation(tmp_path: Path) -> None:
    hurried = replace(plan(6), time_limit=0.1)
    with pytest.raises(NothingGeneratedError, match="connection refused"):
        await run(hurried, tmp_path / "run", Unreachable(*range(6)))
    assert len(lines(tmp_path / "run")) == 3


async def test_an_engine_that_is_only_slow_does_not_end_the_evaluation(tmp_path: Path) -> None:
    hurried = replace(plan(4), time_limit=0.05)
    progress = await run(hurried, tmp_path / "run", Unreachable(*range(4), told=False))
    assert [result.failed for result in progress.results] == [True] * 4


async def test_verdicts_of_nothing_that_an_earlier_version_kept_are_asked_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    progress = await run(plan(3), path)
    empty = msgspec.structs.replace(
        progress.results[1],
        answer=None,
        correct=False,
        share=0.0,
        ended="time",
        tokens=0,
        usage=Usage(),
        lead=None,
        votes=0,
    )
    with StoreWriter(path, RUN) as store, store.transaction():
        store.delete("results", "question = ?", empty.id)
        store.insert("results", question=empty.id, json=msgspec.json.encode(empty))
    kept = {result.id: result for result in read_run(path).results}
    assert kept["q1"].failed
    assert kept["q1"].correct is None
    engine = ScriptedEngine(rightly)
    again = await run(plan(3), path, engine)
    assert (again.complete, again.kept, len(engine.generated)) == (True, 2, 2)


@pytest.mark.parametrize("when", ["between", "at the end"])
async def test_a_run_that_is_removed_while_it_goes_on_is_an_error(
    tmp_path: Path, when: str
) -> None:
    path = tmp_path / "run"

    def remove(progress: EvaluationProgress) -> None:
        if len(progress.results) == (1 if when == "between" else 3):
            for one in tmp_path.glob("run*"):
                one.unlink()

    with pytest.raises(RecordingError, match="removed"):
        await run(plan(3), path, on_progress=remove)
