"""Whatever a server of completions does, a question gets a true answer or an error that says why.

Every mode of `upstream.MODES` is met by think, eval and serve. Nothing hangs beyond its limit, no
failure is taken for a result, what a server says is shown in its beginning and commands nothing.
"""

import json
import os
import re
import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from completion_events import assert_idle
from scripted_server import ScriptedServer
from server_app import Served, asking, events_of, served
from upstream import MODES, faulty, question

from conviction.answers import kind
from conviction.cli.main import run
from conviction.core import Sampling
from conviction.engines.base import Capabilities
from conviction.engines.openai import OpenAIEngine
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import EvaluationPlan, PromptedQuestion
from conviction.evaluation.results import QuestionResult
from conviction.evaluation.run import evaluate
from conviction.evaluation.stored import read_run
from conviction.evaluation.summary import summarise
from conviction.policies import policy
from conviction.prompts import PromptStyle

# The first test of eval, and of serve, meets all modes.
pytestmark = pytest.mark.timeout(900)

LIMIT = 1.0
"""Seconds for a question; those that answer at all answer at once."""
AT_ONCE = 8
TRACES = 2
SLACK = 20.0
"""Seconds that a busy machine may take beyond a limit."""
MOST_TOKENS = 256

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def upstream() -> Generator[ScriptedServer]:
    with faulty() as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is kept what the server can do, so that it is found out once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVICTION_CACHE", str(cache))
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)


def check_words(text: str) -> None:
    """A message has the beginning of the server's words, and no control character of theirs."""
    assert not CONTROL.search(text), repr(CONTROL.search(text))
    assert not re.search("W{301}", text)
    assert not re.search(r"^ERROR forged", text, re.MULTILINE)


def opened(server: ScriptedServer, **settings: Any) -> OpenAIEngine:
    """An engine that has found out all it wants to know of a server."""
    engine = OpenAIEngine(server.url, model="told", concurrency=AT_ONCE, **settings)
    engine._capabilities = Capabilities("told", 20, AT_ONCE)
    return engine


# --- think ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_think(mode: str, upstream: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    expected = MODES[mode]
    limit = SLACK if expected.outcome == "answer" else LIMIT
    began = time.monotonic()
    arguments = [
        *("think", question(mode), "--base-url", upstream.url, "--time-limit", str(limit)),
        *("--policy", "majority", "--budget", str(TRACES), "--answer", "number", "--json"),
        *("--max-tokens", str(MOST_TOKENS), "--no-history", "--model", "told"),
    ]
    code = run(arguments)
    assert time.monotonic() - began < limit + SLACK
    out, err = capsys.readouterr()
    check_words(err)
    assert code == (0 if expected.outcome == "answer" else 1), err
    if expected.outcome == "failure":
        assert out == ""
        assert "error:" in err
        return
    check_words(out)
    verdict = json.loads(out)
    assert verdict["answer"] == ("41" if expected.outcome == "answer" else None)
    check_usage(verdict["usage"], expected.tokens)


def check_usage(usage: dict[str, int], tokens: int | None) -> None:
    assert usage["generated"] > 0
    if tokens is not None:
        assert usage["generated"] == TRACES * tokens


