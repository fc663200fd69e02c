"""The embedded engine: its parts alone, and the whole with a small real model."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_process
import httpx2
import numpy as np
import pytest

from conviction.answers import kind
from conviction.core import FinishReason, Question, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.local import LocalEngine
from conviction.engines.local import engine as engine_module
from conviction.engines.local import server as machine
from conviction.engines.local.engine import SharedPrompts, Slot, SlotPool
from conviction.engines.local.server import ServerApi
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    InvalidSettingError,
    MissingExtraError,
    ModelError,
    NotAChatModelError,
    StreamError,
)
from conviction.events import Event, TraceAdvanced
from conviction.models import resolve
from conviction.policies import Majority
from conviction.thinking import deliberate

QUESTION = "Tell me a long story about the river that flows through the old town."


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return resolve("SmolLM2-135M-Instruct").path


@pytest.fixture
def small(smollm2_path: Path) -> Callable[..., LocalEngine]:
    """Makes engines with the small model."""
    return lambda **settings: LocalEngine(smollm2_path, **{"context": 512, **settings})


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, so that what is left behind can be seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def ask(
    text: str = QUESTION, *, seed: int = 1, k: int = 20, tokens: int = 24, **sampling: Any
) -> TraceRequest:
    drawn = Sampling(max_tokens=tokens, **sampling)
    return TraceRequest(Question.ask(text).messages, drawn, seed=seed, top_k=k)


async def collect(engine: LocalEngine, request: TraceRequest) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


async def together(engine: LocalEngine, requests: list[TraceRequest]) -> list[list[Chunk]]:
    traces: list[list[Chunk]] = [[] for _ in requests]

    async def go(number: int) -> None:
        traces[number] = await collect(engine, requests[number])

    async with anyio.create_task_group() as tasks:
        for number in range(len(requests)):
            tasks.start_soon(go, number)
    return traces


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def tokens_of(chunks: list[Chunk]) -> int:
    return sum(chunk.confidences.size for chunk in chunks)


async def counted(engine: LocalEngine, name: str) -> int:
    """A counter of the server's own, once no slot is at work."""
    http, url = running(engine).http, running(engine).server.url
    for _ in range(500):
        slots = json.loads(await http.ask("GET", f"{url}/slots"))
        if not any(slot["is_processing"] for slot in slots):
            break
        await anyio.sleep(0.01)
    else:
        pytest.fail("the slots did not come to rest")
    lines = (await http.ask("GET", f"{url}/metrics")).decode().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))


def running(engine: LocalEngine) -> engine_module._Running:
    assert engine._running is not None
    return engine._running


def child_of(engine: LocalEngine) -> int:
    pid = running(engine).server.pid
    assert pid is not None
    return pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended counts as there until its parent has asked how.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command_line(pid: int) -> str:
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout


# --- Slots --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_slots_are_given_out_first_come_first_served() -> None:
    pool = SlotPool(1)
    order: list[int] = []

    async def wait(number: int) -> None:
        async with pool.take(None):
            order.append(number)

    async with anyio.create_task_group() as tasks, pool.take(None):
        for number in range(5):
            tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]
    assert pool.free == 1


@pytest.mark.anyio
async def test_a_waiter_that_is_cancelled_leaves_the_queue() -> None:
    pool = SlotPool(1)
    reached = anyio.Event()

    async def wait() -> None:
        async with pool.take(None):
            reached.set()

    async with anyio.create_task_group() as tasks:
        async with pool.take(None), anyio.create_task_group() as impatient:
            impatient.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
        with anyio.fail_after(1):
            await reached.wait()
    assert pool.free == 1


@pytest.mark.anyio
async def test_a_slot_that_holds_the_prompt_is_preferred() -> None:
    pool, prompt = SlotPool(3), object()
    async with pool.take(None), pool.take(None) as second:
        second.holds = prompt
    async with pool.take(prompt) as slot:
        assert slot is second


# --- Shared prompts -----------------------------------------------------------------------------


