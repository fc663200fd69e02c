"""What a server keeps of requests: bounded, counted whole, and freed at once."""

import asyncio
import errno
import gc
import socket
import weakref
from collections.abc import Generator
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2
import pytest
from pydantic import ValidationError
from server_app import Served, endless, engine_of, served, until

from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import OverloadedError
from conviction.server.bodies import BodyGuard, Memory, parsed_size
from conviction.server.connections import Connections, accept_errors_counted
from conviction.server.failures import RequestError
from conviction.server.request_schema import ChatRequest
from conviction.server.runs import Runs, ServedRun
from conviction.server.settings import Limits

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
        await until(lambda: [one() for one in freed] == [None, None])


async def hang_up(server: Served) -> None:
    with anyio.move_on_after(0.2):
        await server.chat("x" * 1000, stream=True)


@pytest.mark.usefixtures("no_collector")
async def test_a_run_whose_client_hung_up_is_freed_with_it() -> None:
    async with served(endless()) as server:
        server.service.runs = runs = Runs(most=1)
        await hang_up(server)
        [run] = runs.of("")
        freed = weakref.ref(run)
        del run
        await hang_up(server)
        await until(lambda: freed() is None)


async def test_what_is_kept_of_runs_is_counted_whole_and_bounded() -> None:
    question = "long " * 150_000
    async with served(engine_of(7, 7)) as server:
        server.service.runs = runs = Runs(most_bytes=1 << 20)
        for _ in range(8):
            assert (await server.chat(question, conviction={"budget": 2})).status_code == 200
        kept: list[Any] = runs.of("")
        assert 1 < len(kept) < 8
        assert sum(run.size for run in kept) <= 1 << 20
        for run in kept:
            # Of a question the beginning is kept; all that is kept is counted.
            assert 100_000 < len(await run.whole()) < run.size < 300_000


async def test_confidences_texts_and_frames_count_as_kept() -> None:
    sizes: list[int] = []
    for tokens in (20, 10_000):
        engine = ScriptedEngine([Script.even("Answer: 7", tokens=tokens)])
        async with served(engine) as server:
            options = {"budget": 1, "prompt_style": "plain"}
            answer = await server.chat(conviction=options, max_tokens=16_000)
            [run] = server.service.runs.of("")
            assert isinstance(run, ServedRun)
            texts = await run.text(0, 1 << 30)
            written = sum(len(text) for text, _ in (texts or {})["pieces"])
            assert answer.status_code == 200
            sizes.append(run.size - written)
    assert sizes[1] > sizes[0] + 192 // 2 * 80  # a line of as many points as it can have


def test_memory_is_refused_to_large_requests_before_small_ones() -> None:
    memory = Memory(1 << 20)
    with memory.share() as large, memory.share() as small:
        large.take(700_000)
        with pytest.raises(OverloadedError):
            large.take(100_000)
        small.take(60_000)
        assert memory.taken == 760_000
    assert memory.taken == 0


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", 0),
        (b'{"a": 1, "b": [2, 3]}', 4),
        (rb'{"a\\": "[{,", "b": "\"[[[\\\"{,"}', 2),
        (b'"' + b"[" * 100_000 + b'"', 0),
    ],
)
def test_only_values_outside_of_texts_are_counted(body: bytes, values: int) -> None:
    assert abs(parsed_size(body) - len(body) - values * 256) <= 256


def test_wide_characters_count_as_the_four_bytes_that_each_may_take() -> None:
    for text in ('"é"', r'"\u00e9"'):
        assert parsed_size(text.encode()) == 4 * len(text.encode())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" * 65, "too_deep"),
        (b'{"a":' * 65, "too_deep"),
        (b"[" + b"[]," * 100_001, "too_many_values"),
        (b"[" + b"0," * 100_001, "too_many_values"),
        (b"[" + b'"",' * 400_001, "too_many_values"),
    ],
)
def test_a_body_of_too_many_or_too_deep_values_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(RequestError) as refused:
        parsed_size(body)
    assert refused.value.code == code


