"""Triton in a folder of its own, for tests of the kernels.

It is not in vLLM's test environment: with it there, vLLM would take another of its runners.
"""

import sys
from pathlib import Path

from kept_folders import kept_folder
from locked_install import install

_REQUIREMENT = (
    "triton==3.9.0 --hash=sha256:1622118a038b0c6e16fa4a0305da62c8b3c15904ee1cc4d4e65846a25969e41e\n"
)


def triton_folder() -> Path:
    """The folder that Triton is imported from, which is made first where that was not done yet.

    Raises:
        PreparationError: it cannot be made.
    """

    def make(folder: Path) -> None:
        wanted = folder / "requirements.txt"
        wanted.write_text(_REQUIREMENT, encoding="utf-8")
        what = "Installing Triton for tests (0.3 GB, once)"
        install(wanted, ["--target", folder], what, seconds=600.0)

    return kept_folder("triton", f"{_REQUIREMENT} {sys.version}", make)
