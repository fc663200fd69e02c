"""Attacks of clients without a key on a server in a process of its own: it goes on answering.

Every one of them stopped, filled or blocked a server once. Nothing leaves loopback.
"""

import os
import re
import select
import socket
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from server_app import asking
from server_process import ServerProcess, free_port, served

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

SECONDS = 60.0
MEGABYTE = 1 << 20
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
FILES = 128
"""Open files of a server that has few."""


@dataclass
class Target:
    """A server that is attacked."""

    process: ServerProcess
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resident(self) -> int:
        """Bytes of memory it has."""
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """Bytes of memory it had at most since `forget_peak`."""
        return self._status("VmHWM")

    @property
    def cpu(self) -> float:
        """Seconds of processor time it took."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="utf-8")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        assert found
        return int(found[1]) * 1024

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def post(self, content: bytes) -> httpx2.Response:
        with httpx2.Client(trust_env=False, timeout=SECONDS) as client:
            headers = {"content-type": "application/json"}
            address = f"{self.url}/v1/chat/completions"
            return client.post(address, content=content, headers=headers)

    def is_healthy(self) -> bool:
        """Whether a new connection is answered."""
        with httpx2.Client(trust_env=False, timeout=SECONDS) as client:
            return client.get(f"{self.url}/health").status_code == 200


@contextmanager
def attacked(folder: Path, *options: str, files: int | None = None) -> Generator[Target]:
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "conviction", "serve", "-m", "scripted", "--port", str(port)]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    health = f"http://127.0.0.1:{port}/health"
    with served([*command, *options], health, log, dict(os.environ), SECONDS) as process:
        yield Target(process, port, log)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Generator[Target]:
    """A server that waits for a second or two only, with answers that take no time."""
    bounds = ("--max-header-seconds", "1", "--max-body-seconds", "2", "--delay", "0")
    with attacked(tmp_path_factory.mktemp("target"), *bounds) as target:
        target.post(chat_of("How many?"))
        yield target


def chat_of(*texts: str) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts]
    return httpx2.Request("POST", "http://x", json=asking() | {"messages": messages}).content


def ended(connections: list[socket.socket], drip: bytes = b"") -> list[bytes]:
    """What came back on each connection, once the server has ended all; they go on dripping."""
    said = dict.fromkeys(connections, b"")
    left = set(connections)
    deadline = time.monotonic() + SECONDS
    while left:
        assert time.monotonic() < deadline, f"{len(left)} of {len(connections)} are still open"
        readable, _, _ = select.select(list(left), [], [], 0.1)
        for one in left:
            try:
                if drip:
                    one.send(drip)
                more = one.recv(65536) if one in readable else None
            except OSError:
                more = b""
            if more is not None:
                said[one] += more
            if more == b"":
                left = left - {one}
    return list(said.values())


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b"x: 1\r\n"),
        (CHAT + b"content-length: 9999\r\n\r\n{", b" "),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", b""),
        (b"POST /nothing HTTP/1.1\r\nhost: evil\r\ncontent-length: 9999\r\n\r\n", b"x"),
    ],
    ids=["silent", "slow head", "slow body", "kept alive", "refused and goes on"],
)  # fmt: skip
def test_connections_that_do_not_get_on_are_ended(
    target: Target, begin: bytes, drip: bytes
) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(20)]
        for one in connections:
            one.sendall(begin)
        said = ended(connections, drip)
        assert target.is_healthy()
    if drip and b"evil" not in begin:
        assert all(one.startswith(b"HTTP/1.1 408 ") for one in said)


def test_idle_connections_beyond_the_limit_of_open_files_keep_nobody_out(tmp_path: Path) -> None:
    with attacked(tmp_path, files=FILES) as target, ExitStack() as stack:
        for number in range(300):
            connection = stack.enter_context(target.connect())
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\n")
            if number % 50 == 0:
                assert target.is_healthy()
        assert target.is_healthy()
        stack.close()
        assert target.is_healthy()
        assert target.log.stat().st_size < 100_000


def test_a_hundred_megabytes_of_headers_are_cut_off(target: Target) -> None:
    target.forget_peak()
    before, sent = target.resident, 0
    line = b"x-" + b"a" * 60 + b": " + b"b" * 8126 + b"\r\n"
    with target.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        with suppress(ConnectionError):
            while sent < 100 * MEGABYTE:
                connection.sendall(line)
                sent += len(line)
    assert sent < 20 * MEGABYTE  # what the system has buffered
    assert target.peak - before < 30 * MEGABYTE
    assert target.is_healthy()


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """The beginning of the answer; what still is on its way when it is closed may cost it."""
    with suppress(ConnectionError):
        connection.sendall(data)
    with suppress(ConnectionError):
        return connection.recv(100)
    return b"reset"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a:\r\n" * 50_000,
        CHAT + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 100_000,
    ],
    ids=["headers that come at once", "a body in tiny chunks"],
)
def test_what_takes_long_to_parse_is_refused(target: Target, data: bytes) -> None:
    with target.connect() as connection:
        answer = exchange(connection, data)
    assert b"HTTP/1.1 400 " in answer or answer == b"reset"
    assert target.is_healthy()


def fields(count: int) -> bytes:
    names = ",".join(f'"field{number}": 1' for number in range(count))
    return chat_of("How many?")[:-1] + f",{names}}}".encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(fields(240_000), id="fields"),
        pytest.param(fields(40_000), id="as many fields as may be parsed"),
        pytest.param(b'{"messages": [' + b"{}," * 90_000 + b"{}]}", id="messages"),
        pytest.param(b"[" * 2_000_000, id="deep"),
    ],
)
def test_what_is_wrong_in_thousands_of_places_costs_little(target: Target, content: bytes) -> None:
    plain = chat_of(*(["x" * 900_000] * 4))
    before = target.cpu
    for _ in range(3):
        assert target.post(plain).status_code == 200
    usual = target.cpu - before
    before = target.cpu
    for _ in range(3):
        answer = target.post(content)
        assert answer.status_code == 400
        assert len(answer.content) < 1000
    assert target.cpu - before < 4 * usual + 0.5


def test_large_requests_leave_no_memory_taken(target: Target) -> None:
    # Escaped, so that a byte of the request becomes several in memory.
    large = chat_of(*(["x" * 990_000] * 4))
    before = target.resident
    target.forget_peak()
    end = time.monotonic() + SECONDS

    def answered(_: int) -> bool:
        # Those that find no room are refused at once, and ask again.
        while (status := target.post(large).status_code) == 503 and time.monotonic() < end:
            time.sleep(0.1)
        return status == 200

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answered, range(30)))
    assert target.peak - before < 250 * MEGABYTE
    assert target.is_healthy()


def test_large_requests_that_wait_are_bounded_together(tmp_path: Path) -> None:
    large = chat_of(*(["x" * 990_000] * 4))
    options = ("--delay", "5", "--slots", "1", "--max-running", "2")
    with attacked(tmp_path, *options) as target, ThreadPoolExecutor(60) as pool:
        target.is_healthy()
        before = target.resident
        head = CHAT + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(large)
        with ExitStack() as stack:
            connections = [stack.enter_context(target.connect()) for _ in range(60)]

            def send(connection: socket.socket) -> bytes:
                connection.settimeout(5)
                try:
                    return exchange(connection, head + large)
                except TimeoutError:
                    return b"waits"

            answers = list(pool.map(send, connections))
            assert sum(one != b"waits" for one in answers) > 30
            assert target.is_healthy()
            assert target.post(chat_of("x") + b"!").status_code == 400  # small ones have room
            assert target.peak - before < 200 * MEGABYTE
