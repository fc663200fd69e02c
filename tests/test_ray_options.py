"""What --ray and its options refuse before a cluster is touched, and what they make of the rest."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conviction.backends.openai import OpenAIServers
from conviction.cli.clusters import RayOptions
from conviction.cli.main import run
from conviction.core import Sampling
from conviction.engines.openai import OpenAIEngine
from conviction.errors import EngineError, EngineStartError, InvalidSettingError
from conviction.ray.cluster import actor_options, check_extra, connected, parse_resources
from conviction.ray.host import portable


def test_nothing_imports_ray_that_does_not_need_it() -> None:
    program = (
        "import sys, conviction, conviction.cli.main, conviction.cli.evaluation\n"
        "import conviction.ray.actor, conviction.backends, conviction.ray.cluster\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("given", ["GPU", "GPU=", "=1", "GPU=x", "GPU=0", "GPU=-1", "GPU=nan"])
def test_resources_that_are_no_name_and_amount_are_refused(given: str) -> None:
    with pytest.raises(InvalidSettingError, match=r"GPU=1 or CPU=4"):
        parse_resources([given])


def test_resources_become_options_of_an_actor() -> None:
    given = parse_resources(["GPU=2", "CPU=0.5", "memory=8e9", "fast=1"])
    assert actor_options(given) == {
        "num_gpus": 2.0,
        "num_cpus": 0.5,
        "memory": 8e9,
        "resources": {"fast": 1.0},
    }
    assert actor_options({}) == {"num_cpus": 0.0, "resources": {}}


def test_options_of_a_cluster_need_one() -> None:
    RayOptions().check()
    RayOptions(ray=[]).check()
    with pytest.raises(InvalidSettingError, match=r"there is no --ray"):
        RayOptions(actors=2).check()
    with pytest.raises(InvalidSettingError, match=r"actors must be at least 1"):
        RayOptions(ray=[], actors=0).check()


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":1"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidSettingError, match=r"HOST:PORT"), connected(address):
        pass


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        reached = connected(address)
        with pytest.raises(EngineStartError, match=rf"reach the Ray cluster {address}"), reached:
            pass


def test_a_total_of_tokens_and_a_cluster_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}), encoding="utf-8")
    arguments = ["eval", str(data), "-o", str(tmp_path / "run"), "--ray", "--total-tokens", "9"]
    assert run(arguments) == 2
    assert "share a total of tokens among questions on many engines" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_backend_travels_and_never_shows_its_key() -> None:
    made = OpenAIServers("m", 3, base_url=("http://127.0.0.1:9/v1",), api_key="sk-secret")
    assert "sk-secret" not in repr(made)
    again = pickle.loads(pickle.dumps(made))  # noqa: S301  # our own bytes
    assert again == made
    assert isinstance(again.build(), OpenAIEngine)


def test_errors_that_do_not_pickle_are_told_in_words() -> None:
    class OddError(Exception):
        pass

    told = portable(OddError("it broke"))
    assert isinstance(told, EngineError)
    assert "OddError: it broke" in str(told)
    plain = ValueError("as it is")
    assert portable(plain) is plain
    with pytest.raises(InvalidSettingError) as refused:
        Sampling(max_tokens=0)
    assert portable(refused.value) is refused.value


@pytest.mark.parametrize("wish", [None, "1"])
def test_use_of_ray_is_not_reported_unless_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, wish: str | None
) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    if wish is not None:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", wish)
    check_extra()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == (wish or "0")
