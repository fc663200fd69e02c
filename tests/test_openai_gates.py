"""A server's gate is found by what it does, and used; its confidences come through a channel."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from completion_events import assert_idle, collect
from gated_model import FITTING, GatedModel
from scripted_server import ScriptedServer, serving

from conviction.answers import kind
from conviction.core import FinishReason, Message, Question, Sampling
from conviction.engines import vllm_gate as channels
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.openai import OpenAIEngine, Route, probe_streams
from conviction.engines.openai.traces import SilentChannelError
from conviction.gate import Gate
from conviction.policies import DeepConfLow
from conviction.thinking import deliberate
from conviction_gate.names import MOST_WINDOW, REPORT, STOP_TOKEN, THRESHOLD, TRACE, WINDOW, K

pytestmark = pytest.mark.anyio

GATE = Gate(window=4, threshold=15.6)
STOPPED_AFTER = 7
"""Tokens after which 20, 19, 18 … have four whose mean is below 15.6."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(channels, "channel_folder", lambda: tmp_path)
    monkeypatch.setattr(channels, "PATIENCE", 0.1)
    monkeypatch.setattr(probe_streams, "_FREED_SECONDS", 0.25)
    return tmp_path


@asynccontextmanager
async def running(
    model: GatedModel, route: Route = Route.CHAT, *, probed: bool = True, **settings: Any
) -> AsyncGenerator[tuple[OpenAIEngine, ScriptedServer]]:
    """An engine for such a model, asked what it can do."""
    with anyio.fail_after(20):
        async with serving(model.play, keeps_alive=True) as server:
            async with OpenAIEngine(server.url, route=route, **settings) as engine:
                if probed:
                    await engine.capabilities()
                    model.asked.clear()
                    model.traces.clear()
                yield engine, server
                assert_idle(engine)
            await server.idle()


def trace(gate: Gate | None = None, tokens: int = 12, **more: object) -> TraceRequest:
    request = TraceRequest(
        (Message("user", "Why?"),), Sampling(max_tokens=tokens), seed=3, top_k=20, gate=gate
    )
    return replace(request, **more)  # type: ignore[arg-type]


def confidences(chunks: Sequence[Chunk]) -> list[float]:
    return np.concatenate([chunk.confidences for chunk in chunks]).tolist()


def channels_in(folder: Path) -> int:
    return len(list(folder.iterdir()))


# --- Finding it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", Route)
async def test_a_gate_and_its_channel_are_found_by_what_they_do(route: Route, folder: Path) -> None:
    async with running(GatedModel(folder=folder), route) as (engine, _):
        facts = engine.servers[0].facts
        can = await engine.capabilities()
    assert facts is not None
    assert (facts.gate, facts.channel, facts.stop_token) == (True, True, FITTING)
    assert can.gates
    assert can.top_k == 20
    assert channels_in(folder) == 0


async def test_a_gate_out_of_reach_has_no_channel() -> None:
    async with running(GatedModel(folder=None)) as (engine, _):
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.gate, facts.channel) == (True, False)
        assert (await engine.capabilities()).gates


async def test_without_the_plugin_there_is_no_gate(folder: Path) -> None:
    async with running(GatedModel(folder=folder, gone=True)) as (engine, _):
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.gate, facts.channel, facts.gate_reason) == (False, False, "")
        assert not (await engine.capabilities()).gates


async def test_a_gate_that_stops_nothing_is_none(folder: Path) -> None:
    async with running(GatedModel(folder=folder, works=False)) as (engine, _):
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.gate, facts.channel) == (False, False)


async def test_a_gate_that_refuses_to_work_tells_why(folder: Path) -> None:
    model = GatedModel(folder=folder, refuses="conviction_window: speculative decoding is on")
    async with running(model) as (engine, _):
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.gate, facts.channel) == (False, False)
        assert "speculative decoding" in facts.gate_reason


async def test_other_servers_are_not_bothered_with_it(folder: Path) -> None:
    model = GatedModel(
        software="llamacpp",
        counts="timings",
        token_ids=False,
        listed=[{"id": "m", "owned_by": "llamacpp"}],
        folder=folder,
    )
    async with running(model, probed=False) as (engine, _):
        await engine.capabilities()
        facts = engine.servers[0].facts
    assert facts is not None
    assert facts.gate is None
    assert not any("vllm_xargs" in body for body in model.asked)


async def test_where_events_carry_no_counts_there_is_no_use_for_a_channel(folder: Path) -> None:
    async with running(GatedModel(folder=folder, counts="")) as (engine, _):
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.gate, facts.channel) == (True, False)


async def test_confidences_by_channel_need_no_log_probabilities_at_all(folder: Path) -> None:
    model = GatedModel(folder=folder, most_top_k=0)
    async with running(model) as (engine, _):
        assert (await engine.capabilities()).top_k == 20
        chunks = await collect(engine, trace())
    assert confidences(chunks) == [20.0 - place for place in range(12)]


# --- Using it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", Route)
async def test_a_trace_is_stopped_inside_and_no_log_probabilities_travel(
    route: Route, folder: Path
) -> None:
    model = GatedModel(folder=folder)
    async with running(model, route) as (engine, _):
        chunks = await collect(engine, trace(GATE))

    [sent] = model.asked
    assert not {"logprobs", "top_logprobs"} & set(sent)
    assert sent["stop_token_ids"] == [FITTING]
    arguments = sent["vllm_xargs"]
    assert arguments.pop(REPORT).startswith("conviction-")
    assert arguments == {WINDOW: 4, THRESHOLD: 15.6, K: 20, STOP_TOKEN: FITTING}
    assert chunks[-1].finish is FinishReason.LOW_CONFIDENCE
    assert confidences(chunks) == [20.0 - place for place in range(STOPPED_AFTER)]
    assert "".join(chunk.text for chunk in chunks).count(" ") == STOPPED_AFTER - 1
    assert channels_in(folder) == 0


