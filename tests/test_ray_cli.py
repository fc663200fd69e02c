"""`conviction eval` and `conviction record` with --ray, as processes of their own."""

import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
import vllm_environment
from anyio.from_thread import start_blocking_portal
from completion_events import STOP, event, json_answer, position, stream, usage
from kept_runs import lines
from real_servers import RealServer, vllm_variables
from scripted_server import Mark, Received, Step, serving
from tens import data_set
from vllm_models import TINY, model_folder

from conviction.cli.main import run
from conviction.evaluation.stored import read_run
from conviction.recordings import Pool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

QUESTIONS = 8


@dataclass
class Multiplier:
    """A server that knows what N * 10 is.

    Attributes:
        seconds: Time that a trace takes.
        hangs: Questions whose first trace it never ends.
        traces: How many traces it was asked for, by question.
    """

    seconds: float = 0.0
    hangs: set[int] = field(default_factory=set[int])
    traces: Counter[int] = field(default_factory=Counter[int])

    def __call__(self, received: Received) -> list[Step]:
        if received.path.endswith("/models"):
            return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
        if received.path.endswith("/metrics"):
            return [json_answer({}, "404 Not Found")]
        asked = re.search(r"What is (\d+) \* 10", json.dumps(received.body))
        number = int(asked[1]) if asked else -1
        self.traces[number] += 1
        most = received.body.get("top_logprobs") or 0
        places = [position(*[-1.0 - k / 10 for k in range(most)])] * 4
        said = f"So it is.\nAnswer: {number * 10}"
        if not received.body["stream"]:
            choice = {"message": {"content": said}, "logprobs": {"content": places}}
            return [json_answer({"choices": [choice]})]
        if number in self.hangs:
            self.hangs.remove(number)
            return [stream(event("So", places[0]), end=b""), Mark.UNTIL_HANG_UP]
        return [self.seconds, stream(event(said, *places), STOP, usage(9, 4))]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return data_set(tmp_path / "questions.jsonl", QUESTIONS)


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "conviction", *map(str, arguments)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CONVICTION")}
    return {
        **ours,
        "CONVICTION_CACHE": str(cache),
        "CONVICTION_CONFIG": os.devnull,
        **more,
    }


async def conviction(*arguments: object, cache: Path, **more: str) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    with anyio.fail_after(90):
        done = await anyio.run_process(
            program(*arguments),
            env=environment(cache, **more),
            check=False,
            stdin=None,
            cwd=cache,
        )
    return done.returncode, done.stderr.decode()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs a command in this process, which is up already, and connected to the cluster."""
    for name in [name for name in os.environ if name.startswith("CONVICTION")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path))
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    return lambda *arguments: run([str(one) for one in arguments])


def of_readme(begins: str) -> list[str]:
    """A command of the README's "Past one machine", as written, without its first word."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    _, _, section = text.partition("\n## Past one machine\n")
    [line] = [line for line in section.split("\n## ")[0].splitlines() if line.startswith(begins)]
    return shlex.split(line, comments=True)[1:]


def verdicts(folder: Path) -> dict[str, tuple[Any, ...]]:
    return {
        result.id: (result.answer, result.correct, result.share, result.tokens, result.usage)
        for result in read_run(folder).results
    }


def test_eval_in_a_cluster_says_what_eval_says(
    tmp_path: Path, questions: Path, ray_cluster: Any, here: Callable[..., int]
) -> None:
    first, second = Multiplier(), Multiplier()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(first)) as one,
        portal.wrap_async_context_manager(serving(second)) as other,
    ):
        # All else is as the README says it; what it does not say comes from the settings.
        settings = tmp_path / "settings.toml"
        settings.write_text(
            f'[eval]\nbase-url = ["{one.url}", "{other.url}"]\npolicy = "majority"\n'
            f'record = "{tmp_path / "pool"}"\n'
        )
        readme = partial(
            conviction,
            *of_readme("conviction eval"),
            cache=tmp_path,
            CONVICTION_CONFIG=str(settings),
            RAY_ADDRESS=ray_cluster.address,
        )
        code, said = portal.call(readme)
        assert code == 0, said
        # Gone on with, nothing is asked again.
        asked = second.traces.copy()
        arguments = ["eval", questions, "--policy", "majority", "--budget", 4]
        ended = (*arguments, "-o", tmp_path / "runs" / "cluster", "--record", tmp_path / "pool")
        cluster = ("--ray", ray_cluster.address, "--actors", 1)
        assert here(*ended, "--base-url", other.url, *cluster) == 0
        assert all(second.traces[number] == asked[number] for number in range(QUESTIONS))
        assert here(*arguments, "-o", tmp_path / "one", "--base-url", one.url) == 0
    assert verdicts(tmp_path / "one") == verdicts(tmp_path / "runs" / "cluster")
    assert len(verdicts(tmp_path / "one")) == QUESTIONS
    assert sum(one.traces for one in Pool.open(tmp_path / "pool").questions) == 4 * QUESTIONS
    # All traces of a question went to one server.
    for number in range(QUESTIONS):
        assert sorted((first.traces[number] - 4, second.traces[number])) == [0, 4]


