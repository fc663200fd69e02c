"""Runs are recorded as they happened, and go on where they were interrupted."""

from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from conviction import athink
from conviction.answers import kind
from conviction.core import FinishReason, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    AllTracesFailedError,
    ContextOverflowError,
    MissingLogprobsError,
    RecordingError,
    StreamError,
)
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.recording import (
    PromptedQuestion,
    RecordingPlan,
    RecordingProgress,
    record,
)
from conviction.policies import DeepConfLow, Majority
from conviction.prompts import PromptStyle
from conviction.recordings import (
    Pool,
    PoolMeta,
    PoolWriter,
    RecordedTrace,
    recording_listener,
)
from conviction.recordings.rows import Labels
from conviction.thinking import trace_seed

pytestmark = pytest.mark.anyio

NUMBERS = kind("number")
SAMPLING = Sampling(max_tokens=50)


def plan(questions: int = 3, traces: int = 4, **changes: object) -> RecordingPlan:
    asked = tuple(
        PromptedQuestion.of(
            DatasetQuestion(f"q{i}", f"{i} + 1?", str(i + 1), f"row {i}"),
            answers="number",
            style=PromptStyle.PLAIN,
        )
        for i in range(questions)
    )
    return replace(RecordingPlan(asked, traces, SAMPLING), **changes)


def script(request: TraceRequest) -> Script:
    """What a request is answered with; it follows from its question and number alone."""
    first = int(request.messages[-1].content.split()[0])
    random = np.random.default_rng([first, request.trace])
    answer = first + 1 + int(random.integers(2))
    tokens = int(random.integers(3, 12))
    return Script(f"It is {answer}.", random.uniform(3, 20, tokens).astype(np.float32))


def scripted(**options: object) -> ScriptedEngine:
    return ScriptedEngine(script, **options)  # type: ignore[arg-type]


def check(pool: Pool, wanted: RecordingPlan) -> None:
    """Check that a pool holds the plan's traces and nothing else."""
    assert {question.id for question in pool.questions} == {
        asked.question.id for asked in wanted.asked
    }
    for asked in wanted.asked:
        traces = pool.traces(asked.question.id)
        assert traces.ids.tolist() == list(range(wanted.traces))
        assert (traces.seconds >= 0).all()
        for number in range(wanted.traces):
            request = TraceRequest(asked.question.messages, SAMPLING, trace=number)
            expected = script(request)
            assert traces.seeds[number] == trace_seed(wanted.seed, asked.question.id, number)
            np.testing.assert_array_equal(
                traces.require_confidences()[number], expected.confidences
            )
            answer = traces.answers[number]
            assert answer is not None
            assert expected.text == f"It is {answer.text}."
            assert traces.correct[number] == (answer.text == asked.recorded.gold)
            assert pool.texts(asked.question.id)[number] == expected.text


async def test_every_trace_of_every_question_is_recorded_and_graded(tmp_path: Path) -> None:
    told: list[int] = []

    def listener(progress: RecordingProgress) -> None:
        told.append(progress.present)

    wanted = plan()
    reached = await record(
        wanted, tmp_path / "pool", engine=scripted(), answers=NUMBERS, on_progress=listener
    )
    assert reached.complete
    assert (reached.recorded, reached.complete_questions, reached.notes) == (12, 3, [])
    assert told[0] == 0
    assert told == sorted(told)
    assert told[-1] == 12
    pool = Pool.open(tmp_path / "pool")
    assert (pool.model, pool.top_k, pool.answers, pool.sampling) == (
        "scripted",
        20,
        "number",
        SAMPLING,
    )
    check(pool, wanted)


async def test_traces_without_an_answer_and_cut_ones_are_recorded_as_what_they_are(
    tmp_path: Path,
) -> None:
    def play(request: TraceRequest) -> Script:
        whole = script(request)
        silent = replace(whole, text="I cannot say.")
        cut = replace(silent, finish=FinishReason.LENGTH)
        return (whole, silent, cut)[request.trace]

    wanted = plan(questions=2, traces=3)
    progress = await record(wanted, tmp_path / "pool", engine=ScriptedEngine(play), answers=NUMBERS)
    assert progress.complete
    pool = Pool.open(tmp_path / "pool")
    for question in pool.questions:
        traces = pool.traces(question.id)
        assert [answer is None for answer in traces.answers] == [False, True, True]
        assert [str(reason) for reason in traces.finish] == ["stop", "stop", "length"]
        assert traces.correct.tolist()[1:] == [False, False]


