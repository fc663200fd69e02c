"""kill -9 at any moment loses nothing that was there, doubles nothing, and a rerun completes it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tens import data_set

from conviction.database import is_blank
from conviction.errors import ConvictionError
from conviction.evaluation.stored import read_run
from conviction.history import History
from conviction.recordings import Pool

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
    pytest.mark.timeout(300),  # a busy machine starts programs slowly
]

SUPPORT = Path(__file__).parents[1] / "support"
QUESTIONS = 12
TRACES = 4


class Commands:
    """Commands of conviction that are run one after another, and killed."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        ours = {name: one for name, one in os.environ.items() if not name.startswith("CONVICTION")}
        environment = {"CONVICTION_CONFIG": os.devnull, "CONVICTION_CACHE": str(folder / "cache")}
        self._process = subprocess.Popen(
            [sys.executable, SUPPORT / "run_commands.py", self.output],
            env={**ours, **environment, "CONVICTION_HISTORY": str(folder / "history.db")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running = 0

    def begin(self, arguments: Sequence[str]) -> None:
        assert self._process.stdin
        self.output.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        self._running = int(self._told("pid"))

    def end(self, *signals: signal.Signals) -> int:
        """Send signals, wait for the end, and give the exit code."""
        for one in signals:
            with suppress(ProcessLookupError):
                os.kill(self._running, one)
        code = int(self._told("ended"))
        self._running = 0
        return code

    def close(self) -> None:
        if self._running:
            self.end(signal.SIGKILL)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()

    def _told(self, word: str) -> str:
        assert self._process.stdout
        first, _, second = self._process.stdout.readline().rstrip("\n").partition(" ")
        assert first == word
        return second


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    running = Commands(tmp_path)
    yield running
    running.close()


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return 100 if request.config.getoption("--attack-long") else 10


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return data_set(tmp_path / "questions.jsonl", QUESTIONS)


SCRIPTED = ("-m", "scripted", "--delay", "0.003", "--answer", "number", "--quiet")


def recorded(path: Path) -> dict[tuple[str, int], Any]:
    """The traces of a pool without their times; empty before there is one."""
    if not path.exists() or is_blank(path):
        return {}
    try:
        pool = Pool.open(path)
    except ConvictionError as error:
        if "holds no recorded trace" in error.found:
            return {}
        raise
    found: dict[tuple[str, int], Any] = {}
    for question in pool.questions:
        traces, texts = pool.traces(question.id), pool.texts(question.id)
        assert len(set(traces.ids.tolist())) == len(traces)
        for place, number in enumerate(traces.ids.tolist()):
            assert traces.confidences
            values = traces.confidences[place].tobytes(), traces.answers[place]
            found[question.id, number] = (texts[place], traces.seeds.tolist()[place], *values)
    assert pool.check() == ()
    return found


def evaluated(path: Path) -> dict[str, Any]:
    """The results of a run without their times; empty before there is one."""
    if not path.exists() or is_blank(path):
        return {}
    results = read_run(path).results
    assert len({result.id for result in results}) == len(results)
    return {one.id: (one.answer, one.votes, one.tokens, one.usage) for one in results}


@pytest.mark.parametrize("what", ["record", "eval"])
def test_what_was_kept_stays_and_a_rerun_completes_it(
    tmp_path: Path, commands: Commands, questions: Path, kills: int, what: str
) -> None:
    path, choose = tmp_path / "kept.db", random.Random(11)  # noqa: S311
    read = recorded if what == "record" else evaluated
    more = ["-n", str(TRACES)] if what == "record" else ["--budget", str(TRACES)]
    arguments = [what, str(questions), *SCRIPTED, *more]
    if what == "eval":
        arguments += ["--policy", "majority"]
    commands.begin([*arguments, "-o", str(tmp_path / "whole.db")])
    began = time.monotonic()
    assert commands.end() == 0, commands.output.read_text()
    seconds = time.monotonic() - began
    whole = read(tmp_path / "whole.db")
    assert len(whole) == (QUESTIONS * TRACES if what == "record" else QUESTIONS)

    killed = began_again = 0
    while killed < kills:
        commands.begin([*arguments, "-o", str(path)])
        time.sleep(choose.uniform(0, seconds / 2))
        before = read(path)
        code = commands.end(signal.SIGKILL)
        killed += code == -signal.SIGKILL
        after = read(path)
        assert before.items() <= after.items() <= whole.items()
        if len(after) == len(whole):
            assert code in (0, -signal.SIGKILL)
            path.unlink()
            began_again += 1
        assert began_again <= killed + 5
    commands.begin([*arguments, "-o", str(path)])
    assert commands.end() == 0, commands.output.read_text()
    assert read(path) == whole
    assert not [one for one in tmp_path.iterdir() if one.name.startswith("kept.db-")]


def address(commands: Commands) -> str:
    """Where a server says that it listens."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        said = commands.output.read_text() if commands.output.exists() else ""
        if " at http://" in said and "/v1" in said:
            return said.partition(" at ")[2].partition("/v1")[0]
        time.sleep(0.02)
    pytest.fail(f"the server does not start: {said}")


def ask(http: httpx2.Client, url: str, question: str) -> str:
    answer = http.post(
        f"{url}/v1/chat/completions",
        json={
            "model": "scripted",
            "messages": [{"role": "user", "content": question}],
            "conviction": {"policy": f"majority:budget={TRACES}"},
        },
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["conviction"]["answer"])


def test_a_server_keeps_every_verdict_that_its_history_has_shown(
    tmp_path: Path, commands: Commands, kills: int
) -> None:
    history, choose = History(tmp_path / "history.db"), random.Random(12)  # noqa: S311
    serve = ["serve", "-m", "scripted", "--delay", "0.001", "--port", "0", "--history"]
    answered: dict[str, str] = {}
    shown: list[tuple[int, str, str | None]] = []
    # A verdict is kept a moment after it was answered: nothing waits for the disk.
    with httpx2.Client(trust_env=False, timeout=30.0) as http:
        for kill in range(kills + 1):
            commands.begin([*serve, "--answer", "number"])
            url = address(commands)
            for number in range(3 if kill < kills else 1):
                question = f"What is {kill} + {number}?"
                answered[question] = ask(http, url, question)
            if kill < kills:
                time.sleep(choose.uniform(0, 0.02))
                before = listed(history)
                assert commands.end(signal.SIGKILL) == -signal.SIGKILL
            else:
                assert commands.end(signal.SIGINT) in (0, 130), commands.output.read_text()
                before = []
            after = listed(history)
            assert after[: len(shown)] == shown
            assert after[: len(before)] == before
            assert len({question for _, question, _ in after}) == len(after)
            assert all(answered[question] == answer for _, question, answer in after)
            shown = after
    assert len(shown) > 2 * kills
    assert history.check() == ()
    for number, question, answer in shown:
        assert history.verdict(number)["question"] == question
        assert history.verdict(number)["answer"] == answer


def listed(history: History) -> list[tuple[int, str, str | None]]:
    """The verdicts of a history, the oldest first."""
    return [(one.id, one.question, one.answer) for one in reversed(history.entries())]
