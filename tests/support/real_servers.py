"""Real OpenAI-compatible servers on loopback, for tests and benchmarks: llama.cpp's and vLLM's.

    with llama_server() as server:
        httpx2.post(f"{server.url}/chat/completions", json={"model": server.model, ...})

What they need is made and kept on first use; they are gone after the block, and also when the
process that started them is killed.
"""

import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from plugin_path import package_path
from server_process import ServerProcess, free_port, served
from vllm_environment import vllm_python
from vllm_models import REAL, model_folder

from conviction.models import resolve

_HERE = Path(__file__).parent

_VLLM_OPTIONS = (
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"),
    *("--max-num-seqs", "32", "--distributed-executor-backend", "uni"),
)
_VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # More threads collapse where cores are shared.
    "OMP_NUM_THREADS": "1",
    # Else the first request with log-probabilities waits 13 s for a function to be compiled.
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True, slots=True)
class RealServer:
    """A server that is running.

    Attributes:
        url: Where its API begins, ending in /v1.
        model: The name that it serves its model under.
        process: The program.
        running_metric: Name of the sample that `running` reads.
        generated_metric: Name of the sample that `generated_tokens` reads.
    """

    url: str
    model: str
    process: ServerProcess
    running_metric: str
    generated_metric: str

    @property
    def pid(self) -> int:
        """Number of its first process, and of the group of all its processes."""
        return self.process.pid

    def metrics(self) -> dict[str, float]:
        """Its Prometheus samples by name, summed over their labels."""
        samples: dict[str, float] = {}
        address = f"{self.url.removesuffix('/v1')}/metrics"
        answer = httpx2.get(address, trust_env=False, timeout=10.0).raise_for_status()
        for line in answer.text.splitlines():
            if line and not line.startswith("#"):
                labelled, _, value = line.rpartition(" ")
                name = labelled.partition("{")[0]
                samples[name] = samples.get(name, 0.0) + float(value)
        return samples

    def running(self) -> int:
        """Requests that it computes at this moment; those that wait for a place do not count."""
        return int(self.metrics()[self.running_metric])

    def generated_tokens(self) -> int:
        """Tokens that it generated since it started, those of cancelled requests too.

        vLLM counts them as it goes, llama.cpp only when a request ends or is cancelled: compare
        counts when nothing is running.
        """
        return int(self.metrics()[self.generated_metric])

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()


@contextmanager
def llama_server(*, slots: int = 4) -> Generator[RealServer]:
    """llama.cpp's server with the small real model.

    Args:
        slots: Requests that it computes at once; 4 is what llama.cpp takes by itself.

    Raises:
        ServerStartError: it did not start.
    """
    model, port = resolve(REAL).path, free_port()
    base = f"http://127.0.0.1:{port}"
    program = [sys.executable, _HERE / "run_llama_server.py", model, REAL, str(port), str(slots)]
    with (
        _folder() as folder,
        served(program, f"{base}/health", folder / "log", os.environ, 120.0) as process,
    ):
        yield RealServer(
            f"{base}/v1",
            REAL,
            process,
            running_metric="llamacpp:requests_processing",
            generated_metric="llamacpp:tokens_predicted_total",
        )


@contextmanager
def vllm_server(
    model: str = REAL, options: Sequence[str] = (), *, gate: bool = True
) -> Generator[RealServer]:
    """vLLM's server.

    Args:
        model: `vllm_models.REAL` or `vllm_models.TINY`.
        options: More of its options, such as ["--max-logprobs", "100"].
        gate: Whether it has our plugin.

    Raises:
        PreparationError: its environment or the model cannot be made.
        ServerStartError: it did not start.
    """
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    program = [vllm_python(), _HERE / "run_vllm_server.py", "--model", model_folder(model)]
    address = ["--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
    with _folder() as folder:
        command = [*program, *address, *_VLLM_OPTIONS, *options]
        env = vllm_variables(folder, gate=gate)
        with served(command, f"{base}/health", folder / "log", env, 300.0) as process:
            yield RealServer(
                f"{base}/v1",
                model,
                process,
                running_metric="vllm:num_requests_running",
                generated_metric="vllm:generation_tokens_total",
            )


def vllm_variables(folder: Path, *, gate: bool = True) -> dict[str, str]:
    """Environment variables for vLLM: none of the user's own settings, no traces left behind.

    Args:
        folder: An empty one, for what it writes.
        gate: Whether this package is there, too, and with it the plugin.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "HF_", "PYTHON"))
    }
    places = dict.fromkeys(
        ("TMPDIR", "HF_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"), str(folder)
    )
    package = {"PYTHONPATH": package_path(folder / "package")} if gate else {}
    return ours | _VLLM_SETTINGS | places | package


@contextmanager
def _folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
