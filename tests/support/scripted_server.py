"""A server on loopback that plays bytes, faults included."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import anyio


class Mark(Enum):
    """What a server can do besides writing and waiting."""

    UNTIL_HANG_UP = auto()
    """Wait until the client closes the connection."""
    RESET = auto()
    """Drop the connection in the middle, as a crashing server does."""
    HALF_CLOSE = auto()
    """Write no more, but keep on reading."""


Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Step = bytes | float | Mark | Callable[[Peer], Awaitable[None]]
Play = Callable[["Received"], Sequence[Step]]


@dataclass
class Received:
    """A request, and the number of the connection that it came on."""

    path: str
    headers: dict[str, str]
    body: Any
    connection: int = 0


@dataclass
class ScriptedServer:
    """Answers every request with the steps that `play` gives for it.

    After them it hangs up, unless it `keeps_alive`: then it waits for the next request.
    """

    play: Play
    url: str = ""
    keeps_alive: bool = False
    requests: list[Received] = field(default_factory=list[Received])
    connections: int = 0
    open: int = 0
    most_open: int = 0
    hung_up: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    stop_listening: Callable[[], None] = lambda: None
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while True:
                await self._answer(number, (reader, writer))
                if not self.keeps_alive:
                    break
        except (OSError, asyncio.IncompleteReadError):
            self.hung_up.set()
        except asyncio.CancelledError:
            pass  # The test is over.
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _answer(self, number: int, peer: Peer) -> None:
        request = await _receive(peer[0], number)
        self.requests.append(request)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            for step in self.play(request):
                await self._do(step, peer)
        finally:
            self.open -= 1
            self.ended.set()
            self.ended = anyio.Event()

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        with anyio.fail_after(2):
            while self.open:
                await self.ended.wait()

    async def _do(self, step: Step, peer: Peer) -> None:
        reader, writer = peer
        match step:
            case Mark.UNTIL_HANG_UP:
                assert await reader.read() == b""
                self.hung_up.set()
            case Mark.RESET:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Mark.HALF_CLOSE:
                writer.write_eof()
            case bytes():
                writer.write(step)
                await writer.drain()
            case float() | int():
                await asyncio.sleep(step)
            case _:
                await step(peer)


async def _receive(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split()[1], headers, json.loads(body or b"null"), connection)


@asynccontextmanager
async def serving(
    play: Play | Sequence[Step],
    *,
    keeps_alive: bool = False,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> AsyncGenerator[ScriptedServer, None]:
    """A server while it is needed; connections that are open at the end are cut."""
    script = ScriptedServer(play if callable(play) else lambda _: play, keeps_alive=keeps_alive)
    server = await asyncio.start_server(script.handle, "127.0.0.1", port, ssl=tls)
    script.stop_listening = server.close
    scheme = "https" if tls else "http"
    script.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield script
    finally:
        server.close()
        tasks = list(script.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: str, body: bytes, content_type: str = "application/json", **more: str) -> bytes:
    """An answer that ends when the connection does."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def complete(body: bytes, content_type: str = "application/json", status: str = "200 OK") -> bytes:
    """An answer after which the connection may be used again."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def chunked(*pieces: bytes, content_type: str = "text/event-stream") -> bytes:
    """The beginning of an answer in pieces of HTTP, as most servers stream."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(map(chunk, pieces))


def chunk(piece: bytes) -> bytes:
    """One more piece of such an answer; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
