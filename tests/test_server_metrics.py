"""`/metrics` and `/health`: what was counted, and whether it lives."""

import re

import anyio
import pytest
from server_app import cut, endless, engine_of, served, until

from conviction.engines.scripted import ScriptedEngine
from conviction.errors import EngineUnavailableError

pytestmark = pytest.mark.anyio


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_verdicts_traces_and_tokens_are_counted_by_what_became_of_them() -> None:
    engine = engine_of(7, 5, 7, 7)
    async with served(engine) as server:
        for _ in range(3):
            await server.chat(conviction={"policy": "majority", "budget": 4})
        await server.chat(stream=True)
        answer = await server.http.get("/metrics")
    text = answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert value(text, 'conviction_verdicts_total{ended="budget"}') == 3
    assert value(text, 'conviction_verdicts_total{ended="settled"}') == 1
    counted = sum(
        value(text, f'conviction_tokens_total{{fate="{fate}"}}')
        for fate in ("voted", "unvoted", "stopped", "cancelled", "failed")
    )
    assert counted == sum(engine.generated)
    assert value(text, "conviction_verdict_seconds_count") == 4
    assert value(text, 'conviction_first_byte_seconds_count{stream="true"}') == 1
    assert value(text, 'conviction_first_byte_seconds_count{stream="false"}') == 3
    assert value(text, "conviction_running") == 0
    assert value(text, "conviction_saved_tokens_estimate_total") > 0


async def test_what_runs_and_waits_shows_while_it_does() -> None:
    engine = endless(concurrency=3)
    bounds = {"running": 1, "queued": 1}
    async with served(engine, queueing=bounds) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.chat)
        await until(lambda: engine.running == 3)
        tasks.start_soon(server.chat)
        await until(lambda: server.service.admission.queued == 1)
        await server.chat()
        text = (await server.http.get("/metrics")).text
        health = (await server.http.get("/health")).json()
        tasks.cancel_scope.cancel()
    assert value(text, "conviction_running") == 1
    assert value(text, "conviction_queued") == 1
    assert value(text, "conviction_traces_running") == 3
    assert value(text, 'conviction_refusals_total{reason="overloaded"}') == 1
    assert (health["status"], health["running"], health["queued"]) == ("ok", 1, 1)


async def test_two_servers_in_one_process_count_apart() -> None:
    async with served(engine_of(7)) as first, served(engine_of(7)) as second:
        await first.chat()
        text = (await second.http.get("/metrics")).text
    assert value(text, "conviction_verdict_seconds_count") == 0


async def test_an_engine_that_has_gone_makes_the_server_unwell() -> None:
    class Gone(ScriptedEngine):
        async def check(self) -> None:
            raise EngineUnavailableError(tried="reach it", found="silence", remedy="Start it.")

    async with served(Gone([cut("x")])) as server:
        answer = await server.http.get("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unwell"


async def test_a_server_that_is_about_to_end_says_so_and_takes_nothing() -> None:
    async with served(engine_of(7)) as server:
        server.service.close()
        health = await server.http.get("/health")
        answer = await server.chat()
    assert (health.status_code, health.json()["status"]) == (503, "closing")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert answer.headers["retry-after"]
