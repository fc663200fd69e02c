"""Recording on a GPU, shown on the CPU: batches say what the model says, and pools are as usual.

The script runs in the environment of the vLLM test servers, which has torch, transformers and gguf;
what conviction needs beside them comes from this one.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from vllm_environment import unavailable_because, vllm_python
from vllm_models import REAL

import conviction
from conviction.cli.main import run
from conviction.errors import InvalidSettingError, RecordingError
from conviction.models import resolve
from conviction.recordings import Pool

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "record_gpu"
SOURCE = Path(conviction.__file__).parents[1]
# At the end of the path, so that its own numpy and the like come first.
WITH_OUR_PACKAGES = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); sys.path[0] = sys.argv.pop(1); "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
QUESTIONS = (
    ("What is 6 times 7?", "42"),
    ("Tom has 3 apples and buys 4 more. How many apples does he have?", "7"),
    (
        "A train has 5 wagons of 20 seats. 37 are taken at the first stop. How many stay free?",
        "63",
    ),
)

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None and unavailable_because() is not None,
    reason=f"no torch here; {unavailable_because()}",
)


def python() -> Path:
    """A python with torch: this one if it has it."""
    return Path(sys.executable) if find_spec("torch") else vllm_python()


def command(script: Path, *arguments: object) -> list[str]:
    words = [script, *arguments]
    packages = sysconfig.get_paths()["purelib"]
    return [str(word) for word in (python(), "-c", WITH_OUR_PACKAGES, packages, PROGRAM, *words)]


def environment() -> dict[str, str]:
    # More threads collapse where cores are shared.
    return os.environ | {
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def child(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@cache
def model() -> Path:
    return resolve(REAL).path


def record_arguments(data: Path, pool: Path, *more: object) -> Sequence[object]:
    usual = ("--answer", "number", "--device", "cpu", "--dtype", "float32", "--batch", 4)
    return (data, "--model", model(), "-o", pool, *usual, *more)


def recorded(data: Path, pool: Path, *more: object) -> None:
    done = child(PROGRAM, *record_arguments(data, pool, *more))
    assert done.returncode == 0, done.stderr


def rows(pool: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """All rows of a pool by question and number."""
    opened = Pool.open(pool)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for question in opened.questions:
        traces = opened.traces(question.id)
        texts, confidences = opened.texts(question.id), traces.require_confidences()
        for place, number in enumerate(traces.ids.tolist()):
            answer = traces.answers[place]
            found[question.id, number] = {
                "prompt_hash": question.prompt_hash,
                "seed": int(traces.seeds[place]),
                "prompt_tokens": int(traces.prompt_tokens[place]),
                "tokens": int(traces.tokens[place]),
                "finish": traces.finish[place],
                "answer": answer and answer.text,
                "correct": bool(traces.correct[place]),
                "confidences": confidences[place],
                "text": texts[place],
            }
    return found


def begun(pool: Path) -> bool:
    """Whether any trace is recorded."""
    try:
        return bool(Pool.open(pool).questions)
    except (InvalidSettingError, RecordingError):
        return False


def eventually(holds: Callable[[], bool], seconds: float = 300.0) -> bool:
    until = monotonic() + seconds
    while monotonic() < until:
        if holds():
            return True
        sleep(0.2)
    return False


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [json.dumps({"question": text, "answer": gold}) for text, gold in QUESTIONS]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.servers
@pytest.mark.timeout(700)
@needs_torch
def test_batches_say_what_the_model_says(data: Path) -> None:
    options = ("--device", "cpu", "--questions", 3, "--tokens", 48)
    done = child(PROGRAM / "check.py", data, "--model", model(), *options)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Prompts of different lengths, side by side and alone.
    assert found["greedy_same"] == 1.0
    # Rows that ended were dropped, and it made no difference to the others.
    assert found["rows_dropped"] > 0
    assert found["dropping_same"] == 1.0
    assert found["batching_same"] == 1.0
    # Against one plain forward pass over each whole text.
    assert found["tokens"] > 60
    assert found["confidence_error"] < 2e-3
    assert found["logprob_error"] < 2e-3


@pytest.mark.servers
@pytest.mark.timeout(900)
@needs_torch
def test_a_pool_is_that_of_the_embedded_engine_but_for_rounding(data: Path, tmp_path: Path) -> None:
    ours, usual = tmp_path / "ours", tmp_path / "usual"
    options = ("-n", 1, "--temperature", 0, "--max-tokens", 40)

    recorded(data, ours, *options)
    arguments = ("record", data, "-m", REAL, "-o", usual, "--answer", "number", "-q", *options)
    assert run([str(word) for word in arguments]) == 0

    here, there = rows(ours), rows(usual)
    assert Pool.open(ours).meta.differences(Pool.open(usual).meta) == ""
    same = ("prompt_hash", "seed", "prompt_tokens")
    assert [[here[key][name] for name in same] for key in sorted(here)] == [
        [there[key][name] for name in same] for key in sorted(there)
    ]
    # llama.cpp rounds what it multiplies with quantised weights, so greedy traces part somewhere;
    # until then, and surely at the first token, they differ by little more than that.
    for key, row in here.items():
        assert row["confidences"][0] == pytest.approx(there[key]["confidences"][0], rel=0.03)
    means = [
        np.nanmean(np.concatenate([row["confidences"] for row in found.values()]))
        for found in (here, there)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.1)


@pytest.mark.servers
@pytest.mark.timeout(900)
@needs_torch
def test_a_killed_recording_goes_on_and_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    options = ("-n", 4, "--max-tokens", 20)
    running = subprocess.Popen(
        command(PROGRAM, *record_arguments(data, broken, *options)),
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: begun(broken))
    finally:
        running.kill()
        running.wait()
    before = rows(broken)

    recorded(data, broken, *options)
    recorded(data, whole, *options, "--batch", 12)

    after, expected = rows(broken), rows(whole)
    assert 0 < len(before) < 12
    assert len(after) == 12
    assert {key: after[key]["text"] for key in before} == {
        key: row["text"] for key, row in before.items()
    }
    # A trace draws from its own seed, so neither the break nor the batch changes it.
    for name in ("seed", "text", "tokens", "finish", "answer", "correct"):
        assert {key: row[name] for key, row in after.items()} == {
            key: row[name] for key, row in expected.items()
        }


@pytest.mark.servers
@pytest.mark.timeout(300)
@needs_torch
def test_tokens_are_drawn_by_their_probability_within_the_nucleus(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys, torch\n"
        "from drawing import draw\n"
        "from conviction.core import Sampling\n"
        "logits = torch.tensor(json.loads(sys.argv[1])).repeat(10_000, 1)\n"
        "evenly = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000\n"
        "for sampling in (Sampling(0.5), Sampling(0.5, top_p=0.9), Sampling(0.0)):\n"
        "    counts = draw(logits, evenly, sampling).bincount(minlength=logits.shape[1])\n"
        "    print(json.dumps((counts / 10_000).tolist()))\n",
        encoding="utf-8",
    )
    logits = np.array([0.0, 2.0, -1.0, 1.6, 0.9])

    done = child(program, json.dumps(logits.tolist()))

    assert done.returncode == 0, done.stderr
    all_of_them, nucleus, greedy = map(json.loads, done.stdout.splitlines())
    probabilities = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
    assert all_of_them == pytest.approx(probabilities, abs=2e-4)
    # .63 + .28 cross .9, so the others are out.
    kept = np.where(probabilities > 0.2, probabilities, 0)
    assert nucleus == pytest.approx(kept / kept.sum(), abs=2e-4)
    assert greedy == [0, 1, 0, 0, 0]


@pytest.mark.servers
@pytest.mark.timeout(300)
@needs_torch
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param(("--model", "{data}"), "GGUF", id="a file that is no model"),
        pytest.param(("--device", "abacus"), "Name a device", id="a device that is none"),
        pytest.param(("--batch", "0"), "batch", id="no trace at once"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    changed: tuple[str, str], said: str, data: Path, tmp_path: Path
) -> None:
    option, value = changed
    pool = tmp_path / "pool"

    done = child(PROGRAM, *record_arguments(data, pool), option, value.format(data=data))

    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not pool.exists()


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is here")
def test_without_torch_it_says_what_to_install(data: Path, tmp_path: Path) -> None:
    words = [sys.executable, PROGRAM, data, "--model", "any.gguf", "-o", tmp_path / "pool"]

    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "pip install torch transformers gguf" in done.stderr
