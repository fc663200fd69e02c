"""Which policy, which bounds: by the model's name, the `conviction` object, or the server."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from server_app import MODEL, answers, engine_of, served

from conviction.engines.base import TraceRequest
from conviction.engines.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio


async def verdict_of(server: Any, **fields: Any) -> dict[str, Any]:
    response = await server.chat(**fields)
    assert response.status_code == 200, response.text
    return response.json()["conviction"]


async def test_the_plain_name_has_the_servers_own_policy() -> None:
    async with served(engine_of(7), defaults={"policy": "esc:window=3", "budget": 9}) as server:
        verdict = await verdict_of(server)
    assert verdict["policy"]["name"] == "esc"
    assert verdict["policy"]["window"] == 3
    assert verdict["budget"] == 9


@pytest.mark.parametrize(
    ("fields", "name", "window"),
    [
        ({"model": f"{MODEL}@esc"}, "esc", 4),
        ({"model": f"{MODEL}@esc:window=6"}, "esc", 6),
        ({"conviction": {"policy": "esc:window=6"}}, "esc", 6),
        ({"model": f"{MODEL}@esc", "conviction": {"policy": "esc"}}, "esc", 4),
    ],
)
async def test_a_policy_is_picked_by_name_or_by_the_object(
    fields: dict[str, Any], name: str, window: int
) -> None:
    async with served(engine_of(7)) as server:
        verdict = await verdict_of(server, **fields)
    assert (verdict["policy"]["name"], verdict["policy"]["window"]) == (name, window)


async def test_two_policies_in_one_request_are_refused() -> None:
    async with served(engine_of(7)) as server:
        response = await server.chat(model=f"{MODEL}@esc", conviction={"policy": "majority"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "conviction.policy"


async def test_a_budget_of_the_request_wins_over_all_others() -> None:
    async with served(engine_of(7), defaults={"budget": 9}) as server:
        own = await verdict_of(server, conviction={"policy": "majority:budget=3"})
        asked = await verdict_of(server, conviction={"policy": "majority:budget=3", "budget": 2})
        single = await verdict_of(server, model=f"{MODEL}@single")
    assert (own["budget"], asked["budget"], single["budget"]) == (3, 2, 1)


async def test_a_model_may_be_served_under_another_name() -> None:
    async with served(engine_of(7), model="team@home/model:8b") as server:
        names = [one["id"] for one in (await server.http.get("/v1/models")).json()["data"]]
        named = await verdict_of(server, model="team@home/model:8b@single")
        own = await server.chat()
    assert names[0] == "team@home/model:8b"
    assert "team@home/model:8b@majority" in names
    assert named["policy"]["name"] == "single"
    assert own.status_code == 404


async def test_models_lists_the_policies_that_can_run_on_the_engine() -> None:
    async with served(engine_of(7)) as server:
        informed = {one["id"] for one in (await server.http.get("/v1/models")).json()["data"]}
    async with served(engine_of(7, top_k=0)) as server:
        blind = {one["id"] for one in (await server.http.get("/v1/models")).json()["data"]}
        refused = await server.chat(model=f"{MODEL}@deepconf-low")
    assert f"{MODEL}@deepconf-low" in informed - blind
    assert {MODEL, f"{MODEL}@settle", f"{MODEL}@majority"} <= blind
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_logprobs"


async def test_each_listed_model_can_be_asked_for_and_looked_up() -> None:
    async with served(engine_of(7, 7, 5)) as server:
        for one in (await server.http.get("/v1/models")).json()["data"]:
            assert (await server.http.get(f"/v1/models/{one['id']}")).json() == one
            assert (await server.chat(model=one["id"])).status_code == 200
        missing = await server.http.get("/v1/models/other")
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("fields", "param", "ceiling"),
    [
        ({"conviction": {"budget": 9}}, "conviction.budget", "8"),
        ({"conviction": {"policy": "majority:budget=9"}}, "conviction.budget", "8"),
        ({"model": f"{MODEL}@majority:budget=9"}, "conviction.budget", "8"),
        ({"max_tokens": 101}, "max_tokens", "100"),
        ({"max_completion_tokens": 101}, "max_tokens", "100"),
        ({"conviction": {"time_limit": 60.5}}, "conviction.time_limit", "60"),
        ({"conviction": {"concurrency": 3}}, "conviction.concurrency", "2"),
        ({"conviction": {"total_tokens": 201}}, "conviction.total_tokens", "200"),
    ],
)
async def test_above_a_ceiling_the_request_is_refused_and_the_ceiling_named(
    fields: dict[str, Any], param: str, ceiling: str
) -> None:
    bounds = {
        "budget": 8,
        "max_tokens": 100,
        "seconds": 60,
        "concurrency": 2,
        "total_tokens": 200,
    }
    defaults = {"budget": 4, "max_tokens": 50}
    engine = engine_of(7)
    async with served(engine, ceilings=bounds, defaults=defaults) as server:
        response = await server.chat(**fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "above_ceiling")
    assert f"ceiling of this server, {ceiling}." in error["message"]
    assert engine.generated == []


async def test_a_policys_own_budget_is_cut_to_the_ceiling() -> None:
    async with served(engine_of(7), ceilings={"budget": 3}) as server:
        verdict = await verdict_of(server, model=f"{MODEL}@majority")
    assert verdict["budget"] == 3


async def test_at_a_ceiling_the_request_is_taken() -> None:
    bounds = {"budget": 8, "max_tokens": 100, "seconds": 60, "concurrency": 2}
    async with served(engine_of(7), ceilings=bounds, defaults={"max_tokens": 50}) as server:
        wishes = {"policy": "majority", "budget": 8, "time_limit": 60, "concurrency": 2}
        verdict = await verdict_of(server, max_tokens=100, conviction=wishes)
    assert verdict["budget"] == 8


async def test_no_more_traces_of_a_request_run_at_once_than_it_wants() -> None:
    most = 0

    async def pace(_: Any) -> None:
        nonlocal most
        most = max(most, engine.running)
        await anyio.lowlevel.checkpoint()

    engine = ScriptedEngine(answers(7), pace=pace)
    async with served(engine) as server:
        wishes = {"policy": "majority", "budget": 12, "concurrency": 3}
        verdict = await verdict_of(server, conviction=wishes)
        assert most == 3
        assert verdict["traces"] == {"stop": 12}
        most = 0
        await verdict_of(server, conviction={"policy": "majority", "budget": 12})
        assert most == 12


async def test_time_up_ends_with_the_votes_there_are() -> None:
    async def pace(request: TraceRequest) -> None:
        if request.trace:
            await anyio.sleep_forever()

    async with served(ScriptedEngine(answers(7), pace=pace)) as server:
        wishes = {"policy": "majority", "budget": 60, "concurrency": 1, "time_limit": 1}
        verdict = await verdict_of(server, conviction=wishes)
    assert verdict["ended"] == "time"
    assert verdict["answer"] == "7"


async def test_tokens_spent_end_one_request_with_its_votes_and_no_other() -> None:
    async with served(engine_of(7, concurrency=1, chunk_tokens=4)) as server:
        wishes = {"policy": "majority", "budget": 60}
        limited = await verdict_of(server, conviction={**wishes, "total_tokens": 50})
        other = await verdict_of(server, conviction=wishes)
    assert (limited["ended"], limited["answer"]) == ("tokens", "7")
    assert limited["traces"] == {"stop": 2, "cancelled": 1}
    assert 50 < limited["usage"]["generated"] <= 54
    assert other["traces"] == {"stop": 60}


async def test_requests_leave_the_server_as_it_was() -> None:
    async with served(engine_of(7)) as server:
        before = await verdict_of(server)
        await verdict_of(server, temperature=0, conviction={"policy": "majority", "budget": 2})
        after = await verdict_of(server)
    assert after["policy"] == before["policy"]
    assert after["budget"] == before["budget"]
