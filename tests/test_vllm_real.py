"""Real vLLM on the CPU, with the gate inside: in process, and as a server."""

import json
import math
import os
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import openai
import pytest
import vllm_environment
from real_servers import RealServer, vllm_variables
from vllm_models import TINY, model_folder

from conviction.core import FinishReason, Message, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.openai import OpenAIEngine, Route
from conviction.gate import Gate
from conviction_gate.names import STOP_TOKEN, THRESHOLD, WINDOW

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

_PROGRAM = Path(__file__).parent / "support" / "run_vllm_engine.py"


# --- In process -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine did in one run, in the environment of vLLM."""
    if reason := vllm_environment.unavailable_because():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("vllm")
    output = folder / "seen.json"
    command = [vllm_environment.vllm_python(), _PROGRAM, model_folder(TINY), output]
    done = subprocess.run(
        command,
        env=vllm_variables(folder),
        capture_output=True,
        text=True,
        timeout=600,  # a busy machine takes minutes over three imports of vLLM
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Standard output belongs to whoever started vLLM in their program.
    return json.loads(output.read_text(encoding="utf-8"))


def test_vllm_is_found_to_gate_and_to_honour_seeds(seen: dict[str, Any]) -> None:
    assert seen["gates"]
    assert seen["seeds"]
    assert (seen["context"], seen["concurrency"], seen["top_k"]) == (2048, 32, 1000)
    assert seen["health"]


def test_confidences_of_the_channel_are_those_of_log_probabilities(seen: dict[str, Any]) -> None:
    channel, logprobs = seen["ways"]["channel"], seen["ways"]["logprobs"]
    assert len(channel["confidences"]) == len(logprobs["confidences"]) == 64
    assert channel["confidences"] == pytest.approx(logprobs["confidences"], abs=1e-4)
    assert channel["logprobs"] == pytest.approx(logprobs["logprobs"], abs=1e-4)
    assert max(channel["logprobs"]) <= 0


def test_the_same_seed_gives_the_same_trace_in_process(seen: dict[str, Any]) -> None:
    assert seen["ways"]["channel"]["text"] == seen["ways"]["logprobs"]["text"]
    assert seen["other_seed"]["text"] != seen["ways"]["channel"]["text"]


def test_a_gate_stops_a_trace_in_process_at_the_token_that_decides(seen: dict[str, Any]) -> None:
    stopped, whole = seen["stopped"], seen["ways"]["channel"]
    assert stopped["finish"] == FinishReason.LOW_CONFIDENCE
    assert len(stopped["confidences"]) == stopped["position"] < 64
    begun = whole["confidences"][: stopped["position"]]
    assert stopped["confidences"] == pytest.approx(begun, abs=1e-4)
    # The reserved token stands in the place of one that never came, and leaves no text.
    assert whole["text"].startswith(stopped["text"])
    assert 0 < len(stopped["text"]) < len(whole["text"])


def test_a_policys_traces_are_stopped_inside(seen: dict[str, Any]) -> None:
    run = seen["policy"]
    low = [n for n, finish in enumerate(run["finishes"]) if finish == FinishReason.LOW_CONFIDENCE]
    assert len(low) == run["inside"] > 0
    assert [run["tokens"][n] for n in low] == [run["positions"][n] for n in low]
    assert run["unknown"] == 0


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_who_leaves_frees_vllm_at_once(seen: dict[str, Any], how: str) -> None:
    counts = seen[how]
    assert 20 < counts["read"] <= counts["at_once"] < 200
    assert counts["later"] - counts["at_once"] <= 3  # The step that was being computed.
    assert counts["at_last"] == counts["later"]


def test_prompts_are_shared_and_counted(seen: dict[str, Any]) -> None:
    first, second = seen["first"], seen["second"]
    assert first["prompt_tokens"] == second["prompt_tokens"] > 200
    assert first["cached_tokens"] < second["cached_tokens"] < second["prompt_tokens"]


def test_a_beginning_adds_only_its_own_tokens(seen: dict[str, Any]) -> None:
    assert seen["begun"]["prompt_tokens"] - seen["ways"]["channel"]["prompt_tokens"] == 3


def test_what_does_not_fit_is_refused(seen: dict[str, Any]) -> None:
    assert seen["overflow"] == "ContextOverflowError"


def test_no_channel_is_left(seen: dict[str, Any]) -> None:
    assert seen["left"] == []


# --- Served ---------------------------------------------------------------------------------------


def trace(text: str = "Why is the sky blue?", **more: Any) -> TraceRequest:
    sampling = Sampling(temperature=1.0, max_tokens=40)
    return replace(
        TraceRequest((Message("user", text),), sampling, seed=3, top_k=20),
        **more,
    )


def confidences(chunks: list[Chunk]) -> list[float]:
    return np.concatenate([chunk.confidences for chunk in chunks]).tolist()


@pytest.mark.parametrize("route", Route)
def test_a_server_stops_a_trace_and_its_confidences_come_without_log_probabilities(
    tiny_vllm_server: RealServer, route: Route
) -> None:
    async def run() -> tuple[list[Chunk], list[Chunk], list[Chunk], Gate]:
        async def collect(request: TraceRequest) -> list[Chunk]:
            async with aclosing(engine.stream(request)) as chunks:
                return [chunk async for chunk in chunks]

        async with OpenAIEngine(tiny_vllm_server.url, route=route) as engine:
            can = await engine.capabilities()
            facts = engine.servers[0].facts
            assert facts is not None
            assert (facts.gate, facts.channel, can.gates) == (True, True, True)
            whole = await collect(trace())
            by_logprobs = await collect(trace(logprobs=True))
            known = confidences(whole)
            groups = np.convolve(np.array(known), np.ones(6) / 6, "valid")
            gate = Gate(6, float(np.median(groups)))
            return whole, by_logprobs, await collect(trace(gate=gate)), gate

    whole, by_logprobs, stopped, gate = anyio.run(run)
    # In chats, vLLM lets a token that was drawn push out the last of the 20: the channel is truer.
    tolerance = 1e-4 if route is Route.COMPLETIONS else 2e-2
    assert confidences(whole) == pytest.approx(confidences(by_logprobs), abs=tolerance)
    assert not any(math.isnan(value) for value in confidences(whole))
    position = gate.stop_position(np.array(confidences(whole), np.float32))
    assert stopped[-1].finish is FinishReason.LOW_CONFIDENCE
    assert len(confidences(stopped)) == position
    text = "".join(chunk.text for chunk in stopped)
    assert "".join(chunk.text for chunk in whole).startswith(text)


def test_any_client_can_turn_the_gate_on_as_the_docs_say(tiny_vllm_server: RealServer) -> None:
    client = openai.OpenAI(
        base_url=tiny_vllm_server.url, api_key="none", http_client=openai.DefaultHttpxClient()
    )
    arguments: dict[str, float] = {WINDOW: 4, THRESHOLD: 1e6}
    with client, pytest.raises(openai.BadRequestError, match=rf"{STOP_TOKEN}=\d+") as refused:
        client.chat.completions.create(
            model=tiny_vllm_server.model,
            messages=[{"role": "user", "content": "Why?"}],
            max_tokens=20,
            extra_body={"vllm_xargs": arguments},
        )
    token = int(str(refused.value).split(f"{STOP_TOKEN}=")[1].split(",")[0])
    body = {
        "model": tiny_vllm_server.model,
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 20,
        "vllm_xargs": {**arguments, STOP_TOKEN: token},
        "stop_token_ids": [token],
    }
    url = f"{tiny_vllm_server.url}/chat/completions"
    answer = httpx2.post(url, json=body, trust_env=False, timeout=30.0).json()
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)
    assert answer["usage"]["completion_tokens"] == 4


def test_the_command_line_thinks_with_a_gate_inside_the_server(
    vllm_server: RealServer, tmp_path: Path
) -> None:
    arguments = ["--policy", "deepconf-low", "--budget", "10", "--warmup", "4", "--window", "8"]
    limits = ["--max-tokens", "60", "--answer", "text", "--temperature", "1.0", "--json"]
    command = [sys.executable, "-m", "conviction", "think", "Name one animal, and say why."]
    done = subprocess.run(
        [*command, "--base-url", vllm_server.url, *arguments, *limits],
        env=os.environ | {"CONVICTION_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdict = json.loads(done.stdout)
    assert verdict["top_k"] == 20
    stopped = [one for one in verdict["traces"] if one["finish"] == FinishReason.LOW_CONFIDENCE]
    assert stopped
    assert not any("channel" in warning for warning in verdict["warnings"])