async def test_without_a_gate_confidences_still_come_by_the_channel(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        chunks = await collect(engine, trace())
    [sent] = model.asked
    assert set(sent["vllm_xargs"]) == {REPORT, K}
    assert "stop_token_ids" not in sent
    assert chunks[-1].finish is FinishReason.LENGTH
    assert confidences(chunks) == [20.0 - place for place in range(12)]


async def test_without_a_channel_log_probabilities_travel_and_the_gate_stays_inside() -> None:
    model = GatedModel(folder=None)
    async with running(model) as (engine, _):
        chunks = await collect(engine, trace(GATE))
    [sent] = model.asked
    assert sent["top_logprobs"] == 20
    assert set(sent["vllm_xargs"]) == {WINDOW, THRESHOLD, K, STOP_TOKEN, TRACE}
    assert chunks[-1].finish is FinishReason.LOW_CONFIDENCE
    assert np.isfinite(confidences(chunks)).all()


async def test_a_trace_that_needs_no_confidences_is_neither_measured_nor_gated(
    folder: Path,
) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        await collect(engine, trace(top_k=0))
    [sent] = model.asked
    assert not {"vllm_xargs", "stop_token_ids", "top_logprobs"} & set(sent)


async def test_who_wants_the_log_probabilities_of_tokens_gets_them(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        chunks = await collect(engine, trace(GATE, logprobs=True))
    [sent] = model.asked
    assert sent["top_logprobs"] == 20
    assert REPORT not in sent["vllm_xargs"]
    assert chunks[0].logprobs is not None


async def test_a_window_that_the_gate_cannot_hold_stays_outside(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        chunks = await collect(engine, trace(Gate(MOST_WINDOW + 1, 15.0)))
    [sent] = model.asked
    assert set(sent["vllm_xargs"]) == {REPORT, K}
    assert chunks[-1].finish is FinishReason.LENGTH


async def test_settings_of_the_caller_are_kept_beside_the_gates(folder: Path) -> None:
    model = GatedModel(folder=folder)
    extra = {"vllm_xargs": {"mine": 1}, "stop_token_ids": [7], "user": "me"}
    async with running(model, extra=extra) as (engine, _):
        await collect(engine, trace(GATE))
    [sent] = model.asked
    assert sent["user"] == "me"
    assert sent["stop_token_ids"] == [7, FITTING]
    assert {"mine", WINDOW} <= set(sent["vllm_xargs"])


async def test_a_channel_is_gone_when_its_trace_is_cancelled(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        stream = engine.stream(trace(tokens=1000))
        await anext(stream)
        assert channels_in(folder) == 1
        await stream.aclose()
        assert channels_in(folder) == 0


async def test_a_channel_is_gone_when_its_trace_is_refused(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        model.refuses = "conviction_window is out of sorts"
        with pytest.raises(Exception, match="out of sorts"):
            await collect(engine, trace(GATE))
    assert channels_in(folder) == 0


async def test_where_no_channel_can_be_made_log_probabilities_stand_in_and_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        monkeypatch.setattr(channels, "channel_folder", lambda: folder / "none")
        chunks = await collect(engine, trace())
    [sent] = model.asked
    assert sent["top_logprobs"] == 20
    assert np.isfinite(confidences(chunks)).all()
    assert "No channel could be made" in " ".join(chunks[-1].notes)


# --- A server that is started anew ----------------------------------------------------------------


async def test_a_gate_that_is_gone_is_noticed_at_the_first_tokens(folder: Path) -> None:
    model = GatedModel(folder=folder)
    async with running(model) as (engine, _):
        model.gone = True
        with pytest.raises(SilentChannelError):
            await collect(engine, trace(GATE))
        chunks = await collect(engine, trace(GATE))
    assert model.asked[-1]["top_logprobs"] == 20
    assert "vllm_xargs" not in model.asked[-1]
    assert np.isfinite(confidences(chunks)).all()


async def test_a_run_goes_on_without_the_gate_and_counts_what_it_lost(folder: Path) -> None:
    model = GatedModel(folder=folder, ends_after=30)
    async with running(model) as (engine, _):
        model.gone = True
        verdict = await deliberate(
            Question.ask("Why?"),
            engine=engine,
            policy=DeepConfLow(budget=6, warmup=3, window=4),
            answers=kind("text"),
            sampling=Sampling(max_tokens=40),
        )
    assert len(verdict.traces) == 6
    assert all(np.isfinite(one.confidences).any() for one in verdict.traces)
    assert all(one.finish is FinishReason.STOP for one in verdict.traces)
    assert verdict.usage.failed == sum(one.lost_tokens for one in verdict.traces) > 0
    assert any("channel" in warning for warning in verdict.warnings)


# --- A policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", [True, False])
async def test_a_policy_stops_traces_inside_the_server(folder: Path, *, reached: bool) -> None:
    model = GatedModel(folder=folder if reached else None, ends_after=30)
    async with running(model) as (engine, _):
        verdict = await deliberate(
            Question.ask("Why?"),
            engine=engine,
            policy=DeepConfLow(budget=8, warmup=4, window=4),
            answers=kind("text"),
            sampling=Sampling(max_tokens=40),
        )
    assert len(verdict.traces) == 8
    assert verdict.threshold is not None
    gated = [arguments for arguments in model.traces if WINDOW in arguments]
    assert [arguments[THRESHOLD] for arguments in gated] == [verdict.threshold] * 4
    assert channels_in(folder) == 0
