"""`conviction record` as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from completion_events import STOP, event, json_answer, position, stream, usage
from scripted_server import Received, ScriptedServer, Step, serving

from conviction.backends.builtin import Embedded
from conviction.cli.main import run
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, RecordingError
from conviction.evaluation.recording import record
from conviction.models import resolve
from conviction.recordings import Pool

REAL_MODEL = "SmolLM2-135M-Instruct"
SAID = "So it is 100.\nAnswer: 100"


@dataclass
class Done:
    code: int
    out: str
    err: str


def answered(received: Received, **told: float) -> list[Step]:
    """A server of one model that answers every question with the same words.

    Args:
        received: What it was asked.
        told: What it tells of each token beside the likeliest ones at its place.
    """
    if received.path.endswith("/models"):
        return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
    if received.path.endswith("/metrics"):
        return [json_answer({}, "404 Not Found")]
    asked = received.body.get("top_logprobs") or int(received.body.get("logprobs") or 0)
    places = [{**position(*[-1.0 - k / 10 for k in range(asked)]), **told}] * 4
    if received.body["stream"]:
        return [stream(event(SAID, *places), STOP, usage(9, len(places)))]
    choice: dict[str, Any] = {"message": {"content": SAID}, "text": SAID}
    return [json_answer({"choices": [{**choice, "logprobs": {"content": places}}]})]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "conviction", "record", *arguments]


def environment(cache: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONVICTION")}
    return {**ours, "CONVICTION_CACHE": str(cache), "CONVICTION_CONFIG": os.devnull}


async def conviction(*arguments: str, cache: Path) -> Done:
    with anyio.fail_after(60):
        done = await anyio.run_process(
            command(*arguments), env=environment(cache), check=False, stdin=None
        )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i} * 10?", "answer": str(i * 10)} for i in range(8, 12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked_for(server: ScriptedServer) -> int:
    """Requests that asked for a trace of a question."""
    return sum("* 10?" in json.dumps(request.body) for request in server.requests if request.body)


@pytest.mark.anyio
async def test_a_server_is_recorded_and_the_same_command_asks_for_nothing_again(
    tmp_path: Path, questions: Path
) -> None:
    pool = tmp_path / "pool"
    async with serving(answered) as server:
        arguments = [str(questions), "-o", str(pool), "--base-url", server.url]
        first = await conviction(*arguments, "-n", "3", cache=tmp_path)
        assert asked_for(server) == 12
        second = await conviction(*arguments, "-n", "3", cache=tmp_path)
        more = await conviction(*arguments, "-n", "4", "--no-text", cache=tmp_path)
        assert asked_for(server) == 16
    assert (first.code, second.code, more.code) == (0, 0, 0), first.err
    assert first.out == ""
    assert f"Recorded 12 traces, 48 tokens; {pool} holds 12 of 12 traces." in first.err
    assert "Recorded 0 traces" in second.err
    recorded = Pool.open(pool)
    assert (recorded.model, recorded.top_k, recorded.answers) == ("told", 20, "math")
    assert sorted((q.id, q.gold, q.traces) for q in recorded.questions) == [
        (str(i - 7), str(i * 10), 4) for i in range(8, 12)
    ]
    right = {q.id: recorded.traces(q.id).correct.tolist() for q in recorded.questions}
    assert right == {number: [number == "3"] * 4 for number in "1234"}
    assert recorded.texts("1") == (SAID, SAID, SAID, None)


@pytest.mark.anyio
async def test_log_probabilities_of_the_tokens_are_recorded_where_wanted_and_given(
    tmp_path: Path, questions: Path
) -> None:
    pool = tmp_path / "pool"
    plays = [answered, partial(answered, logprob=-0.5), answered]
    notes: list[int] = []
    for traces, play in enumerate(plays, start=1):
        async with serving(play) as server:
            done = await conviction(
                *(str(questions), "-o", str(pool), "-n", str(traces), "--limit", "2"),
                *("--base-url", server.url, *(["--logprobs"] if traces > 1 else [])),
                cache=tmp_path,
            )
        assert done.code == 0, done.err
        notes.append(done.err.count("without the log-probability of each token: 2 traces;"))
    assert notes == [0, 0, 1]
    for question in Pool.open(pool).questions:
        unwanted, given, missing = Pool.open(pool).logprobs(question.id)
        assert (unwanted, missing) == (None, None)
        assert given is not None
        assert given.tolist() == [-0.5] * 4


def test_what_is_wrong_is_refused_before_anything_is_started(
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "nothing asked"}\n', encoding="utf-8")
    # Nobody listens there, so whoever asks gets another error.
    base = ["-o", str(tmp_path / "pool"), "--base-url", "http://127.0.0.1:9/v1"]
    for arguments, words in (
        ([str(questions), "-n", "0", *base], ("traces",)),
        ([str(questions), "--limit", "0", *base], ("limit",)),
        ([str(questions), "--answer", "maths", *base], ("'math'",)),
        ([str(questions), "--temperature", "-1", *base], ("temperature",)),
        ([str(questions), "--id-field", "number", *base], ("line 1", "--id-field")),
        ([str(empty), *base], (f"line 1 of {empty}", "--question-field")),
        (base, ("no data set", "--import")),
        ([str(questions), "--import", str(empty), *base], ("either generated or imported",)),
        ([str(questions), "--logprobs", "--answers-only", *base], ("--answers-only or",)),
        ([str(questions)], ("--output",)),
    ):
        assert run(["record", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        for word in words:
            assert word in " ".join(captured.err.split())
    assert not (tmp_path / "pool").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_ctrl_c_in_the_moment_of_the_last_trace_interrupts_nothing(
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[bool] = []

    async def record_and_be_interrupted(*arguments: Any, **options: Any) -> None:
        await record(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(20)
        slept.append(True)

    engine = ScriptedEngine([Script(SAID, np.full(4, 5.0, np.float32))])
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: self)
    monkeypatch.setattr(Embedded, "build", lambda _: engine)
    monkeypatch.setattr("conviction.cli.record.record_traces", record_and_be_interrupted)
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    pool = tmp_path / "pool"
    arguments = ["record", str(questions), "--limit", "1", "-n", "1", "--answer", "number"]
    assert run([*arguments, "-o", str(pool)]) == 0
    assert slept == []
    told = capsys.readouterr().err
    assert "1 of 1 trace, 1 of 1 question" in told or "0 of 1 trace, 0 of 1 question" in told
    assert f"Recorded 1 trace, 4 tokens; {pool} holds 1 of 1 trace." in told
    assert "The same command" not in told


@pytest.mark.anyio
async def test_a_pool_of_other_settings_is_left_alone(tmp_path: Path, questions: Path) -> None:
    pool = tmp_path / "pool"
    async with serving(answered) as server:
        arguments = [str(questions), "-o", str(pool), "-n", "1", "--base-url", server.url]
        assert (await conviction(*arguments, cache=tmp_path)).code == 0
        done = await conviction(*arguments, "--temperature", "0.1", cache=tmp_path)
        assert asked_for(server) == 4
    assert done.code == 1
    assert "does not fit what is there: sampling" in done.err


def test_files_folders_and_pools_are_imported_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "answers"
    folder.mkdir()
    for number in range(4):
        line = {"problem_num": number, "gold_answer": "4", "all_answers": [["4", 9], ["5", 7]]}
        (folder / f"{number}.jsonl").write_text(json.dumps(line), encoding="utf-8")
    pools = [tmp_path / name for name in ("pool", "second", "third")]
    common = ["--answer", "number", "-m", "some-model"]
    several = [str(folder / "0.jsonl"), str(folder / "1.jsonl")]
    assert run(["record", "--import", *several, "-o", str(pools[0]), *common]) == 0
    assert "Imported 4 traces" in " ".join(capsys.readouterr().err.split())
    assert run(["record", "--import", str(folder), "-o", str(pools[0]), *common]) == 0
    assert "Imported 4 traces" in " ".join(capsys.readouterr().err.split())
    parquet = tmp_path / "pool.parquet"
    export = ["record", "-o", str(pools[0]), "--export", str(parquet)]
    assert run(export) == 0
    assert "Wrote 8 traces" in " ".join(capsys.readouterr().err.split())
    assert run(["record", "-o", str(parquet), "--import", str(pools[0])]) == 1
    assert f"--import {parquet} -o" in " ".join(capsys.readouterr().err.split())
    for source, pool in ((parquet, pools[1]), (pools[0], pools[2])):
        assert run(["record", "--import", str(source), "-o", str(pool)]) == 0
        one, other = Pool.open(pools[0]), Pool.open(pool)
        assert one.meta == other.meta
        assert one.questions == other.questions
        assert one.traces("2").answers == other.traces("2").answers
    for target in (pools[0], folder):
        assert run([*export[:-1], str(target)]) == 2
    assert run(["record", "-o", str(tmp_path / "nowhere"), "--export", str(parquet)]) == 2
    assert run(["record", "-o", str(pools[0]), "--import", str(tmp_path / "nowhere")]) in (1, 2)


@pytest.mark.anyio
async def test_an_import_says_what_it_brought(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    line = {"problem_num": 3, "gold_answer": "7", "all_answers": [["7", 90], ["8", 80]]}
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    arguments = ["--import", str(file), "-o", str(tmp_path / "pool"), "-m", "some-model"]
    first = await conviction(*arguments, cache=tmp_path)
    second = await conviction(*arguments, cache=tmp_path)
    assert (first.code, second.code) == (0, 0), first.err
    assert "Imported 2 traces" in first.err
    assert "Imported 0 traces" in second.err
    assert "; there before: 2." in second.err
    pool = Pool.open(tmp_path / "pool")
    assert (pool.model, pool.traces("3").correct.tolist()) == ("some-model", [True, False])


@pytest.fixture
def two_questions(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "two.csv"
    path.write_text(
        "id,question,answer\na,What is 2 + 2?,4\nb,What is 3 + 5?,8\n", encoding="utf-8"
    )
    return path


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_real_recording_survives_kill_9_and_ctrl_c(tmp_path: Path, two_questions: Path) -> None:
    resolve(REAL_MODEL)
    pool = tmp_path / "pool"
    start = command(
        *(str(two_questions), "-o", str(pool), "-n", "4", "-m", REAL_MODEL),
        *("--max-tokens", "40", "--answer", "number"),
    )

    def run_until(end: int | None, traces: int) -> tuple[int, str]:
        """Start the command, and send it a signal once the pool holds so many traces."""
        with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as process:
            while end is not None and process.poll() is None:
                if traces <= held():
                    process.send_signal(end)
                    end = None
                time.sleep(0.02)
            _, errors = process.communicate(timeout=120)
            return process.returncode, errors

    def held() -> int:
        try:
            return sum(question.traces for question in Pool.open(pool).questions)
        except (InvalidSettingError, RecordingError):  # nothing is recorded yet
            return 0

    code, _ = run_until(signal.SIGKILL, traces=1)
    after_kill = held()
    assert code == -signal.SIGKILL
    assert after_kill >= 1
    code, errors = run_until(signal.SIGINT, traces=after_kill + 1)
    after_interrupt = held()
    assert code in (0, 130), errors
    assert after_interrupt > after_kill
    code, errors = run_until(None, traces=8)
    assert code == 0, errors
    recorded = Pool.open(pool)
    assert {question.id for question in recorded.questions} == {"a", "b"}
    for question in recorded.questions:
        traces = recorded.traces(question.id)
        assert traces.ids.tolist() == [0, 1, 2, 3]
        assert len(set(traces.seeds.tolist())) == 4
        assert all(np.nanmean(values) > 3 for values in traces.require_confidences())
        assert (traces.tokens <= 40).all()
        assert (traces.prompt_tokens > 5).all()
