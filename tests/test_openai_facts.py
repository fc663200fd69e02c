"""What was found out about a server is kept for a day, and never in the way."""

import json
import time
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from completion_events import KEY
from played_model import PlayedModel
from scripted_server import ScriptedServer, serving

from conviction.engines.base import Capabilities
from conviction.engines.openai import OpenAIEngine, Route
from conviction.engines.openai.facts import (
    FACTS,
    FRESH_SECONDS,
    Dialect,
    FactsCache,
    ServerFacts,
    _key,
)
from conviction.store import Store, StoreWriter

URL = "http://127.0.0.1:8000/v1"


def facts() -> ServerFacts:
    return ServerFacts(
        model="m",
        listed=("m", "n"),
        top_k=5,
        top_k_reason="asked for 20, and refused",
        raw=False,
        seeds=True,
        dialect=Dialect({"top_p": 1.0}, "max_completion_tokens", "usage", token_ids=True),
        seen=time.time(),
    )


# --- The file -------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    cache, kept = FactsCache(tmp_path / "new" / "folder"), facts()
    cache.save(URL, Route.CHAT, kept)
    assert cache.load(URL, "m", Route.CHAT) == kept


def test_facts_are_of_one_server_one_model_and_one_route(tmp_path: Path) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, facts())
    assert cache.load("http://127.0.0.1:8001/v1", "m", Route.CHAT) is None
    assert cache.load(URL, "n", Route.CHAT) is None
    assert cache.load(URL, "m", Route.COMPLETIONS) is None


@pytest.mark.parametrize(
    ("age", "known"),
    [(0.0, True), (FRESH_SECONDS - 60, True), (FRESH_SECONDS + 1, False), (-3600.0, False)],
)
def test_old_facts_are_asked_again_as_are_those_of_the_future(
    tmp_path: Path, age: float, *, known: bool
) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, replace(facts(), seen=time.time() - age))
    assert (cache.load(URL, "m", Route.CHAT) is not None) is known


def test_the_newest_facts_replace_older_ones(tmp_path: Path) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, facts())
    cache.save(URL, Route.CHAT, newer := replace(facts(), top_k=20))
    assert cache.load(URL, "m", Route.CHAT) == newer
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_forgotten_is_gone_and_may_be_forgotten_again(tmp_path: Path) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, facts())
    for _ in range(2):
        cache.forget(URL, "m", Route.CHAT)
    assert cache.load(URL, "m", Route.CHAT) is None


@pytest.mark.parametrize("kept_bytes", [0, 10, 4096, 6000])
def test_a_damaged_file_counts_as_none_and_is_mended_by_the_next(
    tmp_path: Path, kept_bytes: int
) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, facts())
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:kept_bytes] + b"?" * (len(content) - kept_bytes))
    assert cache.load(URL, "m", Route.CHAT) is None
    cache.save(URL, Route.CHAT, kept := facts())
    assert cache.load(URL, "m", Route.CHAT) == kept


@pytest.mark.parametrize("instead", [b"", b"[]", b"null", b"{}", b"[" * 50_000, b'{"model": 1}'])
def test_facts_that_say_nothing_count_as_none(tmp_path: Path, instead: bytes) -> None:
    cache = FactsCache(tmp_path)
    cache._replace(_key(URL, "m", Route.CHAT), instead)
    assert cache.load(URL, "m", Route.CHAT) is None
    cache.save(URL, Route.CHAT, kept := facts())
    assert cache.load(URL, "m", Route.CHAT) == kept


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FactsCache(tmp_path / "file" / "folder")
    cache.save(URL, Route.CHAT, facts())
    assert cache.load(URL, "m", Route.CHAT) is None
    cache.forget(URL, "m", Route.CHAT)


def test_a_file_that_another_program_writes_is_left_to_it(tmp_path: Path) -> None:
    cache = FactsCache(tmp_path)
    cache.save(URL, Route.CHAT, kept := facts())
    with (
        pytest.MonkeyPatch.context() as patch,
        StoreWriter(tmp_path / "facts.db", FACTS),
    ):
        patch.setattr("conviction.engines.openai.facts._PATIENCE", 0.0)
        cache.save(URL, Route.CHAT, replace(facts(), top_k=20))
        assert cache.load(URL, "m", Route.CHAT) == kept
    cache.save(URL, Route.CHAT, newer := replace(facts(), top_k=20))
    assert cache.load(URL, "m", Route.CHAT) == newer


# --- The engine -----------------------------------------------------------------------------------


def contents(folder: Path) -> list[bytes]:
    with Store(folder / "facts.db", FACTS) as store:
        return [row["json"] for row in store.rows("facts")]


async def asked(server: ScriptedServer, folder: Path | None, **settings: str) -> Capabilities:
    engine = OpenAIEngine(server.url, facts_folder=folder, **settings)  # type: ignore[arg-type]
    async with engine:
        return await engine.capabilities()


@pytest.mark.anyio
async def test_a_server_is_probed_once_and_its_list_is_asked_for_every_time(tmp_path: Path) -> None:
    model = PlayedModel()
    async with serving(model.play, keeps_alive=True) as server:
        first = await asked(server, tmp_path)
        probes = len(model.asked)
        model.listed = [{"id": "m", "max_model_len": 4096}]
        second = await asked(server, tmp_path)
        assert len(model.asked) == probes > 5
        assert (first.context, second.context) == (2048, 4096)
        assert second.top_k == first.top_k == 20

        await asked(server, None)
        assert len(model.asked) == 2 * probes


@pytest.mark.anyio
async def test_another_model_of_the_same_server_is_probed_by_itself(tmp_path: Path) -> None:
    model = PlayedModel()
    async with serving(model.play, keeps_alive=True) as server:
        await asked(server, tmp_path, model="m")
        probes = len(model.asked)
        await asked(server, tmp_path, model="n")
        assert len(model.asked) > probes


@pytest.mark.anyio
async def test_kept_facts_hold_no_key(tmp_path: Path) -> None:
    async with serving(PlayedModel().play, keeps_alive=True) as server:
        await asked(server, tmp_path, api_key=KEY)
    [content] = contents(tmp_path)
    assert json.loads(content)["top_k"] == 20
    assert KEY.encode() not in (tmp_path / "facts.db").read_bytes()


@pytest.mark.anyio
async def test_many_engines_may_keep_facts_at_once(tmp_path: Path) -> None:
    async with (
        serving(PlayedModel().play, keeps_alive=True) as server,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(asked, server, tmp_path)
    assert len(contents(tmp_path)) == 1
