"""Whatever the traces hold, the server answers others meanwhile, and the time limit holds."""

import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from server_app import SECONDS, served

from conviction.answers import KINDS, AnswerKind, kinds
from conviction.engines.scripted import Script, ScriptedEngine

pytestmark = pytest.mark.anyio

LONGEST_BLOCK = 1.0
"""CPU seconds that may pass in one go; the texts below once took 5 to 70, all in one go."""

TEXTS = {
    "newlines": "\n" * 16_000,
    "newlines and spaces": " \n" * 16_000,
    "spaces after a marker": "Answer: 5" + " " * 100_000,
    "spaces after hashes": "#### 5\n####" + " " * 100_000,
    "nested boxes": "\\boxed{" * 5_000 + "}" * 5_000,
    "nested boxes that are never closed": "\\boxed{" * 5_000,
    "nested JSON": "[" * 50_000,
    "emphasis": "Answer: " + "*" * 50_000,
    "one long formula": "\\boxed{" + "x^{y+1}+" * 10_000 + "1}",
}

_HANGS, _GO_ON = threading.Event(), threading.Event()


class Slow(AnswerKind):
    """Reads nothing until it is told to go on."""

    name = "slow"

    def extract(self, text: str) -> str | None:
        _HANGS.set()
        _GO_ON.wait(SECONDS)
        return text

    def canonical(self, answer: str) -> str:
        return answer


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setitem(KINDS.builtin, "slow", f"{__name__}:Slow")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    yield
    _GO_ON.set()


def _this_module() -> object:
    return type("module", (), {"Slow": Slow})


@asynccontextmanager
async def longest_block() -> AsyncGenerator[list[float]]:
    """The most CPU time of this process between two turns of the event loop.

    CPU time, since on a busy machine seconds say nothing; and of the whole process, since one call
    in another thread may hold the interpreter as well.
    """
    longest = [0.0]

    async def watch() -> None:
        before = time.process_time()
        while True:
            await anyio.sleep(0.005)
            now = time.process_time()
            longest[0] = max(longest[0], now - before)
            before = now

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield longest
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("kind", kinds())
async def test_no_text_blocks_the_server(kind: str) -> None:
    scripts = [Script.even(text, tokens=4) for text in TEXTS.values()]
    options = {"policy": f"majority:budget={len(scripts)}", "answers": kind, "time_limit": 30.0}
    async with served(ScriptedEngine(scripts)) as server, longest_block() as longest:
        response = await server.chat(conviction=options)
        health = await server.http.get("/health")
    assert response.status_code == 200
    assert health.json()["status"] == "ok"
    assert longest[0] < LONGEST_BLOCK


async def test_a_slow_kind_of_another_package_keeps_neither_the_server_nor_the_run_waiting(
    slow: None,
) -> None:
    del slow
    engine = ScriptedEngine([Script.even("Answer: 5", tokens=4)])
    options = {"policy": "majority:budget=3", "answers": "slow", "time_limit": 3.0}
    answered: list[object] = []
    async with served(engine) as server, anyio.create_task_group() as tasks:

        async def ask() -> None:
            answered.append((await server.chat(conviction=options)).json())

        tasks.start_soon(ask)
        await anyio.to_thread.run_sync(_HANGS.wait, SECONDS)
        assert (await server.http.get("/health")).json()["running"] == 1
        other = await server.chat(conviction={"policy": "single", "answers": "number"})
        assert other.json()["conviction"]["answer"] == "5"
        assert not answered
    assert not _GO_ON.is_set()
    told = answered[0]["conviction"]  # type: ignore[index]
    assert (told["answer"], told["ended"]) == (None, "time")
    assert "The answers of 3 of 3 traces were not read before the run ended." in told["warnings"]
