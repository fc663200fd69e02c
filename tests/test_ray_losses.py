"""What an actor answers, and losses over one question: bounded, whenever they come. No cluster."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray_engines import Scripted
from tens import questions

from conviction.core import Sampling
from conviction.engines.base import Capabilities
from conviction.errors import AllTracesFailedError, ContextOverflowError, EngineError
from conviction.evaluation.workers import Generating, Thinking
from conviction.policies import policy
from conviction.ray.actor import Home
from conviction.ray.host import Started
from conviction.ray.pool import ActorPool, Bounds, PooledActor
from conviction.ray.workers import RayWorkers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

QUESTION = questions(1)[0].question
THINKING = Thinking(QUESTION, policy("majority", budget=3), Sampling())
GENERATING = Generating(QUESTION, (0, 1), Sampling())
STARTED = Started("played", Capabilities("played", 20, 8))

Answers = dict[str, Callable[[], Any]]


class Played:
    """A handle of an actor whose methods answer at once, as told: None else, and ... is never."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)

    def answer(self, name: str) -> "asyncio.Future[Any]":
        self.calls[name] += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        found = self._answers.get(name, lambda: None)()
        if isinstance(found, Exception):
            future.set_exception(found)
        elif found is not ...:
            future.set_result(found)
        return future


class _Method:
    def __init__(self, actor: Played, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *_: Any) -> "asyncio.Future[Any]":
        return self._actor.answer(self._name)


class PlayedPool(ActorPool):
    """A pool of such actors; one that is lost is replaced by another that answers alike."""

    def __init__(self, answers: Answers, actors: int) -> None:
        bounds = Bounds(silence=20)
        super().__init__([Scripted()], answers="number", actors=actors, bounds=bounds)
        self.played: list[Played] = []
        self._plan = answers

    async def _room(self) -> int:
        assert self._wanted is not None
        return self._wanted

    async def _start(self, slot: int) -> PooledActor:
        self.played.append(Played(self._plan))
        self._first = STARTED
        return PooledActor(self.played[-1], Home("here", slot), STARTED)

    async def _end(self, actor: PooledActor) -> None:
        if actor in self._actors:
            self._actors.remove(actor)


def played(answers: Answers, actors: int = 2) -> tuple[RayWorkers, PlayedPool]:
    workers = RayWorkers([Scripted()], answers="number", actors=actors)
    pool = workers._pool = PlayedPool(answers, actors)
    return workers, pool


async def think(workers: RayWorkers) -> None:
    with anyio.fail_after(10):
        async with workers:
            await workers.think(THINKING, on_event=lambda _: None)


def task_error(cause: Exception) -> Exception:
    return RayTaskError("begin", f"Traceback\n{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize("at", ["begin", "listen"])
async def test_a_question_that_ends_each_actor_fails_whenever_it_does(at: str) -> None:
    workers, pool = played({at: ActorDiedError})
    with pytest.raises(AllTracesFailedError, match="in 3 actors, one after another"):
        await think(workers)
    assert sum(actor.calls["begin"] for actor in pool.played) == 3


async def test_actors_that_die_idle_are_no_question_s_doing_and_bounded_all_the_same() -> None:
    workers, pool = played({"home": ActorDiedError}, actors=5)
    with pytest.raises(AllTracesFailedError, match="in 8 actors, one after another"):
        await think(workers)
    assert sum(actor.calls["begin"] for actor in pool.played) == 0
    assert "0 questions again" in workers.notes[0]


@pytest.mark.parametrize("at", ["begin", "listen"])
@pytest.mark.parametrize(
    "answer",
    [
        task_error(ModuleNotFoundError("No module named 'mine'")),
        task_error(TimeoutError("No module named 'mine'")),
        RaySystemError(ImportError("…"), "Traceback\nImportError: No module named 'mine'"),
    ],
)
async def test_what_does_not_unpickle_is_an_answer_and_costs_no_actor(
    at: str, answer: Exception
) -> None:
    workers, pool = played({at: lambda: answer})
    with pytest.raises(EngineError, match=r"No module named 'mine'\. See that .* same versions"):
        await think(workers)
    assert len(pool.played) == 2
    assert not pool.losses
    # Whatever the actor made of it is ended.
    assert sum(actor.calls["end"] for actor in pool.played) == 1


async def test_an_error_of_ours_that_an_actor_answers_comes_out_as_it_is() -> None:
    mine = ContextOverflowError(tried="ask", found="too long", remedy="Ask less.")
    workers, _ = played({"listen": lambda: task_error(mine)})
    with pytest.raises(ContextOverflowError, match="too long"):
        await think(workers)


async def test_a_system_error_of_ray_is_a_loss() -> None:
    workers, pool = played({"begin": lambda: RaySystemError(OSError("broken pipe"))})
    with pytest.raises(AllTracesFailedError, match="broken pipe"):
        await think(workers)
    assert len(pool.losses) == 3


async def test_generating_is_interrupted_while_it_waits_for_an_actor() -> None:
    workers, pool = played({"listen": lambda: ...}, actors=1)
    workers.places(1)
    interrupted, other = anyio.Event(), anyio.Event()

    async def generate(interrupt: anyio.Event) -> None:
        await workers.generate(GENERATING, on_event=lambda _: None, interrupt=interrupt)

    with anyio.fail_after(5):
        async with workers, anyio.create_task_group() as tasks:
            tasks.start_soon(generate, other)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(1):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(generate, interrupted)
                    await anyio.wait_all_tasks_blocked()
                    interrupted.set()
            tasks.cancel_scope.cancel()
    assert sum(actor.calls["begin"] for actor in pool.played) == 1