# --- eval -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(
    upstream: ScriptedServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[QuestionResult]]:
    """The result of every mode, and that of a second run of the same evaluation."""
    found: dict[str, list[QuestionResult]] = {}
    folder = tmp_path_factory.mktemp("runs")
    places = anyio.Semaphore(AT_ONCE)

    async def measure(mode: str) -> None:
        item = DatasetQuestion("q", question(mode), "41", "line 1")
        plan = EvaluationPlan(
            [PromptedQuestion.of(item, answers="number", style=PromptStyle.PLAIN)],
            policy("majority", budget=TRACES),
            answers="number",
            sampling=Sampling(max_tokens=MOST_TOKENS),
            time_limit=SLACK if MODES[mode].outcome == "answer" else LIMIT,
        )
        path = folder / f"{list(MODES).index(mode)}.run"
        for _ in range(2):
            async with places, opened(upstream) as engine:
                with anyio.fail_after(LIMIT + 2 * SLACK):
                    await evaluate(plan, path, engine=engine, answers=kind("number"))
                assert_idle(engine)
            found.setdefault(mode, []).extend(read_run(path).results)

    async def all_modes() -> None:
        async with anyio.create_task_group() as tasks:
            for mode in MODES:
                tasks.start_soon(measure, mode)

    anyio.run(all_modes)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_eval(mode: str, evaluated: dict[str, list[QuestionResult]]) -> None:
    first, second = evaluated[mode]
    expected = MODES[mode]
    figures = summarise([first], 1)
    if expected.outcome == "failure":
        assert (first.answer, first.correct, first.failed) == (None, None, True)
        assert (figures.failed, figures.finished, figures.counted) == (1, 0, 0)
        assert not figures.complete
        check_words(first.error or "")
        assert second.failed
        assert second != first, "it was not asked again"
        return
    assert figures.complete
    assert first == second, "it was asked again"
    assert first.correct == (expected.outcome == "answer")
    check_usage({"generated": first.tokens}, expected.tokens)
    for warning in first.warnings:
        check_words(warning)


# --- serve ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(upstream: ScriptedServer) -> dict[str, dict[str, Any]]:
    """What clients get in every mode, all at the same time, whole and streamed."""
    found: dict[str, dict[str, Any]] = {}
    slowest, healthy = 0.0, 0

    async def ask(server: Served, mode: str) -> None:
        expected = MODES[mode]
        waits = expected.outcome == "no answer" or expected.status == 504
        limit = LIMIT if waits else SLACK
        settings = {"budget": TRACES, "policy": "majority", "answers": "number"}
        body = asking(question(mode), model="told", conviction={**settings, "time_limit": limit})
        body["max_tokens"] = MOST_TOKENS
        path = "/v1/chat/completions"
        got: dict[bool, httpx2.Response] = {}

        async def post(*, stream: bool) -> None:
            got[stream] = await server.http.post(path, json={**body, "stream": stream})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(post, stream=False))
            tasks.start_soon(partial(post, stream=True))
        found[mode] = {"whole": got[False], "streamed": events_of(got[True].text)}

    async def watch(server: Served) -> None:
        nonlocal slowest, healthy
        while True:
            began = time.monotonic()
            # A kept connection may be closed just when it is used again.
            with suppress(httpx2.ReadError, httpx2.RemoteProtocolError):
                await server.http.get("/health")
                healthy += 1
            slowest = max(slowest, time.monotonic() - began)
            await anyio.sleep(0.3)

    async def one_at_a_time(mode: str, places: anyio.Semaphore) -> None:
        # Each has an engine of its own: one failing server is left alone for all of its traces.
        # It gives up at once, so that the reason is heard however busy this machine is.
        engine = opened(upstream, retries=0, patience=0.0)
        async with (
            places,
            served(engine, history=False) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(watch, server)
            await ask(server, mode)
            tasks.cancel_scope.cancel()

    async def all_modes() -> None:
        places = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for mode in MODES:
                tasks.start_soon(one_at_a_time, mode, places)

    anyio.run(all_modes)
    assert slowest < SLACK
    assert healthy >= len(MODES)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_serve(mode: str, answers: dict[str, dict[str, Any]]) -> None:
    expected = MODES[mode]
    whole: httpx2.Response = answers[mode]["whole"]
    events: list[Any] = answers[mode]["streamed"]
    if expected.outcome == "failure":
        assert whole.status_code == expected.status, whole.text
        assert set(whole.json()) == {"error"}
        check_words(whole.json()["error"]["message"])
        assert (whole.status_code == 503) == ("retry-after" in whole.headers)
        assert set(events[-1]) == {"error"}
        check_words(events[-1]["error"]["message"])
        return
    assert whole.status_code == 200, whole.text
    choice = whole.json()["choices"][0]
    assert choice["message"]["content"]
    check_usage({"generated": whole.json()["usage"]["completion_tokens"]}, expected.tokens)
    assert events[-1] == "[DONE]"
