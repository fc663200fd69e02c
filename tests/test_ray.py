"""Questions in the actors of a real Ray cluster of two nodes: what comes back, and what may die."""

import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest
from ray_engines import Scripted
from tens import questions

from conviction.answers import kind
from conviction.backends import Backend
from conviction.core import FinishReason, Sampling
from conviction.engines.base import Engine
from conviction.errors import (
    AllTracesFailedError,
    EngineError,
    EngineStartError,
    InvalidSettingError,
)
from conviction.evaluation.plan import EvaluationPlan
from conviction.evaluation.recording import RecordingPlan, record
from conviction.evaluation.results import QuestionResult
from conviction.evaluation.run import EvaluationProgress, evaluate
from conviction.evaluation.stored import read_run
from conviction.evaluation.workers import Thinking
from conviction.policies import policy
from conviction.policies.majority import Majority
from conviction.ray.pool import Bounds
from conviction.ray.workers import RayWorkers
from conviction.recordings import Pool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    # Ray's own: sockets that it leaves to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

QUICK = Bounds(placement=20.0, start=30.0, silence=3.0)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for all, so that they can share actors."""
    return "asyncio"


@pytest.fixture(scope="module")
async def pair(ray_cluster: Any) -> AsyncGenerator[RayWorkers]:
    """Two actors to whom nothing happens."""
    del ray_cluster
    async with workers(Scripted()) as started:
        await both_run(started, 2)
        yield started


def plan(count: int, name: str = "majority", budget: int = 8) -> EvaluationPlan:
    return EvaluationPlan(
        questions(count),
        policy(name, budget=budget),
        answers="number",
        sampling=Sampling(max_tokens=64),
        seed=3,
        questions_at_once=3,
    )


def workers(make: Backend, actors: int = 2, **options: Any) -> RayWorkers:
    options = {"resources": {"CPU": 1}, "bounds": QUICK, **options}
    return RayWorkers([make], answers="number", actors=actors, **options)


async def run(
    wanted: EvaluationPlan, folder: Path, engine: Any, **options: Any
) -> EvaluationProgress:
    with anyio.fail_after(60):
        async with engine as started:
            return await evaluated(wanted, folder, started, **options)


async def evaluated(
    wanted: EvaluationPlan, folder: Path, started: Any, **options: Any
) -> EvaluationProgress:
    return await evaluate(wanted, folder, engine=started, answers=kind("number"), **options)


def by_question(folder: Path) -> dict[str, QuestionResult]:
    """All results, without the time that they took."""
    results = read_run(folder).results
    assert len({result.id for result in results}) == len(results)
    return {result.id: replace_seconds(result) for result in results}


def replace_seconds(result: QuestionResult) -> QuestionResult:
    import msgspec

    return msgspec.structs.replace(result, seconds=0.0)


async def test_an_evaluation_and_its_recording_are_those_of_a_single_process(
    tmp_path: Path, pair: RayWorkers
) -> None:
    for name in ("settle", "deepconf-low"):
        wanted = plan(12, name, budget=20)
        folders = tmp_path / f"{name}-one", tmp_path / f"{name}-ray"
        for folder, engine in zip(folders, (Scripted().build(), pair), strict=True):
            progress = await evaluated(wanted, folder / "run", engine, pool=folder / "pool")
            assert progress.complete
            assert not progress.notes
        one, many = (by_question(folder / "run") for folder in folders)
        assert one == many
        assert len({result.answer for result in one.values()}) == 12
        pools = [recorded(folder / "pool", numbers=False) for folder in folders]
        assert pools[0] == pools[1]


def recorded(folder: Path, *, numbers: bool = True) -> dict[Any, Any]:
    """Every recorded trace, without its times; with `numbers` false, by its seed."""
    pool = Pool.open(folder)
    rows: dict[Any, Any] = {}
    for question in pool.questions:
        traces = pool.traces(question.id)
        confidences = traces.require_confidences()
        texts = pool.texts(question.id)
        for i, number in enumerate(traces.ids.tolist()):
            seed = int(traces.seeds[i])
            key = question.id, number if numbers else seed
            assert key not in rows
            rows[key] = (
                seed,
                texts[i],
                traces.answers[i],
                bool(traces.correct[i]),
                traces.finish[i],
                confidences[i].tobytes(),
            )
    return rows


async def test_a_recording_is_that_of_a_single_process(tmp_path: Path, pair: RayWorkers) -> None:
    wanted = RecordingPlan(questions(10), 6, Sampling(max_tokens=64), seed=4)
    for folder, engine in (("one", Scripted().build()), ("ray", pair)):
        with anyio.fail_after(60):
            progress = await record(
                wanted, tmp_path / folder, engine=engine, answers=kind("number")
            )
        assert progress.complete
        assert progress.recorded == 60
    assert recorded(tmp_path / "one") == recorded(tmp_path / "ray")


async def test_actors_are_spread_over_the_nodes_that_have_what_they_need(ray_cluster: Any) -> None:
    del ray_cluster
    async with workers(Scripted(), actors=2, resources={"second": 4}) as started:
        await both_run(started, 2)
    with pytest.raises(EngineStartError) as refused:
        async with workers(
            Scripted(), resources={"second": 5, "GPU": 1}, bounds=replace(QUICK, placement=1.0)
        ):
            pass
    message = str(refused.value)
    assert "2 actors with second 5, GPU 1 each" in message
    assert "room for none" in message
    assert "2 nodes with CPU 16" in message
    assert "second 8" in message


async def both_run(started: RayWorkers, actors: int) -> None:
    await until(lambda: len(started.homes) >= actors)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do, so that nothing here could set an event."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_an_actor_that_is_killed_costs_its_unfinished_questions_and_no_others(
    tmp_path: Path, ray_cluster: Any
) -> None:
    del ray_cluster
    make = Scripted(delay=0.02, events=tmp_path / "events", fatal=5)
    asked: Counter[str] = Counter()
    progress = await run(plan(10), tmp_path / "ray", workers(make))
    asked.update(result.id for result in progress.results)
    assert progress.complete
    assert set(asked.values()) == {1}
    await run(plan(10), tmp_path / "one", Scripted().build())
    one, many = by_question(tmp_path / "one"), by_question(tmp_path / "ray")
    assert [one[name].answer for name in one] == [many[name].answer for name in one]
    # What came to nothing is counted, and said; all else is as if nothing had happened.
    killed = many["q5"]
    assert killed.usage.failed > 0
    assert killed.tokens == one["q5"].tokens + killed.usage.failed
    assert killed.usage.voted == one["q5"].usage.voted
    assert "Begun again 1 time, because the actor was lost" in killed.warnings[-1]
    [note] = progress.notes
    assert note.startswith("Lost 1 actor on the way, and did ")
    # What the actor had started goes with it: Ray ends all of its process group.
    [child] = make.children()
    await until(lambda: not Path(f"/proc/{child}").exists())
    others = [name for name, result in many.items() if "Begun again" not in str(result.warnings)]
    assert len(others) >= 10 - 3  # No more than the actor had at once.
    assert all(one[name] == many[name] for name in others)


async def test_traces_recorded_before_an_actor_died_are_not_generated_again(
    tmp_path: Path, ray_cluster: Any
) -> None:
    del ray_cluster
    wanted = RecordingPlan(questions(8), 6, Sampling(max_tokens=64), seed=4)
    make = Scripted(delay=0.02, events=tmp_path / "events", fatal=2)
    with anyio.fail_after(60):
        async with workers(make) as started:
            progress = await record(
                wanted, tmp_path / "ray", engine=started, answers=kind("number")
            )
        await record(wanted, tmp_path / "one", engine=Scripted().build(), answers=kind("number"))
    assert progress.complete
    assert progress.recorded == 48
    assert recorded(tmp_path / "one") == recorded(tmp_path / "ray")


async def test_a_question_that_ends_every_actor_fails_and_the_others_go_on(
    tmp_path: Path, ray_cluster: Any
) -> None:
    del ray_cluster
    make = Scripted(delay=0.01, events=tmp_path / "events", fatal=1, deaths=99)
    wanted = replace(plan(5), questions_at_once=1)
    progress = await run(wanted, tmp_path / "ray", workers(make))
    [failed] = [result for result in progress.results if result.failed]
    assert failed.id == "q1"
    assert "in 3 actors, one after another" in (failed.error or "")
    assert failed.tokens > 0
    assert len(progress.results) == 5


async def test_an_actor_that_falls_silent_is_given_up(tmp_path: Path, ray_cluster: Any) -> None:
    del ray_cluster
    make = Scripted(delay=0.01, events=tmp_path / "events", fatal=1, kill=signal.SIGSTOP)
    progress = await run(plan(4), tmp_path / "ray", workers(make))
    assert progress.complete
    assert "no answer within 3 s" in progress.notes[0]


async def test_a_node_that_goes_leaves_the_work_to_the_others(
    tmp_path: Path, ray_cluster: Any
) -> None:
    node = ray_cluster.add_node(num_cpus=1, resources={"any": 1})
    wanted = replace(plan(16), questions_at_once=2)

    pids: list[int] = []

    def on_progress(progress: EvaluationProgress) -> None:
        if len(progress.results) == 4:
            pids.extend(home.pid for home in engine.homes)
            # In a thread: the run must go on meanwhile.
            threading.Thread(target=ray_cluster.remove_node, args=(node, False)).start()

    engine = workers(Scripted(delay=0.05), actors=2, resources={"any": 1})
    progress = await run(wanted, tmp_path / "ray", engine, on_progress=on_progress)
    assert progress.complete
    assert len(by_question(tmp_path / "ray")) == 16
    assert any("Lost 1 actor" in note for note in progress.notes)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def memory_share(*, more: int) -> float:
    """How much of this machine's memory is used, and so many KiB more, in [0, 1]."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return 1 - (sizes["MemAvailable"] - more) / sizes["MemTotal"]


