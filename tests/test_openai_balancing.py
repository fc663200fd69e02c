"""Which server gets a trace, and that no trace waits in vain; in virtual time."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps

import anyio
import pytest
import virtual_time
from virtual_time import now

from conviction.engines.openai.servers import Balancer, Endpoint, Lease
from conviction.errors import EngineError, TemporarilyUnavailableError

PATIENCE = 30.0


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        virtual_time.run(test)

    del run.__wrapped__  # pytest would take it for an asynchronous test
    return run


def error(found: str = "no answer", *, wait: float | None = None) -> TemporarilyUnavailableError:
    made = TemporarilyUnavailableError(tried="ask", found=found, remedy="Wait.")
    made.wait = wait
    return made


@dataclass(eq=False)
class Server:
    """Answers checks if it is well, and notes when it was checked."""

    name: str = "a"
    well: bool = True
    check_seconds: float = 0.0
    checks: list[float] = field(default_factory=list[float])

    async def check(self) -> None:
        self.checks.append(now())
        await anyio.sleep(self.check_seconds)
        if not self.well:
            raise error("still down")


def balancer(*servers: Server, most: int = 1, patience: float = PATIENCE) -> Balancer[Server]:
    endpoints = [Endpoint(server, most) for server in servers]
    return Balancer(endpoints, Server.check, patience, clock=now)


async def hold(
    among: Balancer[Server], seconds: float, *, tokens: int = 10, log: list[str] | None = None
) -> None:
    """A trace that takes some time."""
    lease = await among.take(tokens)
    if log is not None:
        log.append(lease.endpoint.server.name)
    try:
        await anyio.sleep(seconds)
    finally:
        among.give_back(lease, complete=True)


def fail(among: Balancer[Server], lease: Lease[Server], what: EngineError | None = None) -> None:
    among.give_back(lease)
    lease.endpoint.failed(what or error(), now())


def crowd(among: Balancer[Server], lease: Lease[Server], wait: float | None = None) -> None:
    among.give_back(lease)
    lease.endpoint.crowded(error("too many", wait=wait), now(), wait)


def idle(among: Balancer[Server]) -> bool:
    free = [(e.open, e.outstanding, e.checking) for e in among.endpoints]
    return free == [(0, 0, False)] * len(free) and not among._waiting


# --- Whose turn it is -----------------------------------------------------------------------------


@in_virtual_time
async def test_the_server_with_the_fewest_outstanding_tokens_is_next() -> None:
    a, b = Server("a"), Server("b")
    among = balancer(a, b, most=9)
    leases = [await among.take(tokens) for tokens in (100, 30, 30, 30, 10)]
    assert [lease.endpoint.server.name for lease in leases] == ["a", "b", "b", "b", "b"]
    assert [e.outstanding for e in among.endpoints] == [100, 100]


@in_virtual_time
async def test_tokens_that_came_are_outstanding_no_more() -> None:
    among = balancer(Server("a"), Server("b"), most=9)
    first, second = await among.take(100), await among.take(100)
    first.advance(60)
    assert (await among.take(1)).endpoint.server.name == "a"
    second.advance(250)  # A server may give more than it was asked for.
    assert second.endpoint.outstanding == 0
    for lease in (first, second):
        among.give_back(lease)
    assert [e.outstanding for e in among.endpoints] == [1, 0]


@in_virtual_time
async def test_further_traces_wait_in_line() -> None:
    among = balancer(Server(), most=2)
    order: list[int] = []

    async def trace(number: int) -> None:
        lease = await among.take(1)
        order.append(number)
        await anyio.sleep(1)
        among.give_back(lease, complete=True)

    async with anyio.create_task_group() as tasks:
        for number in range(7):
            tasks.start_soon(trace, number)
    assert order == list(range(7))
    assert now() == 4
    assert idle(among)


# --- Too many traces ------------------------------------------------------------------------------


@in_virtual_time
async def test_a_server_with_too_many_traces_gets_no_more_than_it_took_and_recovers() -> None:
    among = balancer(Server(), most=8)
    [endpoint] = among.endpoints
    leases = [await among.take(1) for _ in range(5)]
    crowd(among, leases.pop())
    assert endpoint.limit == 4
    crowd(among, leases.pop())
    assert endpoint.limit == 3
    assert endpoint.trusted
    for _ in range(9):
        among.give_back(leases.pop(0), complete=True)
        leases.append(await among.take(1))
    assert endpoint.limit == 8


@in_virtual_time
async def test_a_server_that_takes_not_even_one_keeps_a_limit_of_one() -> None:
    among = balancer(Server(), most=8)
    crowd(among, await among.take(1))
    assert among.endpoints[0].limit == 1
    await hold(among, 1)


@in_virtual_time
async def test_a_busy_server_rests_as_long_as_it_asks() -> None:
    among = balancer(Server())
    crowd(among, await among.take(1), wait=20)
    await hold(among, 0)
    assert 20 <= now() < 20.01


@in_virtual_time
async def test_one_outage_that_meets_many_traces_counts_once() -> None:
    among = balancer(Server(), most=50)
    for lease in [await among.take(1) for _ in range(50)]:
        fail(among, lease)
    await hold(among, 0)
    assert now() < 0.7


@in_virtual_time
async def test_rests_grow_with_every_failure_up_to_a_bound() -> None:
    server = Server(well=False)
    among = balancer(server, patience=90)
    fail(among, await among.take(1))
    with pytest.raises(EngineError):
        await among.take(1)
    rests = [
        later - sooner for sooner, later in zip(server.checks, server.checks[1:], strict=False)
    ]
    for number, rest in enumerate(rests):
        longest = min(0.5 * 2 ** (number + 1), 15)
        assert 0.74 * longest < rest < 1.26 * longest
    assert len(rests) >= 6


@in_virtual_time
async def test_a_server_that_is_busy_with_our_own_traces_is_not_given_up() -> None:
    among = balancer(Server(), most=2)
    running = await among.take(1)
    crowd(among, await among.take(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, among, 1)
        await anyio.sleep(10 * PATIENCE)
        tasks.start_soon(hold, among, 1)
        await anyio.sleep(1)
        among.give_back(running, complete=True)
    assert idle(among)


# --- A server that fails --------------------------------------------------------------------------


@in_virtual_time
async def test_a_failed_server_gets_nothing_until_it_was_checked() -> None:
    a, b = Server("a", well=False), Server("b")
    among = balancer(a, b, most=9)
    going_on = await among.take(1)
    assert going_on.endpoint.server is a
    going_on.endpoint.failed(error(), now())
    log: list[str] = []
    for _ in range(9):
        await hold(among, 1, tokens=1000, log=log)
    assert log == ["b"] * 9
    assert a.checks  # It was looked after all the while, and found unwell.
    assert going_on.endpoint.open == 1  # What runs there goes on.


@in_virtual_time
async def test_a_failed_server_is_used_again_once_a_check_succeeds() -> None:
    a, b = Server("a", well=False), Server("b")
    among = balancer(a, b)
    fail(among, await among.take(1))
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(hold, among, 100, log=log))
        tasks.start_soon(partial(hold, among, 100, log=log))
        await anyio.sleep(5)
        a.well = True
    assert log == ["b", "a"]
    assert now() < 130
    assert len(a.checks) > 2


@in_virtual_time
async def test_only_one_trace_checks_and_the_others_follow_when_it_succeeds() -> None:
    server = Server(check_seconds=3)
    among = balancer(server, most=20)
    fail(among, await among.take(1))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(hold, among, 1)
    assert len(server.checks) == 1
    assert now() < 5


@in_virtual_time
async def test_if_all_are_down_every_trace_hears_of_it_within_the_patience() -> None:
    servers = [Server(name, well=False, check_seconds=0.3) for name in "ab"]
    among = balancer(*servers, most=2)
    held = [await among.take(1) for _ in range(4)]
    heard: list[float] = []

    async def trace() -> None:
        with pytest.raises(TemporarilyUnavailableError, match=r"down|answer"):
            await among.take(1)
        heard.append(now())

    async with anyio.create_task_group() as tasks:
        for _ in range(25):
            tasks.start_soon(trace)
        await anyio.sleep(1)
        for lease in held:
            fail(among, lease)
    assert len(heard) == 25
    assert max(heard) < 1 + PATIENCE + 20
    assert idle(among)


@in_virtual_time
async def test_each_trace_gets_an_error_of_its_own() -> None:
    among = balancer(Server(well=False), patience=0)
    fail(among, await among.take(1), what := error("gone"))
    raised: list[EngineError] = []
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            await among.take(1)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert raised[0] is not what
    assert {type(one) for one in raised} == {TemporarilyUnavailableError}


@in_virtual_time
async def test_an_old_failure_is_not_held_against_a_server_unchecked() -> None:
    server = Server(well=False)
    among = balancer(server)
    fail(among, await among.take(1))
    await anyio.sleep(3600)
    with pytest.raises(EngineError, match="still down"):
        await among.take(1)
    await anyio.sleep(3600)
    server.well = True
    await hold(among, 1)


@in_virtual_time
async def test_who_asks_for_too_much_time_is_not_waited_for() -> None:
    among = balancer(Server())
    crowd(among, await among.take(1), wait=3600)
    with pytest.raises(TemporarilyUnavailableError, match="too many"):
        await among.take(1)
    assert now() == 0
    await anyio.sleep(3600)
    await hold(among, 0)
    assert now() == 3600


@in_virtual_time
async def test_another_server_stands_in_for_one_that_asks_for_too_much_time() -> None:
    among = balancer(Server("a"), Server("b"))
    crowd(among, await among.take(1), wait=3600)
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(partial(hold, among, 10 * PATIENCE, log=log))
    assert log == ["b"] * 3


@in_virtual_time
async def test_a_server_that_asks_for_time_again_and_again_is_given_up_in_the_end() -> None:
    among = balancer(Server(), most=4)
    given_up: list[float] = []

    async def trace() -> None:
        with suppress(EngineError):
            while True:
                crowd(among, await among.take(1), wait=60)
        given_up.append(now())

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(trace)
    assert len(given_up) == 50
    assert max(given_up) < 300


# --- Those who leave ------------------------------------------------------------------------------


async def leaving(among: Balancer[Server], scope: anyio.CancelScope) -> None:
    with scope:
        await hold(among, 99)
    assert scope.cancelled_caught


@in_virtual_time
async def test_a_cancelled_trace_passes_its_place_on() -> None:
    among = balancer(Server())
    first, scope = await among.take(1), anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leaving, among, scope)
        await anyio.sleep(1)
        tasks.start_soon(hold, among, 2)
        await anyio.sleep(1)
        among.give_back(first)  # The place is meant for the one who …
        scope.cancel()  # … leaves before it can take it.
    assert now() == 4
    assert idle(among)


@in_virtual_time
async def test_a_cancelled_trace_that_waited_for_a_rest_to_end_leaves_somebody_to_look() -> None:
    among = balancer(Server())
    first, scope = await among.take(1), anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leaving, among, scope)
        await anyio.sleep(0.1)
        tasks.start_soon(hold, among, 1)
        await anyio.sleep(0.1)
        crowd(among, first)  # Wakes the first in line only, who then waits for the rest's end.
        await anyio.sleep(0.1)
        scope.cancel()
    assert 1 < now() < 3
    assert idle(among)


@in_virtual_time
async def test_a_cancelled_check_is_taken_over() -> None:
    server = Server(check_seconds=2)
    among = balancer(server)
    fail(among, await among.take(1))
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leaving, among, scope)
        await anyio.sleep(0.01)
        tasks.start_soon(hold, among, 1)
        await anyio.sleep(1.5)
        scope.cancel()
    assert len(server.checks) == 2
    assert idle(among)
