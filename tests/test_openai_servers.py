"""The HTTP engine on real servers: llama.cpp's and vLLM, with small models, on loopback."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import real_servers
import vllm_environment
import vllm_models
from real_servers import RealServer

import conviction
from conviction.answers import kind
from conviction.core import FinishReason, Message, Question, Sampling, Trace
from conviction.engines.base import TraceRequest
from conviction.engines.openai import OpenAIEngine, Route
from conviction.errors import EngineUnavailableError
from conviction.events import Event, TraceAdvanced, TraceFinished
from conviction.gate import Gate
from conviction.policies.base import Action, Conditions, Policy, Standing
from conviction.policies.majority import Majority
from conviction.thinking import deliberate
from conviction.verdict import Verdict

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

QUESTION = "Name one animal."  # Even a model of this size answers that, and ends.
STORY = Question.ask("Tell me a long story about a farmer and his sheep.")
HALF_A_SECOND = 0.5
KEY = "sk-only-for-this-test"


@pytest.fixture(params=["llama_server", "vllm_server"])
def server(request: pytest.FixtureRequest) -> RealServer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is found out about servers, which one run leaves to the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def strict_server() -> Generator[RealServer]:
    """vLLM that wants a key, gives five processed log-probabilities at most."""
    if reason := vllm_environment.unavailable_because():
        pytest.skip(reason)
    options = ["--max-logprobs", "5", "--logprobs-mode", "processed_logprobs", "--api-key", KEY]
    with real_servers.vllm_server(vllm_models.TINY, options, gate=False) as running:
        yield running


@functools.cache
def ask_once(url: str, cache: Path) -> None:
    """Let what a server does be found out, so that later runs send nothing but their traces."""
    command = [sys.executable, "-m", "conviction", "doctor", "--base-url", url]
    subprocess.run(command, env={**os.environ, "CONVICTION_CACHE": str(cache)}, check=True)


async def idle(server: RealServer) -> None:
    """Wait until a server computes nothing, so that its counters stand still."""
    with anyio.fail_after(10):
        while await anyio.to_thread.run_sync(server.running):  # noqa: ASYNC110  # it tells nobody
            await anyio.sleep(0.02)


async def think(engine: OpenAIEngine, policy: Policy, **options: Any) -> Verdict:
    return await deliberate(STORY, engine=engine, policy=policy, answers=kind("text"), **options)


# --- A user at the command line -----------------------------------------------------------------


@pytest.mark.parametrize("policy", ["majority", "deepconf-offline", "deepconf-low"])
def test_a_question_is_answered_and_every_token_is_counted(
    server: RealServer, policy: str, cache: Path
) -> None:
    command = [sys.executable, "-m", "conviction", "think", QUESTION, "--base-url", server.url]
    options = ["--policy", policy, "--budget", "6", "--max-tokens", "200", "--json"]
    options += ["--answer", "text", "--prompt-style", "plain"]
    if policy == "deepconf-low":
        # Only the budget ends it, so that traces are there to be stopped.
        options[3:4] = ["12", "--consensus", "1", "--quorum", "12"]
    environment = {**os.environ, "CONVICTION_CACHE": str(cache)}
    ask_once(server.url, cache)
    before = server.generated_tokens()
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["answer"]
    assert verdict["engine"] == f"{server.model} at {server.url}"
    assert verdict["top_k"] == 20
    anyio.run(idle, server)
    generated = server.generated_tokens() - before
    stopped = sum(trace["finish"] not in ("stop", "length") for trace in verdict["traces"])
    counted = verdict["usage"]["generated"]
    low = sum(trace["finish"] == "low_confidence" for trace in verdict["traces"])
    assert (low > 0) == (policy == "deepconf-low")
    # What a server generates between the last token that we read and the close is never sent.
    assert counted <= generated <= counted + stopped * 32


# --- What was found out --------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("route", Route)
async def test_the_probe_sees_what_a_server_does(server: RealServer, route: Route) -> None:
    async with OpenAIEngine(server.url, route=route) as engine:
        capabilities = await engine.capabilities()
        facts = engine.servers[0].facts
    assert facts is not None
    assert (capabilities.model, capabilities.top_k) == (server.model, 20)
    assert capabilities.notes == ()
    assert (facts.raw, facts.incremental, facts.frees) == (True, True, True)
    assert facts.tokens_after_close is not None
    # A busy machine may generate a few dozen more; the rest of what was asked for is 384.
    assert facts.tokens_after_close < 128
    is_vllm = facts.software == "vllm"
    assert facts.vllm_arguments is is_vllm
    assert facts.dialect.counts == ("usage" if is_vllm else "timings")
    assert facts.context == (2048 if is_vllm else capabilities.context)


@pytest.mark.anyio
async def test_limits_of_a_server_are_found_and_told(strict_server: RealServer) -> None:
    async with OpenAIEngine(strict_server.url, api_key=KEY) as engine:
        capabilities = await engine.capabilities()
        facts = engine.servers[0].facts
        assert facts is not None
        assert (facts.top_k, facts.raw) == (5, False)
        verdict = await think(engine, Majority(budget=2), sampling=Sampling(max_tokens=20))
    assert verdict.top_k == 5
    assert "asked for 20" in capabilities.top_k_reason
    assert any("k = 5" in warning for warning in verdict.warnings)
    assert any("change with the temperature" in warning for warning in verdict.warnings)


@pytest.mark.anyio
@pytest.mark.parametrize("key", [None, "sk-a-wrong-one"])
async def test_a_missing_or_wrong_key_is_refused(
    strict_server: RealServer, key: str | None
) -> None:
    async with OpenAIEngine(strict_server.url, api_key=key) as engine:
        with pytest.raises(EngineUnavailableError, match="401") as caught:
            await engine.capabilities()
    assert KEY not in str(caught.value)
    assert "key" in caught.value.remedy


@pytest.mark.anyio
async def test_a_wrong_model_name_is_an_error_with_a_remedy(tiny_vllm_server: RealServer) -> None:
    async with OpenAIEngine(tiny_vllm_server.url, model="none-such") as engine:
        with pytest.raises(EngineUnavailableError, match="none-such") as caught:
            await engine.capabilities()
    assert "model's name" in caught.value.remedy


# --- Streams --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("route", Route)
async def test_tokens_and_confidences_of_whole_traces_agree_with_the_server(
    server: RealServer, route: Route
) -> None:
    async with OpenAIEngine(server.url, route=route) as engine:
        await engine.capabilities()
        await idle(server)
        before = server.generated_tokens()
        verdict = await think(engine, Majority(budget=4), sampling=Sampling(max_tokens=48))
    await idle(server)
    assert server.generated_tokens() - before == verdict.usage.generated
    for trace in verdict.traces:
        assert trace.finish in (FinishReason.STOP, FinishReason.LENGTH)
        assert trace.prompt_tokens > 0
        # Of a character's pieces only the last is told with log-probabilities.
        assert (trace.confidences > 0).mean() > 0.9


@pytest.mark.anyio
async def test_the_same_seed_reproduces_a_trace(server: RealServer) -> None:
    asked = TraceRequest(
        (Message("user", "Name an animal."),), Sampling(max_tokens=24), seed=7, top_k=5
    )
    async with OpenAIEngine(server.url) as engine:
        await engine.capabilities()
        texts = ["".join([chunk.text async for chunk in engine.stream(asked)]) for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.anyio
@pytest.mark.parametrize("route", Route)
async def test_a_trace_goes_on_from_a_given_beginning(server: RealServer, route: Route) -> None:
    counting = "Count from one to twenty in words.\n"
    asked = TraceRequest(
        (Message("user", counting),), Sampling(temperature=0, max_tokens=32), top_k=5
    )
    async with OpenAIEngine(server.url, route=route) as engine:
        assert (await engine.capabilities()).continues
        whole = [chunk async for chunk in engine.stream(asked)]
        text = "".join(chunk.text for chunk in whole)
        prefix = " ".join(text.split(" ")[:6])
        rest = [chunk async for chunk in engine.stream(replace(asked, prefix=prefix))]
    # Rounding may part the two after a while, but not at once.
    continued = prefix + "".join(chunk.text for chunk in rest)
    assert continued[: len(prefix) + 8] == text[: len(prefix) + 8]
    kept = rest[-1].prompt_tokens - whole[-1].prompt_tokens
    assert 0 < kept < 32
    assert sum(chunk.confidences.size for chunk in rest) <= 32


@dataclass
class StopAll(Policy):
    """Traces that all stop at the same token, whatever their confidence."""

    name = "stop-all"
    needs_confidence = True
    budget: int
    after: int = 16

    def begin(self, conditions: Conditions) -> list[Action]:
        del conditions
        return [conviction.Start(self.budget, Gate(window=self.after, threshold=1e9))]

    def on_finished(self, trace: Trace) -> list[Action]:
        del trace
        return []

    def standing(self) -> Standing:
        return Standing(conviction.Tally())


@pytest.mark.anyio
async def test_stopping_a_trace_frees_the_server(server: RealServer) -> None:
    async with OpenAIEngine(server.url) as engine:
        await engine.capabilities()
        await idle(server)
        before = server.generated_tokens()
        verdict = await think(engine, StopAll(8), sampling=Sampling(max_tokens=1500))
        await idle(server)
    generated = server.generated_tokens() - before
    assert {trace.finish for trace in verdict.traces} == {FinishReason.LOW_CONFIDENCE}
    after = (generated - verdict.usage.generated) / 8
    rate = verdict.usage.generated / verdict.seconds / min(8, 4)
    assert after <= max(HALF_A_SECOND * rate, 2)
    assert generated < 8 * 100


# --- Several servers ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_run_survives_the_death_of_one_of_two_servers() -> None:
    with real_servers.llama_server() as first, real_servers.llama_server() as second:
        finished: set[int] = set()
        growing: dict[int, int] = {}

        def kill_the_first(event: Event) -> None:
            # Three traces fit the second server: of four in mid-stream, the first has one.
            if isinstance(event, TraceAdvanced):
                growing[event.trace] = growing.get(event.trace, 0) + event.chunk.confidences.size
            if isinstance(event, TraceFinished):
                finished.add(event.trace.id)
                growing.pop(event.trace.id, None)
            streaming = [trace for trace, tokens in growing.items() if 0 < tokens < 20]
            if len(finished) >= 2 and len(streaming) >= 4:
                first.kill()

        async with OpenAIEngine([first.url, second.url], concurrency=3) as engine:
            capabilities = await engine.capabilities()
            assert capabilities.concurrency == 6
            await idle(second)
            before = second.generated_tokens()
            verdict = await think(
                engine,
                Majority(budget=12),
                sampling=Sampling(max_tokens=40),
                on_event=kill_the_first,
            )
        await idle(second)
        generated_on_second = second.generated_tokens() - before
    assert len(verdict.traces) == 12
    assert all(trace.complete for trace in verdict.traces)
    lost = sum(trace.lost_tokens for trace in verdict.traces)
    assert any(trace.restarts for trace in verdict.traces)
    assert verdict.usage.failed == lost > 0
    assert verdict.usage.generated == sum(trace.tokens for trace in verdict.traces) + lost
    # Those that the first server completed, and what it lost, are not among the second's.
    assert generated_on_second < verdict.usage.generated
    assert any("begun again" in warning for warning in verdict.warnings)


def test_the_program_for_servers_in_the_readme_runs(llama_server: RealServer) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (program,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        if "OpenAIEngine" in block
    ]
    addresses = re.findall(r"http://[\d.:]+/v1", program)
    assert len(addresses) == 2
    for address in addresses:
        program = program.replace(address, llama_server.url)
    program = program.replace("MODEL", llama_server.model).replace("budget=32", "budget=4")
    program += "print(verdict.engine, verdict.usage.generated)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"\S+ at {llama_server.url} \d+\n", done.stdout)
