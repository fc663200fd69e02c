"""A lock between processes that ends with its owner, however the owner ends."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
