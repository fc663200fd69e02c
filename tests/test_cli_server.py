"""The command line with a server of completions: a real process, a scripted server.

What is refused at once is so in this process: to start one takes longer than all the rest.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from completion_events import KEY, STOP, event, json_answer, position, stream, usage
from scripted_server import Received, ScriptedServer, Step, serving

from conviction.cli.main import run
from conviction.recordings import Pool

pytestmark = pytest.mark.anyio

QUESTION = "What is 12 * 12 - 44?"
SAID = "So it is 100.\nAnswer: 100"


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Told:
    """A server of one model that answers every question with the same words.

    Attributes:
        most: The most log-probabilities that it gives; what asks for more is answered without.
        key: The key that it wants.
    """

    most: int = 20
    key: str | None = None

    def __call__(self, received: Received) -> list[Step]:
        if self.key and received.headers.get("authorization") != f"Bearer {self.key}":
            return [json_answer({"error": {"message": "no key, no answer"}}, "401 Unauthorized")]
        if received.path.endswith("/models"):
            return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
        if received.path.endswith("/metrics"):
            return [json_answer({}, "404 Not Found")]
        places = self.places(received.body)
        if received.body["stream"]:
            return [stream(event(SAID, *places), STOP, usage(9, len(places) or 1))]
        choice: dict[str, Any] = {"message": {"content": SAID}, "text": SAID}
        if places:
            choice["logprobs"] = {"content": places}
        return [json_answer({"choices": [choice]})]

    def places(self, body: dict[str, Any]) -> list[Any]:
        asked = body.get("top_logprobs") or int(body.get("logprobs") or 0)
        return [position(*[-1.0 - k / 10 for k in range(min(asked, self.most))])] * 4


async def conviction(*arguments: str, cache: Path, **environment: str) -> Done:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONVICTION")}
    ours |= {"CONVICTION_CACHE": str(cache), "CONVICTION_CONFIG": os.devnull}
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [sys.executable, "-m", "conviction", *arguments],
            env={**ours, **environment},
            check=False,
            stdin=None,
        )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def traces(server: ScriptedServer) -> list[Received]:
    """The requests that asked for a trace of the question."""
    return [
        request
        for request in server.requests
        if request.body and QUESTION in json.dumps(request.body, ensure_ascii=False)
    ]


async def test_a_question_is_answered_and_the_server_is_looked_at_only_once(
    tmp_path: Path,
) -> None:
    arguments = ["think", QUESTION, "--budget", "6"]
    async with serving(Told()) as server:
        first = await conviction(*arguments, "--base-url", server.url, cache=tmp_path)
        asked = len(server.requests) - len(traces(server))
        second = await conviction(*arguments, "--base-url", server.url, cache=tmp_path)
        assert (first.code, first.out) == (second.code, second.out) == (0, "100\n"), first.err
        # The list of models is asked for every time: it shows that the server is there.
        assert len(server.requests) - len(traces(server)) == asked + 1
        assert asked > 5
    assert f"told at {server.url}" in first.err
    assert traces(server)[0].body["top_logprobs"] == 20
    assert traces(server)[0].body["model"] == "told"


async def test_a_prompt_with_its_template_goes_to_completions_as_it_is(tmp_path: Path) -> None:
    templated = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
    async with serving(Told()) as server:
        done = await conviction(
            *("think", templated, "--templated", "--base-url", server.url, "--budget", "2"),
            cache=tmp_path,
        )
    assert done.code == 0, done.err
    assert {request.path for request in traces(server)} == {"/v1/completions"}
    assert traces(server)[0].body["prompt"] == templated
    assert traces(server)[0].body["logprobs"] == 20


async def test_a_server_that_leaves_log_probabilities_out_is_named_with_the_way_round(
    tmp_path: Path,
) -> None:
    async with serving(Told(most=0)) as server:
        arguments = ["think", QUESTION, "--base-url", server.url, "--budget", "4"]
        refused = await conviction(*arguments, "--policy", "deepconf-high", cache=tmp_path)
        answered = await conviction(*arguments, cache=tmp_path)
        looked = await conviction("doctor", "--base-url", server.url, cache=tmp_path)
    assert (refused.code, refused.out) == (1, "")
    for word in (server.url, "asked for 20", "left them out", "--policy majority"):
        assert word in refused.err
    assert (answered.code, answered.out) == (0, "100\n"), answered.err
    assert looked.code == 1
    assert "left them out" in " ".join(looked.out.split())
    assert "--policy majority" in " ".join(looked.out.split())


async def test_fewer_log_probabilities_are_used_and_told_once(tmp_path: Path) -> None:
    async with serving(Told(most=5)) as server:
        done = await conviction(
            *("think", QUESTION, "--base-url", server.url, "--budget", "4", "--json"),
            cache=tmp_path,
        )
    verdict = json.loads(done.out)
    assert verdict["top_k"] == 5
    assert traces(server)[0].body["top_logprobs"] == 5
    assert sum("k = 5" in warning for warning in verdict["warnings"]) == 1


# --- Keys -----------------------------------------------------------------------------------------


async def test_the_key_comes_from_the_environment_or_a_file_and_is_never_shown(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    async with serving(Told(key=KEY)) as server:
        arguments = ["think", QUESTION, "--base-url", server.url, "--budget", "2", "--json"]
        ways: list[tuple[list[str], dict[str, str]]] = [
            ([], {"CONVICTION_API_KEY": KEY}),
            (["--api-key-env", "MY_KEY"], {"MY_KEY": KEY}),
            (["--api-key-file", str(file)], {}),
        ]
        for options, environment in ways:
            done = await conviction(*arguments, *options, cache=tmp_path / "c", **environment)
            assert done.code == 0, done.err
            assert KEY not in done.out + done.err
        kept = [path.read_bytes() for path in (tmp_path / "c").rglob("facts.db")]
        assert kept
        assert not any(KEY.encode() in data for data in kept)
        without = await conviction(*arguments, cache=tmp_path / "c")
        wrong = await conviction(*arguments, cache=tmp_path / "c", CONVICTION_API_KEY="sk-other")
    assert without.code == wrong.code == 1
    assert "CONVICTION_API_KEY" in without.err
    assert "key that belongs" in wrong.err
    assert "sk-other" not in wrong.err


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--api-key-env", "sk-the-key-itself"], {}, "no variable of that name"),
        (["--api-key-env", "A", "--api-key-file", "b"], {"A": "x"}, "Give only one"),
        (["--api-key-file", "none-such"], {}, "none-such: No such file"),
        ([], {"CONVICTION_API_KEY": "sk-two\nlines"}, "no single line"),
        ([], {"CONVICTION_API_KEY": "sk-schlüssel"}, "plain characters"),
        (["--concurrency", "0"], {}, "concurrency"),
        (["--stall-timeout", "-1"], {}, "stall_timeout"),
        (["--restarts", "-1"], {}, "restarts"),
    ],
)
async def test_wrong_options_are_refused_before_anything_is_asked(
    *,
    options: list[str],
    environment: dict[str, str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settled = {"CONVICTION_CACHE": str(tmp_path), "CONVICTION_CONFIG": os.devnull}
    for name, value in {**settled, **environment}.items():
        monkeypatch.setenv(name, value)
    async with serving(Told()) as server:
        arguments = ["think", QUESTION, "--base-url", server.url, *options]
        assert await anyio.to_thread.run_sync(run, arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in " ".join(said.err.split())
    assert "sk-" not in said.err
    assert not server.requests


@pytest.mark.parametrize("command", ["think", "doctor"])
@pytest.mark.parametrize(
    "option", [["--templated"], ["--api-key-file", "key"], ["--concurrency", "3"]]
)
def test_options_of_servers_need_a_server(
    command: str,
    option: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    assert run([command, *([QUESTION] if command == "think" else []), *option]) == 2
    assert "--base-url" in capsys.readouterr().err


# --- What goes wrong ------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_an_error_with_its_address(tmp_path: Path) -> None:
    async with serving([]) as server:
        url = server.url
    done = await conviction("think", QUESTION, "--base-url", url, cache=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert f"reach {url}: connection refused" in done.err
    assert "Traceback" not in done.err


async def test_an_address_without_a_scheme_is_wrong_use(tmp_path: Path) -> None:
    done = await conviction("think", QUESTION, "--base-url", "localhost:8000", cache=tmp_path)
    assert done.code == 2
    assert "http://" in done.err


async def test_one_of_two_servers_may_be_away_and_the_reader_is_told(tmp_path: Path) -> None:
    async with serving([]) as gone:
        pass
    async with serving(Told()) as server:
        urls = ["--base-url", gone.url, "--base-url", server.url]
        done = await conviction("think", QUESTION, *urls, "--budget", "4", cache=tmp_path)
        looked = await conviction("doctor", *urls, "--json", cache=tmp_path)
    assert (done.code, done.out) == (0, "100\n")
    assert f"{gone.url} is left out" in done.err
    found = json.loads(looked.out)
    assert looked.code == 1
    assert [line["ok"] for line in found if line["what"] == "server"] == [False, True]


# --- The doctor -----------------------------------------------------------------------------------


async def test_the_doctor_tells_what_a_server_does(tmp_path: Path) -> None:
    async with serving(Told()) as server:
        shown = await conviction("doctor", "--base-url", server.url, cache=tmp_path, COLUMNS="200")
        told = await conviction("doctor", "--base-url", server.url, "--json", cache=tmp_path)
    assert shown.code == 0, shown.out
    assert "20 a token" in shown.out
    values = {line["what"]: line["value"] for line in json.loads(told.out)}
    assert values["server"] == server.url
    assert (values["model"], values["context"]) == ("told", 4096)
    assert (values["log-probabilities"], values["vLLM's arguments"]) == (20, False)
    # It does not count its prompts' tokens.
    assert values["continuing"] is None
    # It says the same whatever the seed, so nothing is known of those.
    assert values["seeds"] is None


# --- Recording ------------------------------------------------------------------------------------


async def test_a_run_can_be_recorded_for_the_lab(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    async with serving(Told()) as server:
        arguments = ["think", QUESTION, "--base-url", server.url, "--policy", "majority"]
        options = ["--budget", "3", "--record", str(pool), "--answer", "number"]
        done = await conviction(*arguments, *options, cache=tmp_path)
        assert (done.code, done.out) == (0, "100\n"), done.err
        asked = len(server.requests)
        other = await conviction(*arguments, *options, "--temperature", "1", cache=tmp_path)
        assert len(server.requests) == asked
    (question,) = Pool.open(pool).questions
    traces = Pool.open(pool).traces(question.id)
    assert [answer and answer.text for answer in traces.answers] == ["100"] * 3
    assert traces.tokens.tolist() == [4] * 3
    assert other.code == 1
    assert "other settings" in other.err
