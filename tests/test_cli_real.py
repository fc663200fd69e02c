"""The command as a process of its own, with a real model, on pipes and on a real terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conviction.models import resolve

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "Tell me a long story about a farmer and his sheep."


@pytest.fixture(scope="module", autouse=True)
def _fetched() -> None:
    resolve(MODEL)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "conviction", "think", "-m", MODEL, *arguments]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in found]


def gone(pid: int, *, within: float) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2][1] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def await_line(process: subprocess.Popen[str], pattern: str) -> list[str]:
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"{pattern!r} never came: {lines}")


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    """A run of many long traces, begun and far from its end."""
    arguments = ["--policy", "majority", "--budget", "64", "--max-tokens", "48", "--answer", "text"]
    process = subprocess.Popen(
        command(QUESTION, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_line(process, "^trace ")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_json_on_a_pipe_holds_real_confidences_and_every_token() -> None:
    result = subprocess.run(
        command("What is 2 + 2?", "--json", "--policy", "deepconf-low", "--budget", "8",
                "--max-tokens", "40", "--answer", "text", "--window", "8"),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    verdict = json.loads(result.stdout)
    assert verdict["top_k"] == 20
    assert verdict["usage"]["generated"] == sum(trace["tokens"] for trace in verdict["traces"]) > 0
    # ln 20 is the least that 20 log-probabilities allow.
    assert all(t["mean_confidence"] > 2.995 for t in verdict["traces"] if t["tokens"] > 1)
    assert "\x1b" not in result.stderr


def test_ctrl_c_ends_the_run_with_the_votes_so_far(running: subprocess.Popen[str]) -> None:
    (engine,) = children(running.pid)
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = running.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert running.returncode == 130
    assert "Ended by interrupted" in err
    assert "cancelled" in err
    assert "Traceback" not in err
    assert gone(engine, within=5)


def test_a_killed_command_leaves_no_engine_behind(running: subprocess.Popen[str]) -> None:
    (engine,) = children(running.pid)
    running.kill()
    running.wait(timeout=10)
    assert gone(engine, within=10)


def test_a_killed_engine_ends_the_run_with_the_cause(running: subprocess.Popen[str]) -> None:
    (engine,) = children(running.pid)
    os.kill(engine, signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode in (0, 1)
    # It is started again once; a run that it cannot serve names the cause.
    assert re.search(r"begun again|\d+ of 64 traces failed|think with", err)
    assert "signal 9" in err
    assert "Traceback" not in err


def test_a_terminal_shows_traces_that_grow_and_stdout_stays_clean() -> None:
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command("What is 2 + 2?", "--policy", "majority", "--budget", "2", "--max-tokens", "40",
                "--answer", "text"),
        stdout=subprocess.PIPE, stderr=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    drawn = b""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ready, _, _ = select.select([screen], [], [], 1.0)
        if ready:
            try:
                drawn += os.read(screen, 65536)
            except OSError:  # the terminal's other side has closed
                break
    os.close(screen)
    out, _ = process.communicate(timeout=30)
    picture = drawn.decode()
    assert "thinking" in picture
    assert re.search("[▁-█]{4,}", picture)
    assert "majority" in picture
    assert b"\x1b" not in out
