"""axe-core, which finds what keeps people from using a page; fetched from npm when it is wanted.

It is under the MPL, and no part of this repository.
"""

import hashlib
import subprocess
import tarfile
from pathlib import Path

VERSION = "4.14.1"
_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"


class UnavailableError(Exception):
    """There is no npm, or it does not reach its registry."""


def source(folder: Path) -> str:
    """The script.

    Args:
        folder: Where it may be put.

    Raises:
        UnavailableError: it cannot be had.
    """
    archive = folder / f"axe-core-{VERSION}.tgz"
    if not archive.exists():
        try:
            subprocess.run(
                ["npm", "pack", "--silent", f"axe-core@{VERSION}"],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=90,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UnavailableError(f"axe-core cannot be fetched with npm: {error}") from None
    data = archive.read_bytes()
    assert hashlib.sha256(data).hexdigest() == _SHA256
    with tarfile.open(archive) as files:
        script = files.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()
