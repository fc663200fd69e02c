"""What a server keeps of requests: bounded, counted whole, and freed at once."""

import gc
import weakref
from collections.abc import Generator
from typing import Any

import anyio
import pytest
from server_app import Served, endless, engine_of, served

from conviction.server.runs import Runs

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def ask_whole(server: Served) -> None:
    assert (await server.chat(conviction={"budget": 2})).status_code == 200


async def ask_streamed(server: Served) -> None:
    assert (await server.events(conviction={"budget": 2}))[-1] == "[DONE]"


async def ask_by_page(server: Served) -> None:
    answer = await server.http.post("/api/runs", json={"question": "How many?"})
    run = answer.json()["id"]
    await server.http.get(f"/api/runs/{run}/events")
    await server.http.get(f"/api/runs/{run}/export")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("ask", [ask_whole, ask_streamed, ask_by_page])
async def test_a_run_that_is_no_longer_kept_is_freed_at_once(ask: Any) -> None:
    async with served(engine_of(7, 7)) as server:
        server.service.runs = runs = Runs(most=1)
        await ask(server)
        [run] = runs.of("")
        freed = weakref.ref(run), weakref.ref(run.tape)  # type: ignore[union-attr]
        del run
        await ask_whole(server)
        with anyio.move_on_after(5):
            while any(one() is not None for one in freed):
                await anyio.sleep(0.01)
        left = [one() for one in freed]
        for one in left:
            if one is not None:
                for r in gc.get_referrers(one):
                    print(type(r), str(r)[:300])
        assert left == [None, None]
