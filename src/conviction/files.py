"""Files that several programs use: locks, and files that are there as a whole or not at all.

Locks end with their owner, however the owner ends.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with "~" as the user's folder; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive(path: Path, seconds: float, on_wait: Callable[[], None]) -> Generator[None]:
    """Hold the lock at `path`; closing the file, or the end of the process, gives it back.

    Args:
        path: A file that may be created, and stays.
        seconds: The longest wait for another owner.
        on_wait: Called a few times a second while waiting.

    Raises:
        TimeoutError: another owner kept it for too long.
        OSError: the file cannot be opened, or cannot be locked where it lies.
    """
    deadline = time.monotonic() + seconds
    with path.open("ab") as file:
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise TimeoutError
            on_wait()
            time.sleep(0.2)
        yield


class TemporaryLock:
    """A lock whose file names its owner, and goes away with it unless the owner is killed.

    The longest wait for another owner is `seconds`.

    Raises:
        BlockingIOError: another owner has it; its text says who.
        OSError: the file cannot be opened, or cannot be locked where it lies.
    """

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self._path = path
        deadline = time.monotonic() + seconds
        while True:
            try:
                if file := _locked(path):
                    break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
        self._file = file

    def release(self) -> None:
        """Give it back."""
        with suppress(OSError):
            self._path.unlink()
        self._file.close()


def _locked(path: Path) -> IO[bytes] | None:
    """The locked file; None if its owner took it away at the same moment."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("a+b"))
        if not _try_lock(file):
            owner = b""
            with suppress(OSError):
                file.seek(0)
                owner = file.read(200)
            raise BlockingIOError(owner.decode(errors="replace") or "it has just begun")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                now = datetime.now().astimezone().isoformat(" ", "seconds")
                file.write(f"process {os.getpid()} on {socket.gethostname()}, {now}".encode())
                file.flush()
                stack.pop_all()
                return file
    return None


def is_abandoned(lock: Path) -> bool:
    """Whether the file of a lock is there, and its owner is gone."""
    with suppress(OSError), lock.open("r+b") as file:
        return _try_lock(file)
    return False


@contextmanager
def finished_file(path: Path) -> Generator[Path]:
    """A path to write to; what was written there gets its own name at the end, durably.

    If the block fails, nothing is left.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
