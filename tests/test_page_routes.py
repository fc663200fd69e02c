"""What the page is fed with: runs begin, are told of, and are forgotten."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import page_runs
import pytest
from server_app import SECONDS, Served, endless, engine_of, served, until
from tape_reader import TapeReader

from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import EngineError
from conviction.server.runs import Runs

pytestmark = pytest.mark.anyio

KEYS = {"sesame-open": "ali", "another-key": "baba"}


async def begin(server: Served, **fields: Any) -> str:
    response = await server.http.post("/api/runs", json={"question": "How many?", **fields})
    assert response.status_code == 201, response.text
    return response.json()["id"]


async def frames(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def follow(server: Served, run: str, last: int | None = None) -> list[dict[str, Any]]:
    """All frames that a page gets until the run is over."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with anyio.fail_after(SECONDS):
        async with server.http.stream("GET", f"/api/runs/{run}/events", headers=headers) as told:
            assert told.headers["content-type"].startswith("text/event-stream")
            return [frame async for frame in frames(told)]


async def test_a_run_is_told_frame_by_frame_to_its_verdict() -> None:
    async with served(engine_of(7, 7, 7, 5)) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 4})
        told = await follow(server, run)
        whole = (await server.http.get(f"/api/runs/{run}")).json()
    reader = TapeReader(*told)
    assert told[0]["whole"] is True
    assert reader.parts["verdict"]["answer"] == "7"
    assert [one["end"]["finish"] for one in reader.traces.values()] == ["stop"] * 4
    assert TapeReader(whole).whole == reader.whole


async def test_a_page_that_lost_its_connection_gets_what_it_missed_or_everything() -> None:
    held = page_runs.Held(after=400)
    async with served(page_runs.engine(held)) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 16})
        async with server.http.stream("GET", f"/api/runs/{run}/events") as told:
            reader = TapeReader(await anext(frames(told)))
        held.released.set()
        resumed = await follow(server, run, last=reader.number)
        for frame in resumed:
            reader.apply(frame)
        whole = (await server.http.get(f"/api/runs/{run}")).json()
        never_heard = await follow(server, run, last=10_000)
    assert not resumed[0].get("whole")
    assert reader.whole == TapeReader(whole).whole
    assert [frame.get("whole") for frame in never_heard] == [True]


async def test_a_page_that_has_seen_the_end_is_told_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(engine_of(7)) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 1})
        last = (await follow(server, run))[-1]["n"]
        assert await follow(server, run, last) == []
        (await server.http.get("/health")).raise_for_status()
    assert caplog.text == ""


async def test_a_page_that_does_not_read_holds_nothing_up_and_is_told_less() -> None:
    async with served(endless()) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 2})
        tape = server.service.runs.of("")[0]
        closing = anyio.Event()
        told = tape.frames(None, closing)
        await anext(told)
        for _ in range(100):
            # Many frames are made for others meanwhile.
            before = tape.tape.number
            await until(lambda: tape.snapshot()["n"] > before)  # noqa: B023  # used at once
        with anyio.fail_after(SECONDS):
            late = json.loads(await anext(told))
        assert late["whole"] is True
        await server.http.delete(f"/api/runs/{run}")


async def test_a_run_that_is_cancelled_ends_with_the_votes_it_has() -> None:
    held = page_runs.Held(after=1000)
    async with served(page_runs.engine(held)) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 16})
        tape = server.service.runs.of("")[0]
        await until(lambda: tape.snapshot()["votes"])
        answer = await server.http.delete(f"/api/runs/{run}")
        assert answer.json() == {"running": True}
        reader = TapeReader(*await follow(server, run))
        assert (await server.http.delete(f"/api/runs/{run}")).json() == {"running": False}
    assert reader.parts["verdict"]["ended"] == "interrupted"
    assert reader.parts["verdict"]["answer"] == "36"


async def test_what_the_api_is_asked_is_shown_on_the_page_too() -> None:
    async with served(engine_of(7)) as server:
        await server.chat("What is seven?")
        (listed,) = (await server.http.get("/api/runs")).json()["runs"]
    assert listed["question"] == "What is seven?"
    assert (listed["state"], listed["answer"], listed["share"]) == ("over", "7", 1.0)


