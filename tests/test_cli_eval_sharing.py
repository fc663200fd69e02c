"""`conviction eval --total-tokens`: what a user sees."""

import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from kept_runs import spent
from rich.console import Console

from conviction.backends.builtin import Embedded
from conviction.cli.evaluation import _reading
from conviction.cli.main import run
from conviction.cli.progress import run_progress
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.evaluation.results import QuestionResult
from conviction.evaluation.run import EvaluationProgress
from conviction.sharing import Slots
from conviction.verdict import Usage

pytestmark = pytest.mark.anyio

TOKENS = 10


def half_contested(request: TraceRequest) -> Script:
    """Even questions are answered rightly; of the odd ones every other trace is wrong."""
    number = int(request.messages[-1].content.split()[2])
    answer = number * 10 + (number % 2) * (request.trace % 2)
    return Script.even(f"So the answer is {answer}.", tokens=TOKENS)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    engine = ScriptedEngine(half_contested, concurrency=1)
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: self)
    monkeypatch.setattr(Embedded, "build", lambda _: engine)
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    rows = [{"question": f"What is {i} * 10?", "answer": str(i * 10)} for i in range(6)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--policy", "settle", "--answer", "number", "--max-tokens", str(TOKENS)]
    return ["eval", str(data), "-o", str(tmp_path / "run"), *options]


def test_the_summary_says_what_was_settled_contested_and_left_unanswered(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--total-tokens", "240"]) == 0
    first = capsys.readouterr()
    table = " ".join(first.out.split())
    assert "total 240 of 240 tokens spent" in table
    assert (
        "ended 3 settled, 0 with their whole budget, 3 contested to the end, 0 unanswered" in table
    )
    assert "0 of 6 questions, 0 settled, 0 contested, 0 of 240 tokens" in first.err
    assert run([*command, "--total-tokens", "240", "--json"]) == 0
    again = capsys.readouterr()
    assert re.search(r"6 of 6 questions, .*, 3 settled, 3 contested, 240 of 240 tokens", again.err)
    assert json.loads(again.out)["sharing"] == {
        "total": 240,
        "spent": 240,
        "settled": 3,
        "whole_budget": 0,
        "contested": 3,
        "unanswered": 0,
    }


def test_questions_whose_ends_were_regenerated_are_contested(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    regenerating = ["settle-regenerate" if word == "settle" else word for word in command]
    arguments = [*regenerating, "--total-tokens", "10000", "--json"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    sharing = json.loads(captured.out)["sharing"]
    counts = [sharing[name] for name in ("settled", "whole_budget", "contested", "unanswered")]
    assert counts == [3, 0, 3, 0]
    assert run(arguments) == 0
    assert "3 settled, 3 contested" in capsys.readouterr().err


def test_without_a_total_nothing_is_said_of_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sharing"] is None
    assert "contested" not in captured.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--total-tokens", "0"], "total_tokens must be at least 1"),
        (["--total-tokens", "100.6"], "'100.6' is not a whole number"),
        (["--total-tokens", "100", "--questions-at-once", "2"], "questions_at_once"),
        (["--total-tokens", "100", "--time-limit", "2"], "time_limit"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    command: list[str],
    options: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run([*command, *options]) == 2
    assert word in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_another_total_is_refused_with_both_numbers(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--total-tokens", "240"]) == 0
    capsys.readouterr()
    assert run([*command, "--total-tokens", "500"]) == 2
    assert "total_tokens 500 against 240" in capsys.readouterr().err


CHILD = """
import os, sys
from contextlib import aclosing
from conviction.cli.main import main
from conviction.backends.builtin import Embedded
from conviction.engines.scripted import Script, ScriptedEngine

log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

class Logged(ScriptedEngine):
    async def stream(self, request):
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                os.write(log, b"t" * chunk.confidences.size)
                yield chunk

engine = Logged([Script.even(f"The answer is {i % 3}.", tokens=20) for i in range(16)],
                concurrency=4, delay=0.002)
Embedded.prepare = lambda self, *_: self
Embedded.build = lambda _: engine
main()
"""
"""`conviction` with an engine that notes every token it generates."""


async def test_a_run_that_is_killed_at_random_keeps_to_its_total(
    command: list[str], tmp_path: Path
) -> None:
    chance = random.Random(3)  # noqa: S311  # moments, not secrets
    log, total, slots = tmp_path / "tokens", 700, 4
    wanted = [sys.executable, "-c", CHILD, str(log), *command, "--total-tokens", str(total)]
    folder = tmp_path / "run"
    kills = 3
    for kill in range(kills + 1):
        before = spent(folder)
        process = await anyio.open_process(wanted, stdout=subprocess.PIPE, stderr=None)
        try:
            with anyio.fail_after(60):
                if kill < kills:
                    # Another process writes there, so nothing here could set an event.
                    while spent(folder) in (None, before):  # noqa: ASYNC110
                        await anyio.sleep(0.005)
                    await anyio.sleep(chance.uniform(0, 0.1))
                    process.kill()
                await process.wait()
        finally:
            await process.aclose()
    assert process.returncode == 0
    told = spent(folder)
    assert told is not None
    generated = log.stat().st_size
    # A kill loses the count of what the traces in flight had generated since one last ended.
    assert told <= total + slots
    assert told <= generated <= total + (kills + 1) * slots * 20
    assert generated > total - 20


def test_the_bar_shows_what_is_spent_and_guesses_no_time() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    slots = Slots(4, total=1_000_000, spent=123_456)
    slots.contested = 7
    done = QuestionResult(
        "q",
        "",
        "1",
        "1",
        correct=True,
        share=1.0,
        ended="settled",
        tokens=9,
        usage=Usage(),
        traces=3,
        seconds=1.0,
    )
    with run_progress(console) as show:
        show(_reading(EvaluationProgress(20, sharing=slots)))
        show(_reading(EvaluationProgress(20, [done] * 5, sharing=slots)))
    shown = screen.getvalue()
    assert "5 settled, 7 contested, 123,456 of 1,000,000 tokens" in shown
    assert "5/20" in shown
    # Before the first trace nothing is known of the questions, and the column is still there.
    assert "-:--" not in shown[shown.index("5/20") :]
