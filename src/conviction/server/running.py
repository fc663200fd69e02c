"""Running the application: a socket, a web server, and how it ends."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import ceil
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from conviction.errors import ConvictionError, InvalidSettingError, ServerStartError
from conviction.server.connections import (
    ACCEPTED_AT_ONCE,
    Connection,
    Connections,
    accept_errors_counted,
    most_connections,
)
from conviction.server.service import Service
from conviction.server.settings import Settings
from conviction.tasks import on_signals

_GRACE_SECONDS = 5.0
"""Time to send the answers of runs that were ended."""
_BACKLOG = 2048
"""Connections that the system keeps until they are accepted."""
_SWEEP_TICKS = 3
"""Tenths of a second between two looks at all connections."""


class Forced(Exception):  # noqa: N818  # not an error: it was wanted
    """The server was told twice to end."""


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ServerStartError: the address cannot be had.
        InvalidSettingError: there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InvalidSettingError(
            tried=f"listen on {settings.host}",
            found=getattr(error, "strerror", None) or "that is no address",
            remedy="Give an address of this machine, as in --host 127.0.0.1.",
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would let two programs have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerStartError(
            tried=f"listen on {settings.host}, port {settings.port}",
            found=(error.strerror or str(error)).lower(),
            remedy="End what listens there, or take another port; --port 0 takes any.",
        ) from None
    return listener


async def run(
    app: FastAPI, listener: socket.socket, on_started: Callable[[], None] = lambda: None
) -> None:
    """Serve until a signal to end, then let active runs finish; a second one raises `Forced`.

    `on_started` is called when requests are answered. An engine that does not start raises.
    """
    service: Service = app.state.service
    server = WebServer(app, service.settings.drain_seconds, on_started)
    async with anyio.create_task_group() as tasks:

        def finish_runs() -> None:
            service.close()
            server.should_exit = True
            tasks.start_soon(service.drain)

        def end_at_once() -> None:
            server.force_exit = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(on_signals, finish_runs, end_at_once)
        # What is there by now stays: the garbage collector need not look through it each time.
        gc.freeze()
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()
    failure: ConvictionError | None = getattr(app.state, "failure", None)
    if failure is not None:
        raise failure
    if server.force_exit:
        raise Forced


class WebServer(uvicorn.Server):
    """A web server that leaves signals to `run`; active runs have `drain_seconds` to finish.

    Attributes:
        connections: All open connections.
    """

    def __init__(self, app: FastAPI, drain_seconds: float, on_started: Callable[[], None]) -> None:
        service: Service = app.state.service
        settings = service.settings
        limits = settings.limits
        self.connections = Connections(limits, most_connections(limits.connections))
        config = uvicorn.Config(
            app,
            http=self._connection,  # type: ignore[arg-type]  # it is called like a class
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            # By default, uvicorn believes any program of this machine.
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=ceil(limits.idle_seconds),
            timeout_graceful_shutdown=int(drain_seconds + _GRACE_SECONDS) + 1,
        )
        super().__init__(config)
        self._on_started = on_started

    def _connection(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        return Connection(config, server_state, app_state, self.connections)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`."""
        try:
            with accept_errors_counted(asyncio.get_running_loop()):
                await super().serve(sockets)
        except SystemExit:
            return  # The application did not start: `run` raises the reason.

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen."""
        log = logging.getLogger("uvicorn.error")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)  # `run` raises the reason why an engine does not start.
        try:
            await super().startup(sockets)
        finally:
            log.setLevel(level)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has only one number for both.
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """End connections that take too long; whether to end the server."""
        if counter % _SWEEP_TICKS == 0:
            self.connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)
