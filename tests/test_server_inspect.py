"""inspect_ai runs an evaluation through the server, as through any other of OpenAI's protocol."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from inspect_environment import inspect_python
from server_app import MODEL, served_in_thread

from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine

RUNNER = Path(__file__).parent / "support" / "run_inspect.py"


@pytest.fixture(scope="module")
def python() -> Path:
    return inspect_python()


def adding(request: TraceRequest) -> Script:
    """Every fourth trace is wrong, the first one too: a single one would be, a vote is not."""
    found = re.search(r"What is (\d+) \+ (\d+)\?", request.messages[-1].content)
    assert found
    total = int(found[1]) + int(found[2]) + (request.trace % 4 == 0)
    return Script.even(f"Let me add.\n\nAnswer: {total}")


@pytest.mark.servers
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("policy", "accuracy"), [("majority", 1.0), ("single", 0.0)])
def test_twenty_questions_of_inspect_are_answered_by_vote(
    python: Path, tmp_path: Path, policy: str, accuracy: float
) -> None:
    engine = ScriptedEngine(adding)
    with served_in_thread(engine, defaults={"policy": policy}) as url:
        result = subprocess.run(
            [python, RUNNER, f"{url}/v1", MODEL, tmp_path],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["status"], told["samples"], told["error"]) == ("success", 20, None)
    assert told["accuracy"] == accuracy
    assert told["output_tokens"] == sum(engine.generated)