async def test_an_interrupted_recording_goes_on_without_generating_anything_twice(
    tmp_path: Path,
) -> None:
    wanted = plan(questions=4, traces=5)
    asked: set[tuple[str, int]] = set()

    def watched(request: TraceRequest) -> Script:
        asked.add((request.messages[-1].content, request.trace))
        return script(request)

    def present() -> set[tuple[str, int]]:
        with PoolWriter(tmp_path / "pool", PoolMeta("scripted", 20, "number", SAMPLING)) as writer:
            return {
                (item.question.text, number)
                for item in wanted.asked
                for number in writer.numbers(item.question.id)
            }

    cancelled = 0
    for delay in (0.03, 0.05, 0.05, None):
        before = present()
        asked.clear()
        engine = ScriptedEngine(watched, concurrency=3, delay=0.004)
        with anyio.move_on_after(delay) as limit:
            await record(wanted, tmp_path / "pool", engine=engine, answers=NUMBERS)
        cancelled += limit.cancelled_caught
        assert engine.running == 0
        assert not asked & before
        assert present() >= before
    assert cancelled >= 2
    check(Pool.open(tmp_path / "pool"), wanted)


async def test_more_traces_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    await record(plan(traces=2), tmp_path / "pool", engine=scripted(), answers=NUMBERS)
    engine = scripted()
    reached = await record(plan(traces=5), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert (reached.recorded, reached.present) == (9, 15)
    assert len(engine.generated) == 9
    check(Pool.open(tmp_path / "pool"), plan(traces=5))


async def test_all_questions_share_what_the_engine_runs_at_once(tmp_path: Path) -> None:
    most = 0

    async def pace(_: TraceRequest) -> None:
        nonlocal most
        most = max(most, engine.running)
        await anyio.lowlevel.checkpoint()

    engine = scripted(concurrency=5, pace=pace)
    await record(plan(questions=6, traces=2), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert most == 5


async def test_a_time_limit_keeps_what_is_finished(tmp_path: Path) -> None:
    reached = await record(
        plan(questions=50),
        tmp_path / "pool",
        engine=scripted(concurrency=2, delay=0.005),
        answers=NUMBERS,
        time_limit=0.3,
    )
    assert 0 < reached.present < reached.wanted
    assert sum(q.traces for q in Pool.open(tmp_path / "pool").questions) == reached.present


async def test_failed_traces_are_told_and_recorded_by_the_next_run(tmp_path: Path) -> None:
    def breaking(request: TraceRequest) -> Script:
        fault = StreamError(tried="read", found="it broke", remedy="Retry.")
        return replace(script(request), fault=fault if request.trace == 1 else None)

    broken = ScriptedEngine(breaking)
    reached = await record(plan(restarts=0), tmp_path / "pool", engine=broken, answers=NUMBERS)
    assert reached.present == 9
    assert not reached.complete
    assert len(reached.notes) == 3
    assert "it broke" in reached.notes[0]
    assert (
        await record(plan(), tmp_path / "pool", engine=scripted(), answers=NUMBERS)
    ).recorded == 3
    check(Pool.open(tmp_path / "pool"), plan())


async def test_an_engine_that_fails_every_trace_ends_the_recording(tmp_path: Path) -> None:
    fault = StreamError(tried="read", found="the server is gone", remedy="Start it.")
    engine = ScriptedEngine([Script("", np.ones(3, np.float32), fault=fault)], concurrency=2)
    with pytest.raises(AllTracesFailedError, match="the server is gone"):
        await record(
            plan(questions=100, restarts=0), tmp_path / "pool", engine=engine, answers=NUMBERS
        )
    assert len(engine.generated) < 40


async def test_failures_with_recorded_traces_between_them_do_not_end_the_recording(
    tmp_path: Path,
) -> None:
    fault = StreamError(tried="read", found="it broke", remedy="Retry.")
    before = {0: 0, 3: 4, 6: 8}  # failing questions, and the traces that are recorded by then
    present = 0

    def listener(progress: RecordingProgress) -> None:
        nonlocal present
        present = progress.present

    async def pace(request: TraceRequest) -> None:
        with anyio.fail_after(20):
            # The recorder's thread counts, so nothing here could set an event.
            while present < before.get(number(request), 0):  # noqa: ASYNC110
                await anyio.sleep(0.001)

    def number(request: TraceRequest) -> int:
        return int(request.messages[-1].content.split()[0])

    def breaking(request: TraceRequest) -> Script:
        return replace(script(request), fault=fault if number(request) in before else None)

    reached = await record(
        plan(questions=9, traces=2, restarts=0),
        tmp_path / "pool",
        engine=ScriptedEngine(breaking, concurrency=8, pace=pace),
        answers=NUMBERS,
        on_progress=listener,
    )
    assert (reached.present, reached.recorded, len(reached.notes)) == (12, 12, 3)


async def test_a_question_that_does_not_fit_is_left_out_and_told(tmp_path: Path) -> None:
    def narrow(request: TraceRequest) -> Script:
        fault = ContextOverflowError(tried="ask", found="too long", remedy="Shorten it.")
        return replace(
            script(request), fault=fault if request.messages[-1].content == "1 + 1?" else None
        )

    reached = await record(
        plan(), tmp_path / "pool", engine=ScriptedEngine(narrow), answers=NUMBERS
    )
    assert reached.present == 8
    assert "'q1' was left out" in reached.notes[0]


async def test_an_engine_without_log_probabilities_is_refused_unless_answers_will_do(
    tmp_path: Path,
) -> None:
    engine = scripted(top_k=0)
    with pytest.raises(MissingLogprobsError, match="--answers-only"):
        await record(plan(), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert not engine.generated
    await record(plan(answers_only=True), tmp_path / "pool", engine=engine, answers=NUMBERS)
    pool = Pool.open(tmp_path / "pool")
    assert not pool.has_confidences
    assert pool.traces("q0").tokens.tolist() == [
        script(TraceRequest(plan().asked[0].question.messages, SAMPLING, i)).confidences.size
        for i in range(4)
    ]


async def test_log_probabilities_that_never_come_are_told(tmp_path: Path) -> None:
    engine = ScriptedEngine([Script("It is 1.", np.full(4, np.nan, np.float32))])
    reached = await record(plan(), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert "12 traces are unknown" in reached.notes[0]


async def test_a_disk_that_fails_ends_the_recording_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = PoolWriter.append
    calls = 0

    def failing(writer: PoolWriter, *rows: RecordedTrace) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RecordingError(tried="write", found="the disk is full", remedy="Make room.")
        good(writer, *rows)

    monkeypatch.setattr(PoolWriter, "append", failing)
    engine = scripted(concurrency=2, delay=0.002)
    with pytest.raises(RecordingError, match="the disk is full"):
        await record(plan(questions=200), tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert len(engine.generated) < 100
    assert sum(q.traces for q in Pool.open(tmp_path / "pool").questions) >= 2


async def test_another_question_of_the_same_id_is_refused_before_anything_is_generated(
    tmp_path: Path,
) -> None:
    await record(plan(), tmp_path / "pool", engine=scripted(), answers=NUMBERS)
    item = DatasetQuestion("q1", "Something else?", "2", "row 1")
    other = replace(plan(), asked=(PromptedQuestion.as_it_is(item),))
    engine = scripted()
    with pytest.raises(RecordingError, match="prompt hash"):
        await record(other, tmp_path / "pool", engine=engine, answers=NUMBERS)
    assert not engine.generated


def test_answers_keep_the_keys_that_are_recorded() -> None:
    fresh = Labels(NUMBERS, {})
    recorded = {text: fresh.answer(text).key for text in ("0.5", "50", "50%", "1/2")}
    assert recorded["50%"] == recorded["50"] != recorded["0.5"] == recorded["1/2"]
    for order in (list(recorded), list(recorded)[::-1]):
        resumed = Labels(NUMBERS, {text: recorded[text] for text in order})
        assert {text: resumed.answer(text).key for text in recorded} == recorded
        assert resumed.answer("50.0").key == recorded["50"]
        assert resumed.answer("2/4").key == recorded["0.5"]
        assert resumed.answer("7").key not in recorded.values()


def test_recorded_keys_win_over_keys_that_would_be_chosen_today() -> None:
    resumed = Labels(NUMBERS, {"4": "the key of an older version"})
    assert resumed.answer("4.0").key == "the key of an older version"


async def test_a_live_run_is_recorded_with_its_stopped_traces(tmp_path: Path) -> None:
    low, high = np.full(40, 4.0, np.float32), np.full(40, 12.0, np.float32)
    scripts = [Script(f"It is {i}.", low if i % 2 else high) for i in range(16)]
    with recording_listener(tmp_path / "pool", sampling=SAMPLING, answers="number") as listener:
        verdict = await athink(
            "How many?",
            engine=ScriptedEngine(scripts, concurrency=4),
            policy=DeepConfLow(budget=16, warmup=4, window=8, quorum=16),
            answers="number",
            sampling=SAMPLING,
            on_event=listener,
        )
    pool = Pool.open(tmp_path / "pool")
    traces = pool.traces(verdict.question.id)
    by_seed = {trace.seed: trace for trace in verdict.traces}
    assert sorted(traces.seeds.tolist()) == sorted(by_seed)
    assert FinishReason.LOW_CONFIDENCE in traces.finish
    assert traces.complete.sum() == sum(trace.complete for trace in verdict.traces)
    for seed, finish, tokens in zip(traces.seeds, traces.finish, traces.tokens, strict=True):
        assert (by_seed[seed].finish, by_seed[seed].tokens) == (finish, tokens)


async def test_the_same_run_again_is_not_recorded_twice_and_another_seed_is_added(
    tmp_path: Path,
) -> None:
    async def think(seed: int) -> None:
        with recording_listener(tmp_path / "pool", sampling=SAMPLING, answers="number") as listener:
            await athink(
                "3 + 1?",
                engine=scripted(),
                prompt_style="plain",
                policy=Majority(4),
                answers="number",
                sampling=SAMPLING,
                seed=seed,
                on_event=listener,
            )

    counts: list[int] = []
    for seed in (0, 0, 1):
        await think(seed)
        counts.append(Pool.open(tmp_path / "pool").questions[0].traces)
    assert counts == [4, 4, 8]
    traces = Pool.open(tmp_path / "pool").traces(Pool.open(tmp_path / "pool").questions[0].id)
    assert traces.ids.tolist() == list(range(8))


async def test_a_run_that_cannot_be_recorded_still_gets_its_verdict(tmp_path: Path) -> None:
    meta = PoolMeta("scripted", 20, "number", SAMPLING)
    verdict = None
    with (
        PoolWriter(tmp_path / "pool", meta),
        pytest.raises(RecordingError, match="another program is writing it"),
        recording_listener(tmp_path / "pool", sampling=SAMPLING, answers="number") as listener,
    ):
        verdict = await athink(
            "3 + 1?",
            engine=scripted(),
            prompt_style="plain",
            policy=Majority(4),
            answers="number",
            sampling=SAMPLING,
            on_event=listener,
        )
    assert verdict is not None
    assert verdict.answer in ("4", "5")


def test_other_settings_are_refused_before_the_run(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", PoolMeta("scripted", 20, "number", SAMPLING)):
        pass
    for sampling, answers in ((Sampling(), "number"), (SAMPLING, "math")):
        with (
            pytest.raises(RecordingError, match="other settings"),
            recording_listener(tmp_path / "pool", sampling=sampling, answers=answers),
        ):
            raise AssertionError