async def test_a_driver_that_is_killed_goes_on_and_asks_nothing_twice(
    tmp_path: Path, questions: Path, ray_cluster: Any
) -> None:
    folder = tmp_path / "run"
    server = Multiplier(seconds=0.5)

    def finished() -> Sequence[str]:
        return [line["id"] for line in lines(folder)]

    async with serving(server) as scripted:
        arguments = [
            *("eval", questions, "-o", folder, "--policy", "majority", "--budget", 2),
            *("--questions-at-once", 2, "--base-url", scripted.url),
            *("--ray", ray_cluster.address, "--actors", 1),
        ]
        process = await anyio.open_process(
            program(*arguments), env=environment(tmp_path), stdin=None, stdout=None, stderr=None
        )
        with anyio.fail_after(40):
            while len(finished()) < 3:  # noqa: ASYNC110  # another process writes there
                await anyio.sleep(0.02)
        process.kill()
        await process.wait()
        before = finished()
        # What its actors were at ends with them.
        with anyio.fail_after(20):
            while scripted.open:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert 3 <= len(before) < QUESTIONS
        asked = server.traces.copy()
        code, said = await conviction(*arguments, cache=tmp_path)
        assert code == 0, said
        again = {number for number in server.traces - asked if number >= 0}
    after = finished()
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == QUESTIONS
    # A question's id is the number of its row, from 1.
    assert again == {int(name) - 1 for name in after[len(before) :]}


@pytest.mark.usefixtures("questions")
async def test_a_server_that_falls_silent_costs_a_trace_and_no_more(
    tmp_path: Path, ray_cluster: Any
) -> None:
    server = Multiplier(hangs={2, 5})
    async with serving(server) as scripted:
        settings = tmp_path / "settings.toml"
        settings.write_text(
            f'[record]\nbase-url = ["{scripted.url}"]\nstall-timeout = 1\nactors = 2\n'
        )
        code, said = await conviction(
            *of_readme("conviction record"),
            cache=tmp_path,
            CONVICTION_CONFIG=str(settings),
            RAY_ADDRESS=ray_cluster.address,
        )
    assert code == 0, said
    pool = Pool.open(tmp_path / "cluster-pool")
    assert [question.traces for question in pool.questions] == [4] * QUESTIONS
    lost = sum(int(pool.traces(one.id).lost_tokens.sum()) for one in pool.questions)
    assert lost == 2


def test_too_little_room_is_said_before_anything_is_asked(
    tmp_path: Path,
    questions: Path,
    ray_cluster: Any,
    here: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = here(
        *("eval", questions, "-o", tmp_path / "run"),
        *("--base-url", "http://127.0.0.1:9/v1"),  # where nobody listens
        *("--ray", ray_cluster.address, "--engine-resources", "GPU=4"),
        *("--placement-timeout", 1),
    )
    assert code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "find room for 1 actor with GPU 4 each" in said
    assert "the cluster has room for none: 2 nodes with CPU 16" in said


def test_vllm_behind_an_actor_makes_a_pool(
    tmp_path: Path,
    questions: Path,
    tiny_vllm_server: RealServer,
    ray_cluster: Any,
    here: Callable[..., int],
) -> None:
    code = here(
        *("record", questions, "-n", 2, "-o", tmp_path / "pool", "--max-tokens", 12),
        *("--limit", 4, "--base-url", tiny_vllm_server.url),
        *("--ray", ray_cluster.address, "--actors", 1),
    )
    assert code == 0
    pool = Pool.open(tmp_path / "pool")
    assert pool.model == tiny_vllm_server.model
    assert [question.traces for question in pool.questions] == [2] * 4
    assert pool.top_k == 20


@pytest.mark.timeout(300)
async def test_vllm_inside_an_actor_makes_a_pool(tmp_path: Path, questions: Path) -> None:
    if reason := vllm_environment.unavailable_because():
        pytest.skip(reason)
    # Actors have the Python of whoever starts them, so this is a cluster of vLLM's environment.
    settings = [
        *("dtype=float32", "enforce_eager=true", "max_model_len=1024", "max_num_seqs=8"),
        "distributed_executor_backend=uni",
    ]
    options = [part for setting in settings for part in ("--vllm", setting)]
    # Ray makes sockets there, whose paths must be short.
    with TemporaryDirectory(prefix="ray-") as folder, anyio.fail_after(240):
        done = await anyio.run_process(
            [
                *(str(vllm_environment.vllm_python()), "-m", "conviction"),
                *("record", str(questions), "-n", "2", "-o", str(tmp_path / "pool")),
                *("-m", f"vllm:{model_folder(TINY)}", *options, "--max-tokens", "12"),
                *("--limit", "3", "--answer", "number", "--ray", "local"),
            ],
            env={
                **vllm_variables(tmp_path),
                "RAY_AUTH_MODE": "disabled",
                "RAY_TMPDIR": folder,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",
            },
            check=False,
            stdin=None,
        )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    pool = Pool.open(tmp_path / "pool")
    assert [question.traces for question in pool.questions] == [2] * 3
    assert pool.top_k == 20