class FakeApi:
    """Counts what is asked of it; `failing` names what does not work."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await anyio.sleep(0.01)
        if name in self.failing:
            raise EngineError(tried=name, found="it broke", remedy="None.")

    async def templated(self, _: object) -> str:
        return "the prompt"

    async def count_tokens(self, _: object) -> int:
        await self._called("count")
        return 10

    async def prefill(self, _: int, __: object) -> int:
        await self._called("prefill")
        return 3

    async def save(self, _: int, __: str) -> int:
        await self._called("save")
        return 1000

    async def restore(self, _: int, __: str) -> None:
        await self._called("restore")


def shared(api: FakeApi, folder: Path, most_bytes: int = 10_000) -> SharedPrompts:
    return SharedPrompts(cast("ServerApi", api), folder, most_bytes)


async def load(prompts: SharedPrompts, slot: Slot, question: str = "a") -> int | None:
    async with prompts.use(Question.ask(question).messages) as prompt:
        return await prompts.load(prompt, slot)


@pytest.mark.anyio
async def test_a_prompt_is_counted_and_computed_once_for_all_slots(tmp_path: Path) -> None:
    api = FakeApi()
    prompts, slots = shared(api, tmp_path), [Slot(number) for number in range(4)]
    found: list[int | None] = []

    async def start(slot: Slot) -> None:
        found.append(await load(prompts, slot))

    async with anyio.create_task_group() as tasks:
        for slot in slots:
            tasks.start_soon(start, slot)
    assert sorted(api.calls) == ["count", "prefill", *["restore"] * 3, "save"]
    assert sorted(found, key=str) == [3, None, None, None]
    assert await load(prompts, slots[2]) is None
    assert len(api.calls) == 6


@pytest.mark.anyio
@pytest.mark.parametrize("failing", ["save", "restore"])
async def test_where_sharing_fails_traces_start_without_it(failing: str, tmp_path: Path) -> None:
    api = FakeApi(failing)
    prompts = shared(api, tmp_path)
    for number in range(4):
        await load(prompts, Slot(number))
    assert api.calls.count(failing) == 1


@pytest.mark.anyio
async def test_when_the_first_trace_is_cancelled_the_next_computes_the_prompt(
    tmp_path: Path,
) -> None:
    class SlowAtFirst(FakeApi):
        async def prefill(self, slot: int, messages: object) -> int:
            tokens = await super().prefill(slot, messages)
            if self.calls.count("prefill") == 1:
                computing.set()
                await anyio.sleep_forever()
            return tokens

    computing = anyio.Event()
    api = SlowAtFirst()
    prompts = shared(api, tmp_path)
    cancelled = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def first() -> None:
            with cancelled:
                await load(prompts, Slot(0))

        async def second() -> None:
            with anyio.fail_after(5):
                assert await load(prompts, Slot(1)) == 3

        tasks.start_soon(first)
        await computing.wait()
        tasks.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        cancelled.cancel()
    assert api.calls.count("prefill") == 2


@pytest.mark.anyio
async def test_saved_prompts_stay_within_their_bound_and_those_in_use_are_kept(
    tmp_path: Path,
) -> None:
    prompts = shared(FakeApi(), tmp_path, most_bytes=2500)
    async with prompts.use(Question.ask("in use").messages) as kept:
        await prompts.load(kept, Slot(0))
        written(tmp_path / kept.file, b"")
        for number in range(5):
            await load(prompts, Slot(1), str(number))
        assert kept.file in contents(tmp_path)
        known = [prompt.messages[0].content for prompt in prompts._prompts.values()]
        assert known == ["in use", "4"]


# --- Before anything is started -------------------------------------------------------------------


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes()


async def start(engine: LocalEngine) -> None:
    async with engine:
        pytest.fail("it started")


@pytest.mark.anyio
async def test_without_the_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install \"conviction\[local\]\""):
        await start(LocalEngine(tmp_path / "model.gguf"))


@pytest.mark.anyio
async def test_a_missing_file_and_a_file_that_is_no_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        await start(LocalEngine(tmp_path / "none.gguf"))
    with pytest.raises(NotAChatModelError, match="GGUF"):
        await start(LocalEngine(written(tmp_path / "page.gguf", b"<html>")))


@pytest.mark.parametrize(
    "settings", [{"slots": 0}, {"context": 1.5}, {"threads": -1}, {"start_timeout": math.inf}]
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettingError):
        LocalEngine("model.gguf", **settings)


@pytest.mark.anyio
async def test_an_engine_that_is_not_started_says_so() -> None:
    with pytest.raises(EngineUnavailableError, match="not started"):
        await collect(LocalEngine("model.gguf"), ask())


def test_a_confined_process_uses_the_cores_and_the_memory_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {"cpu.max": "150000 100000", "memory.max": "5000000", "memory.current": "2000000"}
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(machine, "_GROUP_CORES", tmp_path / "cpu.max")
    monkeypatch.setattr(machine, "_GROUP_MEMORY", tmp_path / "memory.max")
    monkeypatch.setattr(machine, "_GROUP_MEMORY_USED", tmp_path / "memory.current")
    assert machine.usable_cores() <= 2
    assert machine.available_memory() == 3_000_000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_cores() >= 1
    assert (machine.available_memory() or 0) > 3_000_000


@pytest.mark.real
@pytest.mark.anyio
async def test_too_little_memory_is_found_before_the_start(
    small: Callable[..., LocalEngine], monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 300 << 20)
    with pytest.raises(EngineStartError, match=r"0\.1 GiB for the model.* 0\.3 GiB are free"):
        await start(small(slots=8, context=8192))
    assert not contents(temporary)


@pytest.mark.real
@pytest.mark.anyio
async def test_a_model_that_is_cut_short_is_found_before_the_start(
    smollm2_path: Path, tmp_path: Path
) -> None:
    cut = written(tmp_path / "cut.gguf", content_of(smollm2_path)[:-1000])
    with pytest.raises(NotAChatModelError, match="cut short"):
        await start(LocalEngine(cut))


# --- Starting and ending --------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.anyio
async def test_what_llama_cpp_says_about_a_model_it_cannot_load_is_in_the_error(
    smollm2_path: Path, tmp_path: Path, temporary: Path
) -> None:
    known = b"general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0llama"
    content = content_of(smollm2_path)
    assert known in content
    strange = content.replace(known, known[:-5] + b"lhama", 1)
    with pytest.raises(EngineStartError, match="unknown model architecture: 'lhama'"):
        await start(LocalEngine(written(tmp_path / "strange.gguf", strange)))
    assert not contents(temporary)


@pytest.mark.real
@pytest.mark.anyio
async def test_a_start_that_takes_too_long_is_given_up_without_leftovers(
    small: Callable[..., LocalEngine], temporary: Path
) -> None:
    began = time.perf_counter()
    with pytest.raises(EngineStartError, match=r"not ready within 0\.05 s"):
        await start(small(start_timeout=0.05))
    assert time.perf_counter() - began < 3
    assert not contents(temporary)


@pytest.mark.real
@pytest.mark.anyio
async def test_a_start_that_is_cancelled_leaves_nothing_behind(
    small: Callable[..., LocalEngine], temporary: Path
) -> None:
    with anyio.move_on_after(0.1) as scope:
        await start(small())
    assert scope.cancelled_caught
    assert not contents(temporary)


@pytest.mark.real
@pytest.mark.anyio
async def test_leaving_ends_the_process_and_removes_its_files_also_when_cancelled(
    small: Callable[..., LocalEngine], temporary: Path
) -> None:
    with anyio.CancelScope() as scope:
        async with small() as engine:
            await collect(engine, ask(tokens=2))
            pid = child_of(engine)
            assert contents(temporary)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert not alive(pid)
    assert not contents(temporary)


@pytest.mark.real
@pytest.mark.anyio
async def test_the_server_wants_its_key_and_the_key_is_not_in_the_process_list(
    small: Callable[..., LocalEngine],
) -> None:
    async with small() as engine, httpx2.AsyncClient(trust_env=False) as stranger:
        server = running(engine).server
        assert server.url.startswith("http://127.0.0.1:")
        for path in ("/slots", "/metrics", "/models"):
            assert (await stranger.get(server.url + path)).status_code == 401
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        answer = await stranger.post(server.url + "/v1/chat/completions", json=body)
        assert answer.status_code == 401
        shown = command_line(child_of(engine))
        assert "child.py" in shown
        assert server.api_key not in shown


@pytest.mark.real
@pytest.mark.anyio
async def test_a_process_that_is_killed_is_started_again_once(
    small: Callable[..., LocalEngine], temporary: Path
) -> None:
    async with small(slots=2) as engine:
        before = child_of(engine)
        with anyio.fail_after(60):
            await killed_in_its_midst(engine, StreamError)
            assert child_of(engine) != before
            # Again before any trace came to its end: the model may be what kills it.
            await killed_in_its_midst(engine, EngineUnavailableError)
            with pytest.raises(EngineUnavailableError, match="signal 9"):
                await collect(engine, ask())
        assert running(engine).slots.free == 2
    assert not contents(temporary)


async def killed_in_its_midst(engine: LocalEngine, error: type[EngineError]) -> None:
    async with aclosing(engine.stream(ask(tokens=400))) as chunks:
        await anext(chunks)
        os.kill(child_of(engine), signal.SIGKILL)
        with pytest.raises(error, match="signal 9"):
            await exhaust(chunks)


@pytest.mark.real
@pytest.mark.anyio
async def test_the_traces_of_a_killed_process_begin_again_and_their_tokens_count_as_failed(
    small: Callable[..., LocalEngine], temporary: Path
) -> None:
    killed: list[int] = []

    async with small(slots=2) as engine:

        def kill_once(event: Event) -> None:
            if isinstance(event, TraceAdvanced) and event.chunk.confidences.size and not killed:
                killed.append(child_of(engine))
                os.kill(killed[0], signal.SIGKILL)

        with anyio.fail_after(60):
            verdict = await deliberate(
                Question.ask(QUESTION),
                engine=engine,
                policy=Majority(budget=3),
                answers=kind("text"),
                sampling=Sampling(max_tokens=24),
                on_event=kill_once,
            )
        assert child_of(engine) not in killed
        # A trace came to its end, so that it may be started again.
        await killed_in_its_midst(engine, StreamError)
        assert text_of(await collect(engine, ask()))
    assert all(trace.complete and trace.tokens for trace in verdict.traces)
    assert verdict.usage.failed == sum(trace.lost_tokens for trace in verdict.traces) > 0
    assert any("started again" in warning for warning in verdict.warnings)
    assert not contents(temporary)


def test_the_next_start_removes_what_a_killed_program_left(temporary: Path) -> None:
    program = """
