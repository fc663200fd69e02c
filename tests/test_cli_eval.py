"""`conviction eval` and `conviction eval compare` as processes of their own."""

import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from completion_events import STOP, event, json_answer, position, stream, usage
from kept_runs import lines
from scripted_server import Received, Step, serving
from tens import data_set

from conviction.backends.builtin import Embedded
from conviction.cli.main import run
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.evaluation.run import evaluate
from conviction.models import resolve
from conviction.recordings import Pool

pytestmark = pytest.mark.anyio

REAL_MODEL = "SmolLM2-135M-Instruct"
QUESTIONS = 8


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Multiplier:
    """A server that knows what N * 10 is, but for a few wrong answers.

    Attributes:
        wrong: Questions that it answers wrongly.
        broken: Questions that it refuses.
        seconds: Time that a trace takes.
        traces: How many traces it was asked for, by question.
    """

    wrong: set[int] = field(default_factory=set[int])
    broken: set[int] = field(default_factory=set[int])
    seconds: float = 0.0
    traces: Counter[int] = field(default_factory=Counter[int])

    def __call__(self, received: Received) -> list[Step]:
        if received.path.endswith("/models"):
            return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
        if received.path.endswith("/metrics"):
            return [json_answer({}, "404 Not Found")]
        asked = re.search(r"What is (\d+) \* 10", json.dumps(received.body))
        number = int(asked[1]) if asked else -1
        if asked:
            self.traces[number] += 1
        if number in self.broken:
            return [json_answer({"error": {"message": "no such thing"}}, "400 Bad Request")]
        said = f"So it is.\nAnswer: {number * 10 + (number in self.wrong)}"
        most = received.body.get("top_logprobs") or int(received.body.get("logprobs") or 0)
        places = [position(*[-1.0 - k / 10 for k in range(most)])] * 4
        if received.body["stream"]:
            told = stream(event(said, *places), STOP, usage(9, len(places)))
            return [self.seconds, told] if asked else [told]
        choice: dict[str, Any] = {"message": {"content": said}, "text": said}
        return [json_answer({"choices": [{**choice, "logprobs": {"content": places}}]})]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return data_set(tmp_path / "questions.jsonl", QUESTIONS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "MISSING.jsonl", "-o", "RUN", "--base-url", "http://127.0.0.1:9"],
        ["record", "MISSING.jsonl", "-o", "POOL", "--base-url", "http://127.0.0.1:9"],
        ["eval", "compare", "MISSING", "OTHER"],
    ],
)
def test_a_missing_file_is_wrong_use(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(tmp_path / one) if one[0].isupper() else one for one in arguments]
    assert run(named) == 2
    assert "MISSING" in capsys.readouterr().err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "conviction", "eval", *arguments]


def impatient(*arguments: str) -> list[str]:
    """The command with an engine that waits a second, not half a minute, for a server to return."""
    program = (
        "import functools, conviction.cli.main, conviction.backends.openai as server\n"
        "server.OpenAIEngine = functools.partial(server.OpenAIEngine, patience=1.0)\n"
        "conviction.cli.main.main()\n"
    )
    return [sys.executable, "-c", program, "eval", *arguments]


