"""`conviction serve` as a process of its own: how it starts, what it says, how it ends."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_app import asking, events_of

from conviction.cli import main

SECONDS = 60.0


class Process:
    """A running `conviction serve`, and what it has written on stderr."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "conviction", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"at (http://\S+)/v1")[1]

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What fits on a line of stderr, once there is such a line."""
        deadline = time.monotonic() + SECONDS
        with self._changed:
            while True:
                for line in self.lines:
                    if found := re.search(pattern, line):
                        return found
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    pytest.fail(f"no line fits {pattern!r}: {''.join(self.lines)}")

    def end(self, *signals: signal.Signals) -> int:
        """Send signals and wait for the exit code."""
        for one in signals:
            self.process.send_signal(one)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code


@contextmanager
def serving(*arguments: str, **environment: str) -> Generator[Process]:
    process = Process("-m", "scripted", *arguments, **environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait(SECONDS)
        for pipe in (process.process.stdout, process.process.stderr):
            assert pipe
            pipe.close()


class Asking(threading.Thread):
    """A streamed question in a thread; tells when the first progress has come."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.fields = fields
        self.begun = threading.Event()
        self.text = ""
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            with (
                httpx2.Client(trust_env=False, timeout=SECONDS) as http,
                http.stream(
                    "POST",
                    f"{self.url}/v1/chat/completions",
                    json=asking(stream=True, **self.fields),
                ) as answer,
            ):
                for piece in answer.iter_text():
                    self.text += piece
                    if "traces begun" in self.text:
                        self.begun.set()
        except httpx2.TransportError as error:
            self.error = type(error).__name__

    def events(self) -> list[Any]:
        self.join(SECONDS)
        return events_of(self.text)


ENDLESS = {"conviction": {"policy": "majority:budget=100"}}


def test_it_says_where_it_is_and_how_to_ask() -> None:
    with serving("--delay", "0") as server:
        server.wait_for(r"create\(model=")
        text = "".join(server.lines)
        assert f"Serving scripted (scripted) with the policy settle at {server.url}/v1" in text
        assert f"Watch it: {server.url}/" in text
        (curl,) = re.findall(r"^curl .*$", text, re.MULTILINE)
        answer = subprocess.run(
            ["bash", "-c", curl.replace("curl ", "curl --silent --noproxy '*' ")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
        assert server.end(signal.SIGTERM) == 0
        assert server.process.stdout
        assert server.process.stdout.read() == ""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_come_to_its_end(how: signal.Signals) -> None:
    with serving("--delay", "0.02") as server:
        question = Asking(server.url, conviction={"policy": "majority", "budget": 8})
        assert question.begun.wait(SECONDS)
        assert server.end(how) == 0
        events = question.events()
    assert events[-1] == "[DONE]"
    assert events[-2]["conviction"]["ended"] == "budget"


def test_after_the_time_to_drain_runs_end_with_the_votes_they_have() -> None:
    with serving("--delay", "0.02", "--drain", "0.2") as server:
        question = Asking(server.url, **ENDLESS)
        assert question.begun.wait(SECONDS)
        assert server.end(signal.SIGTERM) == 0
        events = question.events()
    assert events[-1] == "[DONE]"
    assert events[-2]["conviction"]["ended"] == "interrupted"


def test_whoever_waits_when_the_time_to_drain_is_over_hears_of_it() -> None:
    arguments = ("--delay", "0.02", "--drain", "0.2", "--max-running", "1")
    with serving(*arguments) as server:
        first = Asking(server.url, **ENDLESS)
        assert first.begun.wait(SECONDS)
        second = Asking(server.url, **ENDLESS)
        with httpx2.Client(trust_env=False, timeout=SECONDS) as http:
            deadline = time.monotonic() + SECONDS
            while not http.get(f"{server.url}/health").json()["queued"]:
                assert time.monotonic() < deadline
        assert server.end(signal.SIGTERM) == 0
    assert first.events()[-1] == "[DONE]"
    assert second.events()[-1]["error"]["code"] == "shutting_down"


def test_a_second_signal_ends_it_at_once() -> None:
    with serving("--delay", "0.05", "--drain", "600") as server:
        question = Asking(server.url, **ENDLESS)
        assert question.begun.wait(SECONDS)
        # One that comes right after the first, as from a supervisor, is the same one, and a busy
        # machine may hear two late and together; so insist.
        for pause in (0.7, 10.0, 10.0, 10.0):
            with suppress(subprocess.TimeoutExpired):
                server.process.send_signal(signal.SIGINT)
                server.process.wait(pause)
                break
        assert server.process.wait(SECONDS) == 130
        last = question.events()[-1]
    assert last["error"]["code"] == "cancelled"


def test_a_port_that_is_taken_is_an_error_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main.run(["serve", "-m", "scripted", "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"listen on 127.0.0.1, port {port}: address already in use." in said
    assert "--port 0 takes any" in said


def test_an_open_address_without_keys_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVICTION_SERVER_KEYS", raising=False)
    assert main.run(["serve", "-m", "scripted", "--host", "0.0.0.0"]) == 2  # noqa: S104
    said = capsys.readouterr().err
    assert "there are no keys of clients" in said
    assert "--client-keys" in said


def test_an_open_address_with_keys_serves_those_who_have_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann a-key-of-ann\n", encoding="utf-8")
    keys.chmod(0o644)
    with serving("--host", "0.0.0.0", "--client-keys", str(keys), "--delay", "0") as server:  # noqa: S104
        assert "other users of this machine can read the keys" in server.lines[0]
        with httpx2.Client(trust_env=False, timeout=SECONDS) as http:
            assert http.get(f"{server.url}/v1/models").status_code == 401
            headers = {"authorization": "Bearer a-key-of-ann"}
            assert http.get(f"{server.url}/v1/models", headers=headers).status_code == 200
        server.wait_for(r"127\.0\.0\.1 ann GET /v1/models 200")
        assert "a-key-of-ann" not in "".join(server.lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "tossing"], "tossing"),
        (["--answer", "riddles"], "riddles"),
        (["--budget", "200"], "--max-budget"),
        (["--max-tokens", "99999"], "--max-trace-tokens"),
        (["--drain", "-1"], "drain_seconds"),
        (["--temperature", "-1"], "temperature"),
        (["--port", "99999"], "port"),
        (["--served-model", "two words"], "served_model: it is no word"),
        (["--max-total-tokens", "0"], "total_tokens"),
        (["--host", "no such host"], "no such host"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["serve", "-m", "scripted", "--port", "0", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_an_engine_that_does_not_start_is_told_in_one_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = ["--base-url", "http://127.0.0.1:9/v1"]
    log = logging.getLogger("conviction.server")
    before = (log.handlers, log.propagate, log.level)
    assert main.run(["serve", "--port", "0", *address]) == 1
    assert (log.handlers, log.propagate, log.level) == before
    said = capsys.readouterr().err
    assert "127.0.0.1:9" in said
    assert "Traceback" not in said


def test_without_its_packages_it_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conviction.cli.serve.find_spec", lambda _: None)
    assert main.run(["serve"]) == 2
    assert 'pip install "conviction[server]"' in capsys.readouterr().err


def test_help_tells_every_group_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    for group in ("Address", "Engine", "Defaults", "Bounds", "Output"):
        assert f"─ {group} ─" in said


def test_what_serve_always_refuses_is_not_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["serve", "--help"]) == 0
    assert "--templated" not in capsys.readouterr().out
    assert main.run(["serve", "--templated"]) == 2
    assert "/v1/completions" in capsys.readouterr().err


def test_clients_know_the_model_by_the_name_it_was_given() -> None:
    with (
        serving("--served-model", "house-model", "--delay", "0") as server,
        httpx2.Client(trust_env=False, timeout=SECONDS) as http,
    ):
        names = [one["id"] for one in http.get(f"{server.url}/v1/models").json()["data"]]
        assert "house-model" in names
        assert "house-model@deepconf-low" in names
        address = f"{server.url}/v1/chat/completions"
        assert http.post(address, json=asking(model="house-model")).status_code == 200
        assert http.post(address, json=asking(model="scripted")).status_code == 404


def test_a_total_of_tokens_bounds_every_request() -> None:
    with (
        serving("--max-total-tokens", "300", "--slots", "1", "--delay", "0") as server,
        httpx2.Client(trust_env=False, timeout=SECONDS) as http,
    ):
        asked = asking(conviction={"policy": "majority", "budget": 64})
        verdict = http.post(f"{server.url}/v1/chat/completions", json=asked).json()["conviction"]
    assert verdict["ended"] == "tokens"
    assert 300 < verdict["usage"]["generated"] <= 302