import os, pathlib
from conviction.engines.local.server import LlamaServer
made = LlamaServer(pathlib.Path("m.gguf"), slots=1, context=1, threads=1, timeout=1)
(made.folder / "prompt-1.bin").write_bytes(b"x" * 1000)
os.kill(os.getpid(), 9)
"""
    env = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", program], env=env, check=False, timeout=60)
    living = machine.LlamaServer(Path("m.gguf"), slots=1, context=1, threads=1, timeout=1)
    (temporary / "conviction-tests-of-others").mkdir()
    (temporary / "conviction-llama-just-now").mkdir()
    assert len(contents(temporary)) == 4
    machine.remove_leftovers()
    assert contents(temporary) == sorted(
        [living.folder.name, "conviction-llama-just-now", "conviction-tests-of-others"]
    )
    living._lock.release()


async def exhaust(chunks: Any) -> None:
    async for _ in chunks:
        pass


@pytest.mark.real
@pytest.mark.anyio
async def test_an_interrupt_from_the_keyboard_does_not_reach_llama_cpp(
    small: Callable[..., LocalEngine],
) -> None:
    async with small() as engine:
        os.kill(child_of(engine), signal.SIGINT)
        assert tokens_of(await collect(engine, ask(tokens=4))) == 4


@pytest.mark.real
def test_when_the_parent_is_killed_the_child_ends_and_cleans_up(
    smollm2_path: Path, temporary: Path
) -> None:
    program = """
