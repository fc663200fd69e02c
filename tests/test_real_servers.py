"""The real servers that other tests use: they answer, can be measured, and leave nothing behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import real_servers
from real_servers import RealServer
from server_process import is_running
from vllm_environment import unavailable_because

pytestmark = pytest.mark.servers

WITHOUT = unavailable_because() or ""
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(params=["llama_server", "vllm_server", "tiny_vllm_server"])
def server(request: pytest.FixtureRequest) -> RealServer:
    return request.getfixturevalue(request.param)


def events(server: RealServer, path: str, **body: Any) -> list[dict[str, Any]]:
    """What a streamed request brings, until the server says that it is done."""
    fixed = {
        "model": server.model,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": 8,
    }
    with (
        httpx2.Client(trust_env=False, timeout=60.0) as client,
        client.stream("POST", f"{server.url}/{path}", json=fixed | body) as answer,
    ):
        answer.raise_for_status()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_chat_streams_twenty_log_probabilities_a_token(server: RealServer) -> None:
    stream = events(server, "chat/completions", messages=QUESTION, logprobs=True, top_logprobs=20)

    choices = [choice for event in stream for choice in event["choices"]]
    tokens = [
        token for choice in choices for token in (choice.get("logprobs") or {}).get("content", [])
    ]
    assert [len(token["top_logprobs"]) for token in tokens] == [20] * 8


def test_a_completion_streams_log_probabilities(server: RealServer) -> None:
    stream = events(server, "completions", prompt="The sky is", logprobs=5)

    choices = [choice for event in stream for choice in event["choices"]]
    assert sum(_tokens_of(choice.get("logprobs") or {}) for choice in choices) == 8


def test_its_counters_tell_what_it_generated(server: RealServer) -> None:
    before = server.generated_tokens()

    events(server, "completions", prompt="Once upon a time", max_tokens=20)

    assert eventually(lambda: server.running() == 0)
    assert eventually(lambda: server.generated_tokens() == before + 20)


def test_nothing_is_left_of_a_server_that_was_stopped() -> None:
    with real_servers.llama_server(slots=1) as server:
        assert is_running(server.pid)

    assert not is_running(server.pid)


def test_nothing_is_left_of_a_server_that_was_killed() -> None:
    with real_servers.llama_server(slots=1) as server:
        server.kill()

        with pytest.raises(httpx2.TransportError):
            server.metrics()
        assert not is_running(server.pid)


@pytest.mark.parametrize(
    "start",
    [
        "llama_server()",
        pytest.param(
            "vllm_server('tiny')", marks=pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)
        ),
    ],
)
def test_a_server_ends_with_the_run_that_started_it(
    start: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = (
        "import os, signal\n"
        "from real_servers import *\n"
        f"with {start} as server:\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    places = {
        "PYTHONPATH": str(Path(real_servers.__file__).parent),
        "TMPDIR": str(tmp_path_factory.mktemp("t")),
    }

    killed = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | places,
        stdout=subprocess.PIPE,
        timeout=100,
        check=False,
    )

    assert eventually(lambda: not is_running(int(killed.stdout)))


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return fulfilled


def _tokens_of(logprobs: dict[str, Any]) -> int:
    """Log-probabilities of a plain completion: llama.cpp gives them in the form of a chat."""
    return len(logprobs.get("tokens") or logprobs.get("content") or [])
