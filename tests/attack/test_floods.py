"""Floods against a real server: a fair share for each, health, memory, and slots that come back.

The short run is part of every test run. docs/reliability.md has the figures of the long one.
"""

import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from attacked_server import Attacked, HealthWatch, attacked
from server_app import asking

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

LOGGER = logging.getLogger("attack")
logging.getLogger("httpx2").setLevel(logging.WARNING)  # It has a line per request.

SLOTS = 8
CLIENTS = 15
"""That ask easy questions, each again as soon as it is answered."""
CONTESTED = {"policy": "settle-exact:bar=0.999999999,slope=0"}
"""Is hardly ever settled, so that it takes about its whole budget."""
MOST_MEGABYTES = 400
GREEDY, PATIENT = "key-of-the-greedy", "key-of-the-patient"


@asynccontextmanager
async def client(server: Attacked, key: str = "") -> AsyncGenerator[httpx2.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"} if key else None
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=server.url, headers=headers, trust_env=False, timeout=300, limits=limits
    ) as http:
        yield http


async def chat(http: httpx2.AsyncClient, text: str, **fields: Any) -> httpx2.Response:
    return await http.post("/v1/chat/completions", json=asking(text, **fields))


# --- A flood of easy questions --------------------------------------------------------------------


@dataclass
class Flood:
    """Clients that ask easy questions without end.

    Attributes:
        traces: How many traces their answers took in all.
        verdicts: How many answers came.
    """

    server: Attacked
    key: str = ""
    traces: int = 0
    verdicts: int = 0
    on_answer: Callable[[], None] = field(default=lambda: None)
    under_way: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, number: int) -> None:
        async with client(self.server, self.key) as http:
            while True:
                answer = await chat(http, f"Easy {number}, {self.verdicts}?")
                assert answer.status_code == 200, answer.text
                self.verdicts += 1
                self.traces += traces(answer)
                if self.verdicts == CLIENTS:
                    self.under_way.set()
                self.on_answer()


def traces(answer: httpx2.Response) -> int:
    return sum(answer.json()["conviction"]["traces"].values())


async def contested_in_a_flood(
    server: Attacked, budget: int, *, easy: str, patient: str, most: float
) -> tuple[float, Flood]:
    """Traces of others that ended while a contested question was answered, per trace of it.

    Stops as soon as it is more than `most`: the question starves.
    """
    flood = Flood(server, easy)
    per_trace = 0.0
    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(flood.run, number)
        await flood.under_way.wait()
        before = flood.traces

        def check() -> None:
            assert flood.traces - before <= most * budget, "the contested question starves"

        flood.on_answer = check
        async with client(server, patient) as http:
            answer = await chat(http, "Contested?", conviction={**CONTESTED, "budget": budget})
        assert answer.status_code == 200, answer.text
        assert traces(answer) > budget / 2
        per_trace = (flood.traces - before) / traces(answer)
        tasks.cancel_scope.cancel()
    return per_trace, flood


def keys_in(folder: Path) -> list[str]:
    file = folder / "keys"
    file.write_text(f"greedy {GREEDY}\npatient {PATIENT}\n", encoding="utf-8")
    file.chmod(0o600)
    return ["--client-keys", str(file)]


@pytest.mark.parametrize(
    ("with_keys", "shared_by"),
    [pytest.param(False, CLIENTS + 1, id="one client"), pytest.param(True, 2, id="two clients")],
)
async def test_a_contested_question_gets_its_share_in_a_flood_of_easy_ones(
    tmp_path: Path, *, with_keys: bool, shared_by: int, attack_long: bool
) -> None:
    budget = 64 if attack_long else 24
    keys = keys_in(tmp_path) if with_keys else []
    easy, patient = (GREEDY, PATIENT) if with_keys else ("", "")
    # What `FairShares` promises is 5/4 of the number that share; lengths differ, so twice that.
    most = 2 * 5 / 4 * shared_by
    delay = "0.02" if attack_long else "0.002"
    options = ["--slots", str(SLOTS), "--delay", delay, "--max-running", "64", *keys]
    with attacked(tmp_path, *options) as server, HealthWatch(server) as health:
        per_trace, flood = await contested_in_a_flood(
            server, budget, easy=easy, patient=patient, most=most
        )
    LOGGER.info(
        "%d share %d slots: %.1f traces of others per trace of the contested question, %d easy "
        "verdicts; %s",
        *(shared_by, SLOTS, per_trace, flood.verdicts, health),
    )


# --- Clients that hang up -------------------------------------------------------------------------


async def test_clients_that_hang_up_at_any_moment_leave_all_slots_free(
    tmp_path: Path, *, attack_long: bool
) -> None:
    requests, at_once = (5_000, 100) if attack_long else (300, 50)
    chance = random.Random(4)  # noqa: S311  # moments, not secrets
    moments = [chance.choice([0.0, 0.1, 1.0]) * chance.random() for _ in range(requests)]
    left = iter(enumerate(moments))
    answered = 0

    async def ask_and_hang_up(http: httpx2.AsyncClient) -> None:
        nonlocal answered
        for number, moment in left:
            fields: dict[str, Any] = {"stream": number % 2 == 0}
            if number % 3:
                fields["conviction"] = CONTESTED
            with anyio.move_on_after(moment):
                answered += (await chat(http, f"Gone {number}?", **fields)).status_code == 200

    options = ["--slots", str(SLOTS), "--delay", "0.002"]
    with attacked(tmp_path, *options) as server, HealthWatch(server) as health:
        async with client(server) as http, anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(ask_and_hang_up, http)
        await until_quiet(server)
        async with client(server) as http:
            assert (await chat(http, "Still there?")).status_code == 200
        assert server.memory <= MOST_MEGABYTES
        LOGGER.info(
            "%d requests, %d answered before the client hung up; memory %.0f MB; %s",
            *(requests, answered, server.memory, health),
        )


async def until_quiet(server: Attacked) -> None:
    """Wait until nothing runs or waits."""
    with anyio.fail_after(60):
        while any(server.gauge(name) for name in ("traces_running", "running", "queued")):  # noqa: ASYNC110
            await anyio.sleep(0.05)


# --- Memory ---------------------------------------------------------------------------------------


async def test_memory_stays_flat_over_many_requests(tmp_path: Path, *, attack_long: bool) -> None:
    requests = 20_000 if attack_long else 1_000
    looks: list[float] = []
    options = ["--slots", "64", "--delay", "0", "--max-running", "64"]
    with attacked(tmp_path, *options) as server, HealthWatch(server) as health:
        await ask_many(server, 600)  # More than the server keeps of past runs.
        for _ in range(10):
            await ask_many(server, requests // 10)
            looks.append(server.memory)
    listed = ", ".join(f"{one:.0f}" for one in looks)
    LOGGER.info("memory over %d requests: %s MB; %s", requests, listed, health)
    assert max(looks) <= MOST_MEGABYTES
    # The second half grows by what an allocator takes at most, not by something for each request.
    assert looks[-1] - looks[4] <= 5


async def ask_many(server: Attacked, requests: int) -> None:
    left = iter(range(requests))

    async def work(http: httpx2.AsyncClient) -> None:
        for number in left:
            fields = {"model": "scripted@single", "stream": number % 2 == 0}
            assert (await chat(http, f"Number {number}?", **fields)).status_code == 200

    async with client(server) as http, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(work, http)