def environment(cache: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONVICTION")}
    return {**ours, "CONVICTION_CACHE": str(cache), "CONVICTION_CONFIG": os.devnull}


async def conviction(*arguments: str, cache: Path) -> Done:
    with anyio.fail_after(60):
        done = await anyio.run_process(
            command(*arguments), env=environment(cache), check=False, stdin=None
        )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@asynccontextmanager
async def begun(wanted: list[str], cache: Path) -> AsyncGenerator[Process]:
    """A command while it runs; its output goes to files that nobody needs to read."""
    with (cache / "err").open("wb") as err, (cache / "out").open("wb") as out:
        process = await anyio.open_process(
            wanted, env=environment(cache), stdin=None, stdout=out, stderr=err
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.aclose()


def finished(folder: Path) -> list[str]:
    """Ids of the questions that have their line."""
    return [line["id"] for line in lines(folder)]


async def until(folder: Path, count: int, process: Process) -> None:
    """Wait until so many questions have their line, or the command has ended."""
    with anyio.fail_after(40):
        # Another process writes there, so nothing here could set an event.
        while len(finished(folder)) < count and process.returncode is None:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_run_is_measured_and_the_same_command_asks_nothing_again(
    tmp_path: Path, questions: Path
) -> None:
    folder, pool = tmp_path / "run", tmp_path / "pool"
    server = Multiplier(wrong={3, 5})
    async with serving(server) as scripted:
        arguments = [
            *(str(questions), "-o", str(folder), "--base-url", scripted.url),
            *("--policy", "majority", "--budget", "3"),
        ]
        first = await conviction(*arguments, "--record", str(pool), cache=tmp_path)
        asked = server.traces.total()
        second = await conviction(*arguments, "--json", "--fail-below", "0.75", cache=tmp_path)
        below = await conviction(*arguments, "-q", "--fail-below", "0.76", cache=tmp_path)
        other = await conviction(*arguments, "--temperature", "0.1", cache=tmp_path)
        assert server.traces.total() == asked == 3 * QUESTIONS
    assert (first.code, second.code, below.code, other.code) == (0, 0, 1, 2), first.err
    assert re.search(r"accuracy +75\.0 \[40\.9, 92\.9\] %; 6 of 8 questions right", first.out)
    assert re.search(r"tokens +12 a question; 96 in all", first.out)
    assert f"{folder} holds 8 of 8 verdicts." in first.err
    told = json.loads(second.out)
    assert (told["accuracy"]["value"], told["right"], told["complete"]) == (0.75, 6, True)
    assert (below.err, "accuracy" in below.out) == ("", True)
    assert "sampling.temperature 0.1 against 0.7" in other.err
    assert sum(question.traces for question in Pool.open(pool).questions) == 24


async def test_a_run_that_is_killed_at_random_loses_nothing_and_doubles_nothing(
    tmp_path: Path, questions: Path
) -> None:
    folder = tmp_path / "run"
    chance = random.Random(5)  # noqa: S311  # moments, not secrets
    server = Multiplier(seconds=0.6)
    arguments = [
        *(str(questions), "-o", str(folder), "--policy", "majority", "--budget", "2"),
        *("--questions-at-once", "2"),
    ]
    async with serving(server) as scripted:
        arguments += ["--base-url", scripted.url]
        before: list[str] = []
        for _ in range(3):
            async with begun(command(*arguments), cache=tmp_path) as process:
                await until(folder, len(before) + 1, process)
                await anyio.sleep(chance.uniform(0, 0.2))
                process.kill()
                assert await process.wait() == -signal.SIGKILL
            after = finished(folder)
            assert after[: len(before)] == before
            assert len(after) > len(before)
            before = after
        asked = Counter(server.traces)
        done = await conviction(*arguments, cache=tmp_path)
    assert done.code == 0, done.err
    assert sorted(finished(folder)) == [str(i + 1) for i in range(QUESTIONS)]
    assert finished(folder)[: len(before)] == before
    for identity in before:
        assert server.traces[int(identity) - 1] == asked[int(identity) - 1]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_ctrl_c_sums_up_what_is_there(tmp_path: Path, questions: Path) -> None:
    folder = tmp_path / "run"
    async with serving(Multiplier(seconds=0.2)) as scripted:
        arguments = [
            *(str(questions), "-o", str(folder), "--policy", "single", "--json"),
            *("--questions-at-once", "1", "--base-url", scripted.url),
        ]
        async with begun(command(*arguments), cache=tmp_path) as process:
            await until(folder, 2, process)
            process.send_signal(signal.SIGINT)
            with anyio.fail_after(10):
                assert await process.wait() == 130
        assert 2 <= len(finished(folder)) < QUESTIONS
        told = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
        assert (told["interrupted"], told["complete"]) == (True, False)
        assert told["finished"] == len(finished(folder))
        errors = (tmp_path / "err").read_text(encoding="utf-8")
        assert "The same command asks the rest." in errors
        assert "Traceback" not in errors
        assert (await conviction(*arguments, cache=tmp_path)).code == 0
    assert len(finished(folder)) == QUESTIONS


async def test_failed_questions_are_told_left_out_and_asked_again(
    tmp_path: Path, questions: Path
) -> None:
    folder = tmp_path / "run"
    server = Multiplier(wrong={0}, broken={4})
    async with serving(server) as scripted:
        arguments = [
            *(str(questions), "-o", str(folder), "--base-url", scripted.url),
            *("--policy", "single", "--questions-at-once", "1"),
        ]
        failed = await conviction(*arguments, cache=tmp_path)
        counted = await conviction(*arguments, "--failures-wrong", cache=tmp_path)
        server.broken.clear()
        mended = await conviction(*arguments, cache=tmp_path)
    assert (failed.code, counted.code, mended.code) == (1, 1, 0), failed.err
    assert "6 of 7 questions right" in failed.out
    assert re.search("failed +1 of 8, not counted", failed.out)
    assert "no such thing" in failed.err
    assert "leaves out what failed" in failed.err
    assert "6 of 8 questions right" in counted.out
    assert "7 of 8 questions right" in mended.out
    assert {server.traces[number] for number in range(QUESTIONS) if number != 4} == {1}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_ctrl_c_in_the_moment_of_the_last_verdict_interrupts_nothing(
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[bool] = []

    async def evaluate_and_be_interrupted(*arguments: Any, **options: Any) -> None:
        await evaluate(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(20)
        slept.append(True)

    engine = ScriptedEngine([Script.even("The answer is 0.", tokens=4)])
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: self)
    monkeypatch.setattr(Embedded, "build", lambda _: engine)
    monkeypatch.setattr("conviction.cli.evaluation.evaluate", evaluate_and_be_interrupted)
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    arguments = ["eval", str(questions), "--limit", "1", "--policy", "single", "--answer", "number"]
    arguments += ["-o", str(tmp_path / "run")]
    assert run([*arguments, "--json"]) == 0
    assert slept == []
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["interrupted"], told["complete"], told["right"]) == (False, True, 1)
    assert f"{tmp_path / 'run'} holds 1 of 1 verdict." in captured.err
    assert "1 of 1 question, " in captured.err or "0 of 1 question" in captured.err
    assert "The same command" not in captured.err


async def test_an_engine_that_goes_ends_the_run_with_its_reason(
    tmp_path: Path, questions: Path
) -> None:
    folder = tmp_path / "run"
    async with serving(Multiplier(seconds=0.5)) as scripted:
        arguments = [
            *(str(questions), "-o", str(folder), "--base-url", scripted.url),
            *("--policy", "single", "--questions-at-once", "3", "--restarts", "0"),
        ]
        async with begun(impatient(*arguments), cache=tmp_path) as process:
            await until(folder, 2, process)
            scripted.stop_listening()
            for task in list(scripted.tasks):
                task.cancel()
            with anyio.fail_after(40):
                assert await process.wait() == 1
    errors = (tmp_path / "err").read_text(encoding="utf-8")
    assert "error:" in errors
    assert scripted.url in errors
    assert "The same command asks the rest." in errors
    assert "Traceback" not in errors
    assert len(finished(folder)) >= 2
    async with serving(Multiplier()) as elsewhere:
        arguments[arguments.index(scripted.url)] = elsewhere.url
        assert (await conviction(*arguments, cache=tmp_path)).code == 0
    assert sorted(finished(folder)) == [str(i + 1) for i in range(QUESTIONS)]


async def test_two_runs_are_compared_and_a_worse_one_can_fail_a_build(
    tmp_path: Path, questions: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder, wrong in ((good, {0}), (bad, {0, 1, 2, 3, 4, 5, 6})):
        async with serving(Multiplier(wrong=wrong)) as scripted:
            arguments = [str(questions), "-o", str(folder), "--base-url", scripted.url]
            done = await conviction(*arguments, "--policy", "single", cache=tmp_path)
            assert done.code == 0, done.err
    shown = await conviction("compare", str(good), str(bad), cache=tmp_path)
    worse = await conviction(
        "compare", str(good), str(bad), "--fail-if-worse", "--json", cache=tmp_path
    )
    better = await conviction("compare", str(bad), str(good), "--fail-if-worse", cache=tmp_path)
    assert (shown.code, worse.code, better.code) == (0, 1, 0), shown.err
    assert "p = 0.0312: 6 right only in the first, 0 only in the second, 1 in both" in shown.out
    assert re.search(r"difference +-75\.0 \[-\d+\.\d, -\d+\.\d\] points", shown.out)
    assert re.search(r"tokens +1\.000 times those", shown.out)
    told = json.loads(worse.out)
    assert (told["mcnemar_p"], told["difference"]["value"], told["worse"]) == (1 / 32, -0.75, True)
    assert told["tokens_ratio"]["value"] == 1.0
    assert "The second is worse than the first." in worse.err
    assert "worse" not in shown.err + better.err


def test_what_is_wrong_is_refused_before_anything_is_started(
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious", encoding="utf-8")
    # Nobody listens there, so whoever asks gets another error.
    base = ["-o", str(tmp_path / "run"), "--base-url", "http://127.0.0.1:9/v1"]
    for arguments, words in (
        ([str(questions), *base, "--fail-below", "70"], ("fail_below", "between 0 and 1")),
        ([str(questions), *base, "--fail-below", "0.7", "--no-gold"], ("no accuracy",)),
        ([str(questions), *base, "--questions-at-once", "0"], ("questions_at_once",)),
        ([str(questions), *base, "--policy", "majorty"], ("'majority'",)),
        ([str(questions), *base, "--answer", "maths"], ("'math'",)),
        ([str(tmp_path / "none.jsonl"), *base], ("none.jsonl",)),
        ([str(questions), *base[2:], "-o", str(tmp_path / "full")], ("it is a folder",)),
        ([str(questions), *base[2:], "-o", str(questions)], ("it is not a run", "a new file")),
        ([str(questions)], ("--output",)),
        (["compare", str(tmp_path / "run"), str(tmp_path / "full")], ("nothing of that name",)),
        (["compare", str(tmp_path / "full"), str(tmp_path / "full")], ("it holds no run",)),
    ):
        assert run(["eval", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        for word in words:
            assert word in " ".join(captured.err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_a_real_model_is_evaluated(tmp_path: Path) -> None:
    resolve(REAL_MODEL)
    data = tmp_path / "two.csv"
    data.write_text(
        "id,question,answer\na,What is 2 + 2?,4\nb,What is 3 + 5?,8\n", encoding="utf-8"
    )
    folder = tmp_path / "run"
    arguments = [
        *(str(data), "-o", str(folder), "-m", REAL_MODEL, "--policy", "deepconf-low"),
        *("--budget", "4", "--max-tokens", "40", "--answer", "number", "--json"),
    ]
    with anyio.fail_after(240):
        done = await anyio.run_process(command(*arguments), check=False, stdin=None)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert (told["finished"], told["failed"], told["counted"]) == (2, 0, 2)
    assert 2 * 40 * 4 >= told["tokens"] > 0
    assert sorted(finished(folder)) == ["a", "b"]