async def test_an_actor_out_of_memory_is_ended_by_ray_and_its_question_done_again(
    tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{memory_share(more=1 << 20):.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    node = ray_cluster.add_node(num_cpus=1, resources={"tight": 2})
    make = Scripted(delay=0.01, events=tmp_path / "events", fatal=2, eats=True)
    engine = workers(make, actors=1, resources={"tight": 1}, bounds=replace(QUICK, silence=20.0))
    progress = await run(plan(4), tmp_path / "ray", engine)
    ray_cluster.remove_node(node)
    assert progress.complete
    assert "ran out of memory" in progress.notes[0]


async def test_cancelling_the_run_ends_traces_and_actors(tmp_path: Path, ray_cluster: Any) -> None:
    del ray_cluster
    pids: list[int] = []

    async def main(engine: RayWorkers) -> None:
        async with engine as started:
            await both_run(started, 2)
            pids.extend(home.pid for home in started.homes)
            await evaluate(plan(4), tmp_path / "ray", engine=started, answers=kind("number"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, workers(Scripted(delay=5.0)))
            await until(lambda: len(pids) == 2)
            await anyio.sleep(0.5)
            began = time.monotonic()
            tasks.cancel_scope.cancel()
        assert time.monotonic() - began < 3
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_engines_that_are_not_alike_are_refused(tmp_path: Path, ray_cluster: Any) -> None:
    del ray_cluster
    engines = [Scripted(), Scripted(top_k=5)]
    engine = RayWorkers(engines, answers="number", bounds=QUICK)
    with pytest.raises(InvalidSettingError, match=r"k = 5, and they have k = 20|k = 20.*k = 5"):
        await run(plan(40), tmp_path / "ray", engine)


async def test_any_error_of_an_engine_of_ones_own_ends_the_waiting(ray_cluster: Any) -> None:
    del ray_cluster

    class Broken(Backend):
        def build(self) -> Engine:
            raise RuntimeError("no such thing")

    with pytest.raises(EngineStartError, match="no such thing"), anyio.fail_after(20):
        async with workers(Broken(), actors=1):
            pass


class OfThisMachineAlone(Majority):
    """A policy that the nodes cannot import."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, ("of_this_machine",)


async def test_an_error_of_the_engine_comes_out_as_it_is(ray_cluster: Any) -> None:
    del ray_cluster
    broken = Scripted(broken=True)
    with pytest.raises(EngineStartError, match="there is no device"), anyio.fail_after(20):
        async with workers(broken, actors=1):
            pass
    async with workers(Scripted(faulty=True), actors=1) as started:
        thinking = Thinking(questions(1)[0].question, policy("majority", budget=3), Sampling())
        heard: list[Any] = []
        with pytest.raises(AllTracesFailedError, match="the engine is gone"), anyio.fail_after(20):
            await started.think(thinking, on_event=heard.append)
        assert [event.trace.finish for event in heard] == [FinishReason.ERROR] * 3
        homes = started.homes
        unreadable = replace(thinking, policy=OfThisMachineAlone())
        with pytest.raises(EngineError, match="No module named 'of_this_machine'"):
            await started.think(unreadable, on_event=heard.append)
        assert started.homes == homes
