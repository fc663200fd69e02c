"""Fixtures shared by all tests."""

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
import real_servers
import vllm_environment
import vllm_models
from hypothesis import settings
from real_servers import RealServer

# Run where torch and vLLM are, by test_gate_inside_vllm.py.
collect_ignore = ["inside_vllm"]

_SHARING_SERVERS = {
    "test_openai_servers.py",
    "test_real_servers.py",
    "test_server_hanging_up.py",
    "test_vllm_real.py",
}
_APART = {"test_gate_inside_vllm.py", "test_record_gpu.py"}
"""Files whose tests have nothing in common, and take long."""

# What tests think is not for the user's own history.
_DATA = tempfile.TemporaryDirectory(prefix="conviction-tests-")
os.environ["XDG_DATA_HOME"] = _DATA.name

# The machine may be busy: how long an example takes says nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        action="store_true",
        help="also run tests on real servers (vLLM, llama.cpp) and inspect_ai (3.4 GB, minutes)",
    )
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a test that skips fails, unless it only runs with --servers",
    )
    parser.addoption(
        "--attack-long",
        action="store_true",
        help="let the campaigns of tests/attack run at full length (minutes)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tests start hundreds of programs: none may have to compile what it imports again.
    if sys.dont_write_bytecode and (cache := getattr(config, "cache", None)):
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(cache.mkdir("compiled"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m servers`, files without such tests are not even imported."""
    if config.option.markexpr != "servers" or not collection_path.match("tests/test_*.py"):
        return None
    return "mark.servers" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--servers")
    for item in items:
        if config.getoption("--attack-long") and item.path.parent.name == "attack":
            item.add_marker(pytest.mark.timeout(3600))
        if item.get_closest_marker("servers") is None:
            continue
        if not wanted:
            item.add_marker(
                pytest.mark.skip(
                    "needs real servers or inspect_ai (3.4 GB, minutes): run pytest --servers"
                )
            )
        # The clock of a test starts when its servers run; making them has bounds of its own.
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)
    # Real models use all cores. Together at the beginning, they come to the same worker and so
    # run one after another; the other worker takes over what comes behind them.
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("servers") is not None
    if report.skipped and not expected and item.config.getoption("--no-skips"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """On several workers, the files that share a server go to the one worker that has it."""
    if not config.getoption("--servers"):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).name
            if file in _SHARING_SERVERS:
                return "servers"
            return nodeid if file in _APART else file

    return ByServer(config, log)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def llama_server(request: pytest.FixtureRequest) -> Generator[RealServer]:
    """llama.cpp's server with the small real model."""
    yield from _running(real_servers.llama_server(), request)


@pytest.fixture(scope="session")
def vllm_server(request: pytest.FixtureRequest) -> Generator[RealServer]:
    """vLLM with the small real model."""
    _need_vllm()
    yield from _running(real_servers.vllm_server(), request)


@pytest.fixture(scope="session")
def tiny_vllm_server(request: pytest.FixtureRequest) -> Generator[RealServer]:
    """vLLM with a tiny random model: ten times faster, and writes nonsense."""
    _need_vllm()
    yield from _running(real_servers.vllm_server(vllm_models.TINY), request)


@pytest.fixture(scope="session")
def ray_cluster() -> Generator[Any]:
    """A Ray cluster of two nodes, to which this process is connected."""
    # Ray is not for every system, and takes seconds to import.
    from ray_cluster import two_nodes

    from conviction.ray.cluster import connected

    with two_nodes() as cluster, connected(cluster.address):
        yield cluster


def _need_vllm() -> None:
    if reason := vllm_environment.unavailable_because():
        pytest.skip(reason)


def _running(
    server: AbstractContextManager[RealServer], request: pytest.FixtureRequest
) -> Generator[RealServer]:
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        # What takes minutes tells people how far it is.
        with capture.global_and_fixture_disabled():
            running = stack.enter_context(server)
        yield running
