"""Running the application: a socket, a web server, and how it ends."""

import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import inf

import anyio
import uvicorn
from fastapi import FastAPI

from conviction.errors import ConvictionError, InvalidSettingError, ServerStartError
from conviction.server.service import Service
from conviction.server.settings import Settings

_GRACE_SECONDS = 5.0
"""Time to send off what runs that were ended brought."""
_SAME_SIGNAL_SECONDS = 0.5


class Forced(Exception):  # noqa: N818  # no error: somebody wanted it so
    """Somebody asked twice to end."""


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
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ServerStartError(
            tried=f"listen on {settings.host}, port {settings.port}",
            found=(error.strerror or str(error)).lower(),
            remedy="End what listens there, or take another with --port (0 takes any that is free).",
        ) from None
    listener.setblocking(False)
    return listener


async def run(
    app: FastAPI, listener: socket.socket, *, on_started: Callable[[], None] | None = None
) -> None:
    """Serve until somebody asks to end, then let what runs come to its end.

    Args:
        app: From `create_app`.
        listener: From `listen`.
        on_started: Called when requests are answered.

    Raises:
        ConvictionError: the engine did not start.
        Forced: somebody asked twice to end.
    """
    service: Service = app.state.service
    drain = service.settings.drain_seconds
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(drain + _GRACE_SECONDS) + 1,
        ws="none",
    )
    server = _Server(config)
    forced = False

    async def end_on_signals() -> None:
        nonlocal forced
        first = inf
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if anyio.current_time() - first > _SAME_SIGNAL_SECONDS:
                    forced = True
                    server.force_exit = True
                    tasks.cancel_scope.cancel()
                elif first == inf:
                    first = anyio.current_time()
                    service.close()
                    server.should_exit = True
                    tasks.start_soon(service.drain)

    async def tell() -> None:
        while not server.started:
            await anyio.sleep(0.01)
        if on_started is not None:
            on_started()

    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_on_signals)
        tasks.start_soon(tell)
        try:
            await server.serve(sockets=[listener])
        except SystemExit as error:
            failure = error
        tasks.cancel_scope.cancel()
    if forced:
        raise Forced
    started_badly: ConvictionError | None = getattr(app.state, "failure", None)
    if started_badly is not None:
        raise started_badly
    if failure is not None:
        raise failure


class _Server(uvicorn.Server):
    """A web server that leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
