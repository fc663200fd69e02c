"""Who thinks, who waits, who is sent away; and how clients take turns."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_app import asking, endless, engine_of, served, until

from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import OverloadedError
from conviction.server.admission import Admission, Ticket
from conviction.server.settings import Queueing
from conviction.sharing import Place, Slots


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(running: int = 1, queued: int = 100, own: int = 100) -> Admission:
    return Admission(Queueing(running=running, queued=queued, queued_per_client=own), Clock())


def called(tickets: dict[str, Ticket]) -> list[str]:
    return [name for name, ticket in tickets.items() if ticket.called.is_set()]


def test_clients_take_turns_however_many_one_of_them_sends() -> None:
    door = admission()
    running = door.join("first")
    tickets = {f"greedy {n}": door.join("greedy") for n in range(4)}
    tickets |= {f"modest {n}": door.join("modest") for n in range(2)}
    order: list[str] = []
    while tickets:
        with running:
            pass
        (name,) = called(tickets)
        order.append(name)
        running = tickets.pop(name)
    assert order == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3"]


def test_who_gives_up_waiting_leaves_no_gap() -> None:
    door = admission()
    running, gone, next_one = door.join("a"), door.join("a"), door.join("a")
    with gone:
        pass
    assert door.queued == 1
    with running:
        pass
    assert next_one.called.is_set()
    assert (door.running, door.queued) == (1, 0)


def test_a_ticket_gives_its_turn_back_once() -> None:
    door = admission()
    ticket = door.join("a")
    for _ in range(2):
        with ticket:
            pass
    assert door.running == 0


def test_too_many_of_one_client_are_its_own_fault_and_too_many_of_all_are_not() -> None:
    door = admission(queued=3, own=2)
    for client in ("a", "a", "a"):
        door.join(client)
    with pytest.raises(OverloadedError) as own:
        door.join("a")
    door.join("b")
    with pytest.raises(OverloadedError) as full:
        door.join("c")
    assert own.value.own
    assert not full.value.own


def test_where_nobody_can_be_told_from_others_only_the_whole_queue_is_bounded() -> None:
    door = admission(queued=3, own=1)
    for _ in range(4):
        door.join("")
    with pytest.raises(OverloadedError) as full:
        door.join("")
    assert not full.value.own


def test_clients_without_keys_take_turns_by_their_address() -> None:
    door = admission()
    running = door.join("", "10.0.0.1")
    tickets = {f"greedy {n}": door.join("", "10.0.0.1") for n in range(2)}
    tickets |= {"modest": door.join("", "10.0.0.2")}
    with running:
        pass
    with tickets.pop("greedy 0"):
        pass
    assert called(tickets) == ["modest"]


def test_a_client_with_nothing_running_need_not_wait_for_one_that_fills_the_bound() -> None:
    door = admission(running=8)
    greedy = [door.join("greedy") for _ in range(10)]
    assert [one.called.is_set() for one in greedy] == [True] * 8 + [False] * 2
    others = {name: door.join(name) for name in ("ann", "bob", "cyd")}
    # A quarter more than the bound, and no more.
    assert called(others) == ["ann", "bob"]
    assert (door.running, door.queued) == (10, 3)
    greedy[0].leave()
    assert called(others) == ["ann", "bob", "cyd"]
    for one in greedy[1:3]:
        one.leave()
    assert (door.running, door.queued) == (8, 2)
    greedy[3].leave()
    assert [one.called.is_set() for one in greedy[8:]] == [True, False]


def test_the_time_to_wait_follows_from_how_long_verdicts_took_and_is_bounded() -> None:
    clock = Clock()
    door = Admission(Queueing(running=2), clock)
    assert door.retry_after == 5  # before anything was seen, ten seconds are assumed
    with door.join("a"):
        clock.now = 40.0
    assert door.retry_after == 20
    for _ in range(12):
        door.join("a")
    assert door.retry_after == 120
    quick = Admission(Queueing(running=2), clock)
    with quick.join("a"):
        pass
    assert quick.retry_after == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=60))
def test_no_place_is_lost_whoever_comes_and_goes(moves: list[tuple[str, int]]) -> None:
    door = admission(running=2, queued=6, own=3)
    inside: list[Ticket] = []
    for client, leaves in moves:
        if leaves < len(inside):
            with inside.pop(leaves):
                pass
        else:
            try:
                inside.append(door.join(client))
            except OverloadedError:
                assert (
                    door.queued == 6
                    or sum(one.client == client and not one.called.is_set() for one in inside) == 3
                )
        running = sum(one.called.is_set() for one in inside)
        assert door.running == running == min(2, len(inside))
        assert door.queued == len(inside) - running


@pytest.mark.anyio
async def test_a_full_queue_answers_503_and_a_clients_own_429_with_retry_after() -> None:
    bounds = {"running": 1, "queued": 2, "queued_per_client": 1}
    keys = {"key-of-ann": "ann", "key-of-bob": "bob", "key-of-cyd": "cyd"}

    async with served(endless(), queueing=bounds, keys=keys) as server:

        async def ask(name: str) -> tuple[int, str | None, str | None]:
            server.http.headers["authorization"] = f"Bearer key-of-{name}"
            answer = await server.chat()
            return answer.status_code, answer.headers.get("retry-after"), answer.text

        async with anyio.create_task_group() as tasks:
            door = server.service.admission
            tasks.start_soon(ask, "ann")
            await until(lambda: door.running == 1)
            tasks.start_soon(ask, "ann")
            await until(lambda: door.queued == 1)
            status, wait, _ = await ask("ann")
            assert (status, wait) == (429, "20")
            tasks.start_soon(ask, "bob")
            await until(lambda: door.queued == 2)
            status, wait, text = await ask("cyd")
            assert (status, wait) == (503, "30")
            assert text is not None
            assert "overloaded" in text
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_stream_is_refused_before_it_begins() -> None:
    bounds = {"running": 1, "queued": 0}
    async with served(endless(), queueing=bounds) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.chat)
        await until(lambda: server.service.admission.running == 1)
        answer = await server.chat(stream=True)
        tasks.cancel_scope.cancel()
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


@pytest.mark.anyio
async def test_a_turn_that_does_not_come_in_time_is_a_503() -> None:
    bounds = {"running": 1, "seconds": 0.05}
    async with served(endless(), queueing=bounds) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.chat)
        await until(lambda: server.service.admission.running == 1)
        answer = await server.chat()
        tasks.cancel_scope.cancel()
    assert answer.status_code == 503
    assert server.service.admission.queued == 0


@pytest.mark.anyio
async def test_a_waiting_stream_says_that_it_waits() -> None:
    opened = anyio.Event()

    async def pace(_: object) -> None:
        await opened.wait()

    engine = ScriptedEngine([Script.even("Answer: 7")], pace=pace)
    async with served(engine, queueing={"running": 1}, progress_seconds=0.01) as server:
        text = ""
        body = asking(stream=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.chat)
            await until(lambda: server.service.admission.running == 1)
            async with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for piece in answer.aiter_text():
                    text += piece
                    if '"reasoning": "Waiting for a turn.\\n"' in text:
                        opened.set()
    assert opened.is_set()
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.anyio
async def test_many_requests_share_the_slots_of_one_engine() -> None:
    most = 0

    async def pace(_: object) -> None:
        nonlocal most
        most = max(most, engine.running)
        await anyio.lowlevel.checkpoint()

    engine = ScriptedEngine([Script.even("Answer: 7")], concurrency=4, pace=pace)
    async with served(engine) as server, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(server.chat)
    assert most == 4


@pytest.mark.anyio
async def test_a_request_that_fails_gives_its_turn_back() -> None:
    broken = Script("x" * 20, Script.even("x").confidences, fault=RuntimeError("no"), fault_after=1)
    async with served(ScriptedEngine([broken]), queueing={"running": 1, "queued": 0}) as server:
        for _ in range(3):
            assert (await server.chat()).status_code == 502
        assert server.service.admission.running == 0


@pytest.mark.anyio
async def test_answers_go_on_after_an_overload() -> None:
    async with served(engine_of(7), queueing={"running": 2, "queued": 100}) as server:
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await server.chat()).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(ask)
    assert statuses == [200] * 40


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("keys", "client"), [({}, "127.0.0.1"), ({"key-of-ann": "ann", "key-of-bob": "bob"}, "ann")]
)
async def test_slots_are_shared_by_key_and_without_keys_by_address(
    keys: dict[str, str], client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[str] = []
    place = Slots.place

    def watched(self: Slots, **bounds: Any) -> Place:
        clients.append(bounds["client"])
        return place(self, **bounds)

    monkeypatch.setattr(Slots, "place", watched)
    async with served(engine_of(7), keys=keys) as server:
        server.http.headers["authorization"] = "Bearer key-of-ann"
        assert (await server.chat()).status_code == 200
        body = {"model": "scripted", "prompt": "How many?"}
        assert (await server.http.post("/v1/completions", json=body)).status_code == 200
        question = {"question": "How many?"}
        assert (await server.http.post("/api/runs", json=question)).status_code == 201
        await until(lambda: len(clients) == 3)
    assert clients == [client] * 3
