"""Recordings as runs to watch: `conviction view`."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx2
import numpy as np
import pytest
from lab_traces import in_memory, on_disk
from tape_reader import TapeReader

from conviction.cli.main import run
from conviction.core import Answer, FinishReason
from conviction.errors import InvalidSettingError
from conviction.events import RunFinished, RunStarted, TraceAdvanced, TraceFinished, TraceStarted
from conviction.lab import replay
from conviction.lab.playback import TOKENS_PER_SECOND, Playback
from conviction.policies import policy, policy_names
from conviction.policies.base import Policy
from conviction.recordings import Pool, PoolMeta, PoolWriter, RecordedTrace
from conviction.verdict import Verdict

QUESTION = "question 0"


def with_texts(folder: Path, *, top_k: int = 20) -> Path:
    """A pool whose traces were timed and wrote something."""
    draw = np.random.default_rng(5)
    with PoolWriter(folder, PoolMeta("a model", top_k, "number")) as writer:
        for number in range(12):
            tokens = int(draw.integers(20, 60))
            values = draw.gamma(9.0, 1.0, tokens).astype(np.float32)
            row = RecordedTrace(
                question_id=QUESTION,
                number=number,
                prompt_hash="0" * 16,
                question="How many?",
                gold="41",
                finish=FinishReason.STOP,
                tokens=tokens,
                text=" ".join(f"w{i}" for i in range(tokens)),
                answer=Answer("41", "41") if number % 3 else Answer("42", "42"),
                correct=bool(number % 3),
                confidences=values if top_k else None,
                started=1.0,
                ended=1.0 + tokens / 10,
            )
            writer.append(row)
    return folder


def opened(path: Path, **options: float) -> Playback:
    return Playback.of(Pool.open(path), QUESTION, **options)


def verdict_of(playback: Playback, steering: Policy, slots: int = 4) -> Verdict:
    *_, (_, last) = playback.events(steering, slots=slots)
    assert isinstance(last, RunFinished)
    return last.verdict


REPLAYED = [name for name in policy_names() if not policy(name).needs_continuation]


@pytest.mark.parametrize("name", REPLAYED)
def test_every_policy_is_played_as_the_lab_replays_it(tmp_path: Path, name: str) -> None:
    playback = opened(with_texts(tmp_path / "pool"))
    steering = policy(name, **({} if name == "single" else {"budget": 12}))
    outcome = replay(steering, playback.traces, concurrency=4)
    verdict = verdict_of(playback, steering)
    assert verdict.tally == outcome.tally
    assert verdict.usage.generated == outcome.tokens
    assert (verdict.ended, verdict.seconds) == (outcome.ended, outcome.path)
    assert len(verdict.traces) == outcome.started
    finishes = verdict.finishes()
    assert finishes.get(FinishReason.LOW_CONFIDENCE, 0) == outcome.stopped


def test_a_policy_that_continues_traces_is_not_played(tmp_path: Path) -> None:
    playback = opened(with_texts(tmp_path / "pool"))
    with pytest.raises(InvalidSettingError, match="a recording has no continuations"):
        verdict_of(playback, policy("settle-regenerate"))


@pytest.mark.parametrize("name", ["settle", "deepconf-low"])
def test_events_come_in_order_of_time_and_every_trace_grows_to_its_end(
    tmp_path: Path, name: str
) -> None:
    playback = opened(with_texts(tmp_path / "pool"))
    happened = list(playback.events(policy(name, budget=12), slots=4))
    assert all(early <= late for (early, _), (late, _) in pairwise(happened))
    assert isinstance(happened[0][1], RunStarted)
    running: set[int] = set()
    grown: dict[int, int] = {}
    written: dict[int, str] = {}
    for _, event in happened:
        match event:
            case TraceStarted(number):
                running.add(number)
                grown[number], written[number] = 0, ""
                assert len(running) <= 4
            case TraceAdvanced(number, chunk):
                assert number in running
                grown[number] += chunk.confidences.size
                written[number] += chunk.text
            case TraceFinished(trace):
                running.remove(trace.id)
                assert grown[trace.id] == trace.tokens
            case _:
                pass
    assert running == set()
    verdict = happened[-1][1].verdict  # type: ignore[union-attr]
    assert {trace.id: trace.text for trace in verdict.traces} == written
    whole = [trace for trace in verdict.traces if trace.complete]
    assert all(playback.texts[trace.id] == trace.text for trace in whole)


def test_the_pace_is_the_recorded_one_or_what_is_asked_for(tmp_path: Path) -> None:
    timed = with_texts(tmp_path / "timed")
    untimed = on_disk(tmp_path / "untimed", in_memory(1))
    assert {round(1 / trace.pace, 6) for trace in opened(timed).traces} == {10.0}
    faster = opened(timed, tokens_per_second=80.0)
    assert {1 / trace.pace for trace in faster.traces} == {80.0}
    assert opened(timed).timed
    assert not faster.timed
    assert {1 / trace.pace for trace in opened(untimed).traces} == {TOKENS_PER_SECOND}


def test_a_pool_of_answers_is_played_without_lines(tmp_path: Path) -> None:
    playback = opened(with_texts(tmp_path / "pool", top_k=0))
    assert verdict_of(playback, policy("settle", budget=12)).answer == "41"
    with pytest.raises(InvalidSettingError, match="without confidences"):
        list(playback.events(policy("deepconf-low", budget=12), slots=4))


def tape_in(path: Path) -> TapeReader:
    found = re.search(r'<script type="application/json" id="tape">(.*?)</script>', path.read_text())
    assert found is not None
    return TapeReader(json.loads(found[1])["frame"])


def test_the_page_is_written_with_the_recording_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, page = with_texts(tmp_path / "pool"), tmp_path / "page.html"
    options = ["--policy", "deepconf-high", "--budget", "10", "--slots", "3", "--html", str(page)]
    assert run(["view", str(pool), "--question", QUESTION, *options]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert str(page) in said.err
    told = tape_in(page)
    assert told.parts["run"]["budget"] == 10
    assert told.parts["run"]["concurrency"] == 3
    assert told.parts["run"]["gold"] == "41"
    steering = policy("deepconf-high", budget=10)
    assert told.parts["verdict"]["answer"] == verdict_of(opened(pool), steering, 3).answer
    assert "w1 w2" in page.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--question", "question 7"], "Did you mean 'question 0'"),
        (["--budget", "13"], "12 were recorded"),
        (["--policy", "settel"], "settle"),
        (["--policy", "majority:budget=2/4"], "Give one"),
        (["--slots", "0"], "slots must be"),
        (["--tokens-per-second", "0"], "tokens_per_second must be"),
        (["--html", "{pool}"], "part of it"),
        (["--html", "{pool}.nowhere/page.html"], "does not exist"),
        (["--port", "70000"], "listen on port 70000"),
    ],
)
def test_what_cannot_be_played_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    pool = with_texts(tmp_path / "pool")
    told = [option.replace("{pool}", str(pool)) for option in options]
    if not {"--html", "--port"} & set(told):
        told += ["--html", str(tmp_path / "page.html")]
    assert run(["view", str(pool), *told]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "page.html").exists()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Generator[None]:
    """Nothing of a process is left, also where the test fails."""
    try:
        yield
    finally:
        process.kill()


def test_the_page_is_served_on_this_machine_until_ctrl_c(tmp_path: Path) -> None:
    pool = with_texts(tmp_path / "pool")
    # Whoever started the tests may ignore SIGINT, and a child inherits that.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from conviction.cli.main import main; main()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", program, "view", str(pool)], stderr=subprocess.PIPE, text=True
        ) as process,
        ended(process),
    ):
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found is not None, line
        with httpx2.Client(trust_env=False, timeout=20) as http:
            assert 'id="tape"' in http.get(found[0]).text
            assert http.get(f"{found[0]}other").status_code == 404
            elsewhere = http.get(found[0], headers={"Host": "elsewhere.example:1"})
            assert elsewhere.status_code == 404
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
