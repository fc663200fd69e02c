"""Running the application: a socket, a web server, and how it ends."""

import logging
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import anyio
import uvicorn
from fastapi import FastAPI

from conviction.errors import ConvictionError, InvalidSettingError, ServerStartError
from conviction.server.service import Service
from conviction.server.settings import Settings
from conviction.tasks import on_signals

_GRACE_SECONDS = 5.0
"""Time to send the answers of runs that were ended."""
_BACKLOG = 2048


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
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()
    failure: ConvictionError | None = getattr(app.state, "failure", None)
    if failure is not None:
        raise failure
    if server.force_exit:
        raise Forced


class WebServer(uvicorn.Server):
    """A web server that leaves signals to `run`; active runs have `drain_seconds` to finish."""

    def __init__(self, app: FastAPI, drain_seconds: float, on_started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=int(drain_seconds + _GRACE_SECONDS) + 1,
        )
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`."""
        try:
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
        self._on_started()