async def test_a_run_that_fails_says_why() -> None:
    broken = Script.even("Hm.", tokens=5)
    fault = EngineError(tried="think", found="the wire is cut", remedy="Mend it.")
    engine = ScriptedEngine([Script(broken.text, broken.confidences, fault=fault)])
    async with served(engine) as server:
        run = await begin(server)
        reader = TapeReader(*await follow(server, run))
    assert "the wire is cut" in reader.parts["failed"]
    assert "verdict" not in reader.parts


async def test_a_client_sees_its_own_runs_alone() -> None:
    async with served(engine_of(7), keys=KEYS) as server:
        ali = {"Authorization": "Bearer sesame-open"}
        baba = {"Authorization": "Bearer another-key"}
        asked = {"question": "How many?"}
        run = (await server.http.post("/api/runs", json=asked, headers=ali)).json()["id"]
        seen = {}
        for name, headers in (("ali", ali), ("baba", baba), ("nobody", {})):
            answers = [
                await server.http.request(method, path, headers=headers)
                for method, path in (
                    ("GET", f"/api/runs/{run}"),
                    ("GET", f"/api/runs/{run}/traces/0"),
                    ("GET", f"/api/runs/{run}/export"),
                    ("DELETE", f"/api/runs/{run}"),
                )
            ]
            seen[name] = [answer.status_code for answer in answers]
        listed = (await server.http.get("/api/runs", headers=baba)).json()["runs"]
        page = await server.http.get("/")
    assert seen == {"ali": [200] * 4, "baba": [404] * 4, "nobody": [401] * 4}
    assert listed == []
    assert page.status_code == 200


async def test_wrong_questions_are_refused_in_words() -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"question": ""},
        {"question": "  "},
        {"question": 7},
        {"question": "a", "colour": "red"},
        {"question": "a", "model": "another"},
        {"question": "a", "conviction": {"policy": "nonsense"}},
        {"question": "a", "conviction": {"budget": 100_000}},
        {"question": "a", "generation": {"max_tokens": 0}},
    ]
    async with served(engine_of(7)) as server:
        for fields in wrong:
            answer = await server.http.post("/api/runs", json=fields)
            assert answer.status_code in (400, 404), fields
            assert answer.json()["error"]["message"], fields
        assert (await server.http.get("/api/runs")).json()["runs"] == []


async def test_the_list_is_told_again_only_where_it_changed() -> None:
    async with served(engine_of(7)) as server:
        first = (await server.http.get("/api/runs")).json()
        again = await server.http.get("/api/runs", params={"known": first["stamp"]})
        assert again.json() == {"stamp": first["stamp"]}
        await server.chat("How many?")
        changed = await server.http.get("/api/runs", params={"known": first["stamp"]})
    assert [run["question"] for run in changed.json()["runs"]] == ["How many?"]


