"""A server in a process of its own: started, waited for, and ended with all that it started."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

_STOP_SECONDS = 20.0
_GONE_SECONDS = 10.0
_LINES_SHOWN = 40


class ServerStartError(Exception):
    """A server did not start; the message ends with what it wrote last."""


class ServerProcess:
    """A running program that serves HTTP, the leader of a group of processes of its own.

    It gets a pipe as standard input, and has to end when that closes: so it ends with the test
    run, however the run ends.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the leader, which is the number of the group too."""
        return self._process.pid

    def wait_until_healthy(self, url: str, seconds: float) -> None:
        """Wait until `url` answers with 200.

        Raises:
            ServerStartError: the program ended, or took longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        with httpx2.Client(trust_env=False, timeout=5.0) as client:
            while not self._has_ended():
                if time.monotonic() >= deadline:
                    raise self._failure(f"did not answer within {seconds:.0f} s")
                with suppress(httpx2.TransportError):
                    if client.get(url).status_code == 200:
                        return
                time.sleep(0.1)
        raise self._failure("ended by itself")

    def kill(self) -> None:
        """End it and all that it started, at once and without a chance to say goodbye."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(_GONE_SECONDS)

    def stop(self) -> None:
        """Ask it to end; kill what is left of it after some seconds."""
        if self._process.returncode is None:
            self._process.terminate()
            deadline = time.monotonic() + _STOP_SECONDS
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.05)
            # While its leader was not waited for, the number can be no other group's.
            self.kill()
        if self._process.stdin:
            self._process.stdin.close()
        self._wait_until_gone()

    def _has_ended(self) -> bool:
        """Whether the leader has ended, without waiting for it: its number stays taken."""
        if self._process.returncode is not None:
            return True
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, how) is not None

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        while is_running(self.pid) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _failure(self, how: str) -> ServerStartError:
        said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return ServerStartError("\n".join([f"The server {how}:", *said[-_LINES_SHOWN:]]))


@contextmanager
def served(
    command: Sequence[str | Path], health: str, log: Path, env: Mapping[str, str], seconds: float
) -> Generator[ServerProcess]:
    """A server that answers at `health` inside the block, and is gone after it."""
    process = ServerProcess(command, log, env)
    try:
        process.wait_until_healthy(health, seconds)
        yield process
    finally:
        process.stop()


def is_running(group: int) -> bool:
    """Whether any process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port on loopback that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