async def test_of_many_wrong_messages_only_the_first_is_looked_at() -> None:
    wrong = {"role": "user", "content": "x", **{f"f{one}": 1 for one in range(90)}}
    error: Any = None
    try:
        ChatRequest.model_validate({"model": "m", "messages": [wrong] * 1000})
    except ValidationError as raised:
        error = raised
    assert error.error_count() == 90
    try:
        ChatRequest.model_validate({"model": "m", **{f"f{one}": 1 for one in range(1000)}})
    except ValidationError as raised:
        error = raised
    assert error.error_count() == 1


async def test_one_request_too_many_is_refused_and_health_is_not() -> None:
    limits = {"connections": 8}  # of which 7 may be answered at once
    async with served(endless(), limits=limits) as server, anyio.create_task_group() as tasks:
        for _ in range(7):
            tasks.start_soon(server.chat)
        await until(lambda: server.service.admission.running == 7)
        refused = await server.http.get("/v1/models", headers={"connection": "close"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await server.http.get("/health")).status_code == 200
        tasks.cancel_scope.cancel()


async def test_large_bodies_are_parsed_one_after_another_with_time_between_them() -> None:
    turns, seen = 0, list[int]()
    scope = {"type": "http", "path": "/v1/chat/completions", "headers": []}
    body = b"[" + b"{}," * 20_000 + b"{}]"

    async def parse(*_: object) -> None:
        seen.append(turns)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: object) -> None:
        raise AssertionError

    memory = Memory(1 << 30)
    guard = BodyGuard(parse, most_bytes=1 << 20, most_requests=9, limits=Limits(), memory=memory)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(guard, scope, receive, send)
        while len(seen) < 5:
            turns += 1
            await anyio.lowlevel.checkpoint()
    assert min(later - sooner for sooner, later in pairwise(seen)) > 3, seen
    assert memory.taken == 0


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off() -> None:
    limits = {"send_seconds": 0.5, "idle_seconds": 60.0}
    async with served(engine_of(7), limits=limits) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((host, int(port)))
            requests = 2000
            slow.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * requests)
            await anyio.sleep(3)
            size = 0
            with suppress(ConnectionError):
                while more := await anyio.to_thread.run_sync(slow.recv, 1 << 20):
                    size += len(more)
        whole = len((await server.http.get("/openapi.json")).content)
    # The rest is what the system had taken for the client.
    assert size < requests * whole // 2


def test_clients_close_kept_connections_before_the_server_does() -> None:
    # A request on a connection that the server is just closing is lost.
    usual = httpx2.Limits().keepalive_expiry
    assert usual is not None
    assert Limits().idle_seconds > 2 * usual


class Listed:
    """A connection in a list of connections, and nothing else."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.ended = False
        self.transport = self

    def abort(self) -> None:
        self.ended = True


def test_the_address_with_most_waiting_connections_makes_room() -> None:
    all_of_them = Connections(Limits(), 4)

    def make(name: str, address: str, *, works: bool = False) -> Any:
        one: Any = Listed(name, address)
        all_of_them.add(one)
        all_of_them.wait(one)
        if works:
            all_of_them.work(one)
        return one

    one = make("ann's", "ann")
    works = make("eve's that is answered", "eve", works=True)
    first, second = make("eve's first", "eve"), make("eve's second", "eve")
    third = make("eve's third", "eve")
    assert [each.ended for each in (one, works, first, second)] == [False, False, True, False]
    make("bob's", "bob")
    assert [each.ended for each in (one, works, second, third)] == [False, False, True, False]
    assert len(all_of_them) == 4


def test_failures_to_accept_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    loop, others = asyncio.new_event_loop(), list[Any]()
    loop.set_exception_handler(lambda _, context: others.append(context))
    full = {"message": "x", "exception": OSError(errno.EMFILE, "Too many open files")}
    with closing(loop), accept_errors_counted(loop, lambda: now):
        for _ in range(1000):
            loop.call_exception_handler(full | {"socket": None})
        now = 61.0
        loop.call_exception_handler(full | {"socket": None})
        loop.call_exception_handler({"message": "another"})
    first, second = [one.getMessage() for one in caplog.records]
    assert "too many open files (1 failures" in first
    assert "(1000 failures" in second
    assert [one["message"] for one in others] == ["another"]
