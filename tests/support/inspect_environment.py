"""The virtual environment of inspect_ai, for tests that run an evaluation through our server.

It brings some 90 packages, so it lives in an environment of its own: 360 MB, made once.
What goes into it is written down in inspect.lock, which uv makes:

    echo "inspect-ai>=0.3
    openai>=3" | uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
        --no-annotate - -o tests/support/inspect.lock
"""

import sys
from hashlib import sha256
from pathlib import Path

from kept_folders import kept_folder
from locked_install import make_environment

LOCK = Path(__file__).with_name("inspect.lock")

_INSTALL_SECONDS = 900.0


def inspect_python() -> Path:
    """The python of the environment, which is made first where that was not done yet.

    Raises:
        PreparationError: it cannot be made.
    """
    fingerprint = f"{sha256(LOCK.read_bytes()).hexdigest()} {sys.version}"
    return kept_folder("inspect", fingerprint, _make) / "bin" / "python"


def _make(folder: Path) -> None:
    make_environment(
        folder, LOCK, "Installing inspect_ai for tests (360 MB, once)", seconds=_INSTALL_SECONDS
    )
