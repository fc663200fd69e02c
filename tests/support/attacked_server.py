"""`conviction serve` as a process under attack: its memory, its gauges, its health all along."""

import os
import re
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
from server_process import free_port, served

START_SECONDS = 60.0
BETWEEN_CHECKS = 0.1
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True)
class Attacked:
    """A server that runs.

    Attributes:
        url: Its address, without a path.
        pid: Its process.
    """

    url: str
    pid: int

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * PAGE_KIB / 1024

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        text = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def gauge(self, name: str, key: str = "") -> float:
        """One of the server's gauges."""
        headers = {"authorization": f"Bearer {key}"} if key else None
        text = httpx2.get(f"{self.url}/metrics", headers=headers, trust_env=False, timeout=60).text
        found = re.search(rf"^conviction_{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])


@contextmanager
def attacked(folder: Path, *options: str) -> Generator[Attacked]:
    """A server of made-up traces."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "conviction", "serve", "-m", "scripted", "--port", str(port)]
    log = folder / "serve.log"
    with served([*command, *options], f"{url}/health", log, os.environ, START_SECONDS) as process:
        yield Attacked(url, process.pid)


class HealthWatch:
    """Asks for the server's health ten times a second; leaving it checks that all answers came.

    A busy machine delays everything. So an answer counts as late if it took more than the allowed
    seconds by the clock and the server itself computed for as long meanwhile.

    Attributes:
        slowest: The longest wait for an answer by the clock, in seconds.
        longest_computing: The most CPU seconds of the server until an answer.
        answers: How many came.
    """

    ALLOWED = 0.5

    def __init__(self, server: Attacked) -> None:
        self.slowest = 0.0
        self.longest_computing = 0.0
        self.answers = 0
        self.late: list[tuple[float, float]] = []
        self._server = server
        self._failure: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._over.set()
        self._thread.join(60)
        if error is None:
            assert self._failure is None, self._failure
            assert self.answers > 0
            assert self.late == []

    def __str__(self) -> str:
        return (
            f"{self.answers} answers of /health, the slowest after {self.slowest:.2f} s, with "
            f"{self.longest_computing:.2f} s of the server's CPU time at most"
        )

    def _watch(self) -> None:
        with httpx2.Client(base_url=self._server.url, trust_env=False, timeout=30) as http:
            while not self._over.wait(BETWEEN_CHECKS):
                began, cpu = time.monotonic(), self._server.cpu_seconds
                try:
                    http.get("/health").raise_for_status()
                except httpx2.HTTPError as error:
                    self._failure = error
                    return
                seconds = time.monotonic() - began
                computing = self._server.cpu_seconds - cpu
                self.answers += 1
                self.slowest = max(self.slowest, seconds)
                self.longest_computing = max(self.longest_computing, computing)
                if min(seconds, computing) > self.ALLOWED:
                    self.late.append((seconds, computing))