import sys, anyio
from conviction.engines.local import LocalEngine
async def main():
    async with LocalEngine(sys.argv[1], context=256) as engine:
        print(engine._running.server.pid, flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(smollm2_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        assert contents(temporary)
        parent.kill()
    until = time.monotonic() + 5
    while alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(child)
    assert not contents(temporary)


# --- Traces ---------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.anyio
async def test_log_probabilities_are_the_full_softmax_whatever_the_sampling(
    small: Callable[..., LocalEngine],
) -> None:
    async with small() as engine:
        settings = [
            {"temperature": 0.1},
            {"temperature": 2.0},
            {"temperature": 1.0, "top_k": 1},
            {"temperature": 1.0, "top_p": 0.1, "min_p": 0.9},
        ]
        for k in (1, 5, 20):
            firsts = [(await collect(engine, ask(k=k, tokens=1, **s)))[0] for s in settings]
            values = {float(chunk.confidences[0]) for chunk in firsts}
            assert len(values) == 1
        # All tokens' probabilities add up to one: nothing was cut off or rescaled.
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
        more = {"logprobs": True, "top_logprobs": 40_000, "temperature": 0.5, "top_k": 3}
        answer = json.loads(
            await running(engine).http.ask("POST", "/chat/completions", {**body, **more})
        )
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert sum(math.exp(entry["logprob"]) for entry in entries) == pytest.approx(1, abs=1e-3)


@pytest.mark.real
@pytest.mark.anyio
async def test_every_token_has_its_log_probability_if_wanted_which_is_the_top_one_if_greedy(
    small: Callable[..., LocalEngine],
) -> None:
    async def values(
        engine: LocalEngine, *, k: int, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        request = replace(ask(k=k, temperature=temperature), logprobs=True)
        chunks = await collect(engine, request)
        logprobs = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
        assert [one.size for one in logprobs] == [chunk.confidences.size for chunk in chunks]
        confidences = np.concatenate([chunk.confidences for chunk in chunks])
        together = np.concatenate(logprobs)
        np.testing.assert_array_equal(np.isnan(together), np.isnan(confidences))
        known = np.isfinite(together)
        assert known.sum() >= 20
        assert (together[known] <= 0).all()
        return together[known], confidences[known]

    async with small() as engine:
        # With k = 1, the confidence is minus the top log-probability.
        greedy, top = await values(engine, k=1, temperature=0.0)
        np.testing.assert_allclose(greedy, -top, atol=1e-3)
        drawn, top = await values(engine, k=1, temperature=1.5)
        assert (drawn <= -top + 1e-3).all()
        assert (drawn < -top - 0.1).any()
        await values(engine, k=20, temperature=0.7)
        assert {c.logprobs is None for c in await collect(engine, ask(tokens=4))} == {True}


@pytest.mark.real
@pytest.mark.anyio
async def test_a_seed_reproduces_its_trace_where_the_engine_says_so(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=1) as engine:
        assert (await engine.capabilities()).seeds
        requests = [ask(seed=seed, temperature=1.0) for seed in (1, 2, 1, 2)]
        first, second, again, other = await together(engine, requests)
    assert text_of(first) == text_of(again) != text_of(second) == text_of(other)
    for one, same in ((first, again), (second, other)):
        confidences = [np.concatenate([c.confidences for c in trace]) for trace in (one, same)]
        np.testing.assert_array_equal(*confidences)


@pytest.mark.real
@pytest.mark.anyio
async def test_every_token_is_counted_also_those_that_are_parts_of_a_character(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=3) as engine:
        question = "Answer with emoji only, as many as you can: 😀🎉🌍한국어"
        traces = await together(engine, [ask(question, seed=s, tokens=30) for s in range(3)])
        generated = await counted(engine, "tokens_predicted_total")
    assert "�" not in "".join(map(text_of, traces))
    assert sum(map(tokens_of, traces)) == generated - 1  # one was drawn to compute the prompt
    assert any(np.isnan(chunk.confidences).any() for trace in traces for chunk in trace[:-1])
    assert {trace[-1].finish for trace in traces} <= {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.real
@pytest.mark.anyio
async def test_a_prompt_is_computed_once_and_its_tokens_are_told_honestly(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=4) as engine:
        traces = await together(engine, [ask(seed=seed, tokens=3) for seed in range(8)])
        computed = await counted(engine, "prompt_tokens_total")
        told = [(trace[-1].prompt_tokens, trace[-1].cached_tokens) for trace in traces]
    [prompt] = {tokens for tokens, _ in told}
    cached = sorted(tokens for _, tokens in told)
    assert cached == [0] + [prompt - 1] * 7
    assert computed == prompt + 8  # each trace computes the last token again, to draw after it


@pytest.mark.real
@pytest.mark.anyio
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_after_a_cancel_at_most_two_more_tokens_are_generated(
    small: Callable[..., LocalEngine], how: str
) -> None:
    traces, consumed = 6, 0

    async def stop_early(engine: LocalEngine, number: int) -> None:
        nonlocal consumed
        with anyio.CancelScope() as scope:
            async with aclosing(engine.stream(ask(seed=number, tokens=300))) as chunks:
                own = 0
                async for chunk in chunks:
                    consumed += chunk.confidences.size
                    own += chunk.confidences.size
                    if own >= 5 + 3 * number and how == "close":
                        return
                    if own >= 5 + 3 * number:
                        scope.cancel()

    async with small(slots=3) as engine:
        async with anyio.create_task_group() as tasks:
            for number in range(traces):
                tasks.start_soon(stop_early, engine, number)
        generated = await counted(engine, "tokens_predicted_total") - 1  # the prompt's
        assert consumed <= generated <= consumed + 2 * traces
        assert running(engine).slots.free == 3
        assert tokens_of(await collect(engine, ask(tokens=4))) == 4


@pytest.mark.real
@pytest.mark.anyio
async def test_no_slot_is_lost_wherever_a_trace_is_cancelled(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=2) as engine:

        async def go(number: int) -> None:
            question = f"{QUESTION} {number % 3}"
            with anyio.move_on_after(0.013 * number):
                await collect(engine, ask(question, seed=number, tokens=40))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(go, number)
            assert running(engine).slots.free == 2
            assert not any(p.users for p in running(engine).prompts._prompts.values())
            traces = await together(engine, [ask(seed=seed, tokens=4) for seed in range(4)])
        assert [tokens_of(trace) for trace in traces] == [4] * 4


@pytest.mark.real
@pytest.mark.anyio
async def test_more_traces_than_slots_wait_their_turn(small: Callable[..., LocalEngine]) -> None:
    async with small(slots=2) as engine:
        assert (await engine.capabilities()).concurrency == 2
        open_now, most, ended = set[int](), 0, list[int]()

        async def go(number: int) -> None:
            nonlocal most
            async with aclosing(engine.stream(ask(seed=number, tokens=4, temperature=0))) as chunks:
                async for _ in chunks:
                    open_now.add(number)
                    most = max(most, len(open_now))
            open_now.discard(number)
            ended.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(go, number)
        assert most == 2
        assert {0, 1} == set(ended[:2])
        assert {4, 5} == set(ended[4:])


@pytest.mark.real
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("question", "tokens"), [("Why?", 500), ("Why? " * 300, 1)], ids=["limit", "question"]
)
async def test_a_trace_that_cannot_fit_the_context_is_refused_before_it_starts(
    small: Callable[..., LocalEngine], question: str, tokens: int
) -> None:
    async with small() as engine:
        with pytest.raises(ContextOverflowError, match=r"the context has 512\. Lower --max-tokens"):
            await collect(engine, ask(question, tokens=tokens))
        assert await counted(engine, "tokens_predicted_total") == 0
        assert await counted(engine, "prompt_tokens_total") == 0


@pytest.mark.real
@pytest.mark.anyio
async def test_a_trace_goes_on_from_a_given_beginning_as_if_it_had_written_that(
    small: Callable[..., LocalEngine],
) -> None:
    request = ask("Tell me about the sea.", tokens=40, temperature=0)
    async with small(slots=1) as engine:
        assert (await engine.capabilities()).continues
        whole = await collect(engine, request)
        prefix = " ".join(text_of(whole).split(" ")[:8])
        rest = await collect(engine, replace(request, prefix=prefix))
        kept = rest[-1].prompt_tokens - whole[-1].prompt_tokens
        generated = await counted(engine, "tokens_predicted_total")
    assert 8 <= kept < 40
    # Greedy, it writes the same as before, and as many tokens more as the beginning had.
    assert text_of(rest).startswith(text_of(whole).removeprefix(prefix))
    assert len(text_of(rest)) > len(text_of(whole)) - len(prefix)
    assert tokens_of(rest) == tokens_of(whole) == 40
    assert rest[-1].cached_tokens >= whole[-1].prompt_tokens
    assert np.isfinite(np.concatenate([chunk.confidences for chunk in rest])).mean() > 0.9
    assert generated == 1 + 40 + 40  # one was drawn to compute the prompt


@pytest.mark.real
@pytest.mark.anyio
async def test_a_given_beginning_takes_its_place_in_the_context(
    small: Callable[..., LocalEngine],
) -> None:
    async with small() as engine:
        assert tokens_of(await collect(engine, ask(tokens=4))) == 4
        with pytest.raises(ContextOverflowError, match="the context has 512"):
            await collect(engine, replace(ask(tokens=4), prefix="Once upon a time " * 200))


@pytest.mark.real
@pytest.mark.anyio
async def test_all_slots_may_fill_their_context_at_the_same_time(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=3, context=96) as engine:
        async with running(engine).prompts.use(ask().messages) as prompt:
            room = 96 - prompt.tokens
        requests = [ask(seed=seed, tokens=room, temperature=1.5) for seed in range(3)]
        traces = await together(engine, requests)
        traces += await together(engine, requests)
    assert all(trace[-1].finish is not None for trace in traces)
    assert max(map(tokens_of, traces)) == room
    assert all(trace[-1].prompt_tokens == prompt.tokens for trace in traces)


@pytest.mark.real
@pytest.mark.anyio
async def test_the_context_is_never_larger_than_the_model_was_made_for(
    small: Callable[..., LocalEngine],
) -> None:
    async with small(slots=1, context=50_000) as engine:
        assert (await engine.capabilities()).context == 8192
