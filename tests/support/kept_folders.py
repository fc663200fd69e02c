"""Folders that take minutes to make: made once, and kept in the cache for later test runs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from conviction.files import exclusive
from conviction.models.store import cache_folder

_LONGEST_WAIT = 3600.0
"""Seconds to wait for another test run that makes the same folder."""

_PROGRESS_EVERY = 15.0

_UNFINISHED = ".unfinished-"


class PreparationError(Exception):
    """What a test needs could not be made; the message ends with what the program said last."""


def kept_folder(name: str, fingerprint: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, filled by `make` unless that was done before.

    It is made under another name and renamed when it is whole, so an interrupted run leaves
    nothing that looks finished, and of two runs at once one makes it and the other waits.

    Args:
        name: Its name below the folder of the test servers in the cache.
        fingerprint: Names all that its content depends on. When it changes, it is made again.
        make: Fills the empty folder that it gets. The folder is renamed afterwards.

    Raises:
        PreparationError: `make` failed, or another run took too long.
    """
    parent = cache_folder().parent / "test-servers"
    folder = parent / name
    if _fingerprint(folder) == fingerprint:
        return folder
    parent.mkdir(parents=True, exist_ok=True)

    @cache  # said once, not at every look at the lock
    def waiting() -> None:
        say(f"Waiting for another test run that makes {folder} …")

    try:
        with exclusive(parent / f"{name}.lock", _LONGEST_WAIT, waiting):
            if _fingerprint(folder) != fingerprint:
                _make(folder, fingerprint, make)
    except TimeoutError:
        raise PreparationError(f"Another test run is still making {folder}.") from None
    return folder


def run_to_the_end(command: Sequence[str | Path], what: str, *, seconds: float) -> None:
    """Run a program that makes something, and say on standard error how far it is.

    Raises:
        PreparationError: it failed, or took longer than `seconds`.
    """
    say(f"{what} …")
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # In a group of its own, so that all that it started can be ended with it.
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while (spent := time.monotonic() - started) < seconds:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(_PROGRESS_EVERY, seconds - spent))
                    break
                say(f"{what}: {time.monotonic() - started:.0f} s")
            ended = process.poll() is not None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            how = (
                f"failed with code {process.returncode}" if ended else f"took over {seconds:.0f} s"
            )
            log.seek(0)
            said = log.read().decode(errors="replace").splitlines()[-20:]
            raise PreparationError("\n".join([f"{what} {how}:", *said]))
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # it is for people, and not a log


def _make(folder: Path, fingerprint: str, make: Callable[[Path], None]) -> None:
    _remove_unfinished(folder)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}{_UNFINISHED}", dir=folder.parent))
    try:
        make(made)
        _marker(made).write_text(fingerprint, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    # A program that outlived its killed test run may still write into one; then the rest stays
    # until the next time.
    for unfinished in folder.parent.glob(f"{folder.name}{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _fingerprint(folder: Path) -> str | None:
    try:
        return _marker(folder).read_text(encoding="utf-8")
    except OSError:
        return None


def _marker(folder: Path) -> Path:
    return folder / "made-from.txt"