@pytest.mark.parametrize("path", ["", "/traces/0", "/events", "/export"])
async def test_an_unknown_run_is_not_found(path: str) -> None:
    async with served(engine_of(7)) as server:
        answer = await server.http.get(f"/api/runs/nonsense{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_run"


async def test_a_traces_text_is_told_while_it_grows_and_at_the_end() -> None:
    held = page_runs.Held(after=400)
    async with served(page_runs.engine(held)) as server:
        run = await begin(server, conviction={"policy": "majority", "budget": 16})
        path = f"/api/runs/{run}/traces/3"
        await until(lambda: held.holds)
        early = (await server.http.get(path)).json()
        held.released.set()
        await follow(server, run)
        late = (await server.http.get(path)).json()
        unknown = await server.http.get(f"/api/runs/{run}/traces/99")
    early_text, late_text = ("".join(text for text, _ in one["pieces"]) for one in (early, late))
    assert early["running"] is True
    assert late["running"] is False
    assert early_text
    assert late_text.startswith(early_text)
    assert late_text.endswith("The answer is \\boxed{36}.")
    assert unknown.status_code == 404


async def test_the_page_and_its_files_may_ask_nobody_else() -> None:
    async with served(engine_of(7)) as server:
        page = await server.http.get("/")
        script = await server.http.get("/page/main.js")
        again = await server.http.get(
            "/page/main.js", headers={"If-None-Match": script.headers["etag"]}
        )
        licence = await server.http.get("/page/vendor/uplot/LICENSE")
        outside = [
            (await server.http.get(f"/page/{path}")).status_code
            for path in ("../tape.py", "%2e%2e/tape.py", "nothing.js", "")
        ]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert again.status_code == 304
    assert "Leon Sorokin" in licence.text
    assert set(outside) == {404}


async def test_the_form_offers_what_can_run_here() -> None:
    async with served(engine_of(7, top_k=0)) as server:
        options = (await server.http.get("/api/options")).json()
    names = [policy["name"] for policy in options["policies"]]
    assert "settle" in names
    assert "deepconf-low" not in names
    assert options["models"] == ["scripted"]
    assert options["confidences"] is False


async def test_a_saved_run_holds_everything_and_names_no_address() -> None:
    async with served(page_runs.engine()) as server:
        run = await begin(server)
        await follow(server, run)
        saved = await server.http.get(f"/api/runs/{run}/export")
    assert saved.headers["content-disposition"].startswith("attachment")
    page = saved.text
    assert "The answer is" in page
    assert "Permission is hereby granted" in page  # the licence of uPlot goes with it
    assert not [word for word in ('src="', 'href="http', "@import", "url(") if word in page]


async def test_only_the_latest_runs_are_kept_and_those_that_run() -> None:
    async with served(engine_of(7)) as server:
        runs = Runs(most=3)
        server.service.runs = runs
        for number in range(5):
            await server.chat(f"How many, {number}?")
        listed = [run.facts()["question"] for run in runs.of("")]
        assert listed == ["How many, 4?", "How many, 3?", "How many, 2?"]
        server.service.runs = Runs(most_bytes=1)
        for number in range(3):
            await server.chat(f"How many, {number}?")
        assert len(server.service.runs.of("")) == 1


async def test_past_runs_survive_a_restart_where_the_history_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVICTION_HISTORY", str(tmp_path / "history.db"))
    options = {"history": True, "keys": KEYS}
    ali, baba = ({"Authorization": f"Bearer {key}"} for key in KEYS)
    async with served(engine_of(7, 7, 5), **options) as server:
        answer = await server.http.post(
            "/v1/chat/completions",
            json={
                "model": "scripted@majority",
                "messages": [{"role": "user", "content": "How many sheep?"}],
                "conviction": {"budget": 3, "answers": "number"},
            },
            headers=ali,
        )
        assert answer.status_code == 200, answer.text
        [listed] = (await server.http.get("/api/runs", headers=ali)).json()["runs"]
        run = listed["id"]
        whole = (await server.http.get(f"/api/runs/{run}", headers=ali)).json()
        text = (await server.http.get(f"/api/runs/{run}/traces/1", headers=ali)).json()

    async with served(engine_of(1), **options) as server:
        assert (await server.http.get("/api/runs", headers=ali)).json()["runs"] == [
            listed | {"created": pytest.approx(listed["created"], abs=30)}
        ]
        assert (await server.http.get("/api/runs", headers=baba)).json()["runs"] == []
        assert (await server.http.get(f"/api/runs/{run}", headers=ali)).json() == whole
        assert (await server.http.get(f"/api/runs/{run}", headers=baba)).status_code == 404
        again = (await server.http.get(f"/api/runs/{run}/traces/1", headers=ali)).json()
        assert again["pieces"] == text["pieces"]
        missing = await server.http.get(f"/api/runs/{run}/traces/9", headers=ali)
        assert missing.status_code == 404
        page = await server.http.get(f"/api/runs/{run}/export", headers=ali)
        assert "How many sheep?" in page.text
        async with server.http.stream("GET", f"/api/runs/{run}/events", headers=ali) as told:
            assert [frame async for frame in frames(told)] == [whole]
        response = await server.http.delete(f"/api/runs/{run}", headers=ali)
        assert response.json() == {"running": False}

    async with served(engine_of(1), keys=KEYS) as server:
        assert (await server.http.get("/api/runs", headers=ali)).json()["runs"] == []


async def test_nothing_is_kept_of_a_run_unless_the_history_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVICTION_HISTORY", str(tmp_path / "history.db"))
    async with served(engine_of(7)) as server:
        assert (await server.chat()).status_code == 200
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240  # a small folder


async def test_a_history_that_cannot_be_written_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CONVICTION_HISTORY", str(tmp_path / "file" / "history.db"))
    (tmp_path / "file").touch()
    async with served(engine_of(7), history=True) as server:
        assert (await server.chat()).status_code == 200
        await until(lambda: "The history was not written." in caplog.text)
