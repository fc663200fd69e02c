"""Under load: every request is answered, and nothing of it stays. How fast: benchmarks/."""

import gc

import anyio
import pytest
from server_app import Served, engine_of, served

pytestmark = pytest.mark.anyio

AT_ONCE = 50
KEPT = 300
"""More than the server keeps of past runs."""


async def ask(server: Served, requests: int) -> list[int]:
    """Ask so often, streamed and not; gives the statuses."""
    left = iter(range(requests))
    statuses: list[int] = []

    async def work() -> None:
        for number in left:
            answer = await server.chat(stream=number % 2 == 0, conviction={"budget": 2})
            statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(work)
    return statuses


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


async def test_two_hundred_at_once_are_all_answered() -> None:
    async with served(engine_of(7, 7, 5), queueing={"running": 20, "queued": 200}) as server:
        statuses: list[int] = []

        async def one() -> None:
            statuses.append((await server.chat()).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(one)
        assert server.service.admission.running == server.service.admission.queued == 0
    assert statuses == [200] * 200


@pytest.mark.timeout(300)
async def test_requests_that_were_answered_leave_nothing_behind() -> None:
    async with served(engine_of(7, remembered=10), queueing={"running": 20}) as server:
        assert await ask(server, KEPT) == [200] * KEPT
        grown: list[int] = []
        while len(grown) < 3 and (not grown or grown[-1] >= KEPT):
            before = objects()
            assert await ask(server, KEPT) == [200] * KEPT
            grown.append(objects() - before)
    # Not one object for each request; a busy machine may clear connections away late, but once.
    assert min(grown) < KEPT, grown
