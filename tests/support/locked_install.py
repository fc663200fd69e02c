"""Installs what a lock file names, with uv: in seconds where pip takes minutes."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kept_folders import run_to_the_end


def install(lock: Path, where: Sequence[str | Path], what: str, *, seconds: float) -> None:
    """Install exactly what the lock names, by its hashes.

    Args:
        lock: Requirements with hashes, with all that they require.
        where: Options that tell uv where to: ["--python", PATH] or ["--target", FOLDER].
        what: Said to the person who waits.
        seconds: The longest that it may take.

    Raises:
        PreparationError: it cannot be installed.
    """
    uv = [sys.executable, "-m", "uv", "pip", "install", *where, *_wheels_at_hand()]
    locked = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", lock]
    run_to_the_end([*uv, *locked], what, seconds=seconds)


def make_environment(folder: Path, lock: Path, what: str, *, seconds: float) -> None:
    """Make a virtual environment with exactly what the lock names.

    Programs of the environment name its first folder in their first line, so they do not start
    after it was renamed; python itself does.

    Raises:
        PreparationError: it cannot be made.
    """
    venv = [sys.executable, "-m", "venv", "--without-pip", folder]
    run_to_the_end(venv, "Making an environment", seconds=120)
    install(lock, ["--python", folder / "bin" / "python"], what, seconds=seconds)


def _wheels_at_hand() -> list[str]:
    """The folders of wheels that pip is told of: uv does not read pip's settings."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(pip, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.findall(r"^\S*\.find-links='(.+)'$", said, re.MULTILINE)
    places = dict.fromkeys(place for line in found for place in line.split())
    return [option for place in places for option in ("--find-links", place)]
