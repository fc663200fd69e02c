import math
from contextlib import aclosing
from dataclasses import replace

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import FinishReason, Message, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, StreamError


def request(trace: int = 0, max_tokens: int = 10_000) -> TraceRequest:
    return TraceRequest((Message("user", "?"),), Sampling(max_tokens=max_tokens), trace=trace)


async def play(engine: ScriptedEngine, asked: TraceRequest | None = None) -> list[Chunk]:
    async with aclosing(engine.stream(asked or request())) as chunks:
        return [chunk async for chunk in chunks]


def playing(engine: ScriptedEngine, asked: TraceRequest | None = None) -> list[Chunk]:
    return anyio.run(play, engine, asked)


scripts = st.builds(
    lambda text, values, finish: Script(text, np.array(values, np.float32), finish),
    st.text(max_size=60),
    st.lists(st.one_of(st.floats(0, 30, width=32), st.just(math.nan)), min_size=1, max_size=40),
    st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)


@given(scripts, st.integers(1, 50), st.integers(1, 50))
def test_it_plays_a_script_up_to_the_token_limit(
    script: Script, chunk_tokens: int, max_tokens: int
) -> None:
    engine = ScriptedEngine([script], chunk_tokens=chunk_tokens)
    chunks = playing(engine, request(max_tokens=max_tokens))
    played = np.concatenate([chunk.confidences for chunk in chunks])
    text = "".join(chunk.text for chunk in chunks)
    size = script.confidences.size
    assert np.array_equal(played, script.confidences[:max_tokens], equal_nan=True)
    assert script.text.startswith(text)
    assert all(1 <= chunk.confidences.size <= chunk_tokens for chunk in chunks[:-1])
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    if size <= max_tokens:
        assert (text, chunks[-1].finish) == (script.text, script.finish)
    else:
        assert chunks[-1].finish is FinishReason.LENGTH
    assert engine.generated == [min(size, max_tokens)]
    assert engine.running == 0


@given(scripts, st.integers(1, 9), st.integers(0, 50))
def test_a_fault_comes_after_exactly_its_tokens(
    script: Script, chunk_tokens: int, after: int
) -> None:
    fault = StreamError(tried="read", found="it broke", remedy="None.")
    faulty = Script(script.text, script.confidences, fault=fault, fault_after=after)
    engine = ScriptedEngine([faulty], chunk_tokens=chunk_tokens)
    with pytest.raises(StreamError, match="it broke"):
        playing(engine)
    assert engine.generated == [min(after, script.confidences.size)]
    assert engine.running == 0


@given(scripts, st.integers(1, 50), st.integers(1, 50))
def test_log_probabilities_are_played_token_by_token_to_whoever_wants_them(
    script: Script, chunk_tokens: int, max_tokens: int
) -> None:
    # As random as the confidences, unknown ones included.
    script = replace(script, logprobs=-script.confidences[::-1])
    engine = ScriptedEngine([script], chunk_tokens=chunk_tokens)
    unasked = request(max_tokens=max_tokens)
    *chunks, _ = playing(engine, replace(unasked, logprobs=True))
    values = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    assert [one.size for one in values] == [chunk.confidences.size for chunk in chunks]
    assert script.logprobs is not None
    np.testing.assert_array_equal(np.concatenate(values), script.logprobs[:max_tokens])
    assert {chunk.logprobs is None for chunk in playing(engine, unasked)} == {True}


def test_an_engine_without_log_probabilities_gives_none_of_the_tokens_either() -> None:
    script = Script("a", np.ones(3, np.float32), logprobs=np.zeros(3, np.float32))
    asked = replace(request(), logprobs=True)
    for engine in (ScriptedEngine([script], top_k=0), ScriptedEngine([Script.even("a")])):
        assert {chunk.logprobs is None for chunk in playing(engine, asked)} == {True}


def test_a_script_with_fewer_log_probabilities_than_tokens_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="3 confidences and 2 log-probabilities"):
        Script("a", np.ones(3, np.float32), logprobs=np.zeros(2, np.float32))


@pytest.mark.anyio
async def test_trace_n_plays_script_n_and_the_scripts_start_over() -> None:
    engine = ScriptedEngine([Script.even("a"), Script.even("b")], chunk_tokens=99)
    texts = [(await play(engine, request(trace)))[0].text for trace in range(5)]
    assert texts == ["a", "b", "a", "b", "a"]


@pytest.mark.anyio
async def test_a_function_may_give_the_script_of_a_request() -> None:
    engine = ScriptedEngine(lambda asked: Script.even(f"trace {asked.trace}", tokens=3))
    chunks = await play(engine, request(7))
    assert "".join(chunk.text for chunk in chunks) == "trace 7"


@pytest.mark.anyio
async def test_closing_a_stream_ends_its_generation_at_once() -> None:
    engine = ScriptedEngine([Script.even("a", tokens=1000)])
    stream = engine.stream(request())
    async for _ in stream:
        if engine.generated[0] == 3:
            break
    assert engine.running == 1
    await stream.aclose()
    assert (engine.running, engine.generated) == (0, [3])


@pytest.mark.anyio
async def test_cancelling_the_reader_ends_the_generation_at_once() -> None:
    engine = ScriptedEngine([Script.even("a", tokens=1000)], delay=30)
    with anyio.move_on_after(0.02) as scope:
        await play(engine)
    assert scope.cancelled_caught
    assert (engine.running, engine.generated) == (0, [0])


@pytest.mark.anyio
async def test_an_open_stream_counts_as_running() -> None:
    gate = anyio.Event()

    async def pace(_: TraceRequest) -> None:
        await gate.wait()

    engine = ScriptedEngine([Script.even("a", tokens=2)], pace=pace)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(play, engine)
            tasks.start_soon(play, engine)
            await anyio.wait_all_tasks_blocked()
            assert engine.running == 2
            gate.set()
    assert (engine.running, engine.generated) == (0, [2, 2])


@pytest.mark.anyio
async def test_without_log_probabilities_every_confidence_is_unknown() -> None:
    engine = ScriptedEngine([Script.even("a", tokens=4)], top_k=0)
    chunks = await play(engine)
    assert np.isnan(np.concatenate([chunk.confidences for chunk in chunks])).tolist() == [True] * 4
    assert (await engine.capabilities()).top_k == 0


@pytest.mark.anyio
async def test_it_tells_what_it_was_told() -> None:
    async with ScriptedEngine([Script.even("a")], concurrency=7, top_k=5) as engine:
        found = await engine.capabilities()
    assert (found.top_k, found.concurrency, found.seeds, found.continues) == (5, 7, True, True)
    unable = ScriptedEngine([Script.even("a")], continues=False)
    assert not (await unable.capabilities()).continues
    assert engine.name == "scripted"


@pytest.mark.anyio
async def test_prompt_tokens_come_with_the_end() -> None:
    script = Script("a", np.ones(2, np.float32), prompt_tokens=11)
    assert [chunk.prompt_tokens for chunk in await play(ScriptedEngine([script]))] == [0, 0, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
        ({"chunk_tokens": 1.5}, "chunk_tokens must be a whole number"),
        ({"delay": -1.0}, "delay must be at least 0"),
        ({"delay": math.nan}, "delay must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        ScriptedEngine([Script.even("a")], **settings)  # type: ignore[arg-type]


def test_an_engine_without_scripts_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="number of scripts must be at least 1"):
        ScriptedEngine([])
