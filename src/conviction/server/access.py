"""One line of log per request, and how soon it was answered. Never a prompt, unless asked for."""

import logging
from time import perf_counter
from traceback import format_tb

from opentelemetry import context
from opentelemetry.propagate import extract
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conviction.errors import ConvictionError, RefusedError
from conviction.server.answering import Reply
from conviction.server.asked import Asked
from conviction.server.failures import status_and_body
from conviction.server.metrics import Metrics
from conviction.server.settings import Settings

LOGGER = logging.getLogger("conviction.server")
_GONE = 499
_OUR_FAULT = 500
_TIMED = ("/v1/chat/completions", "/v1/completions")


class AccessLog:
    """Logs every request when it was answered, and takes up the trace that it belongs to.

    Args:
        app: What answers.
        metrics: Hears how soon the first byte came.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = _GONE
        first: float | None = None

        async def watch(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            if first is None and message["type"] == "http.response.body":
                first = perf_counter() - began
                if status == 200 and scope["path"] in _TIMED:
                    self._metrics.first_byte(first, stream=message.get("more_body", False))
            await send(message)

        token = context.attach(extract(dict(Headers(scope=scope))))
        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500  # The answer to it is made outside of this.
            raise
        finally:
            context.detach(token)
            _log(scope, status, perf_counter() - began)


def log_content(settings: Settings, asked: Asked, shown: Reply) -> None:
    """Log a question and its answer, if the settings say so."""
    if settings.log_content:
        LOGGER.info("asked: %s", asked.text)
        LOGGER.info("answered: %s", shown.text)


def log_failure(settings: Settings, error: BaseException) -> None:
    """Log what left a request without its answer, and of a fault of ours where it happened.

    What was found comes from the server behind this one, which may repeat the question in it; so it
    is logged only where the settings say so. The client hears of it in any case.
    """
    status, body = status_and_body(error)
    if status < _OUR_FAULT or isinstance(error, RefusedError):
        return
    known = isinstance(error, ConvictionError)
    what = f"{type(error).__name__}: {error.tried}" if known else type(error).__name__
    if settings.log_content:
        what = f"{type(error).__name__}: {body['error']['message'] if known else error}"
    where = "" if known else "\n" + "".join(format_tb(error.__traceback__))
    LOGGER.error("%s%s", what, where)


def _log(scope: Scope, status: int, seconds: float) -> None:
    address = scope["client"][0] if scope.get("client") else "-"
    client = scope.get("conviction.client") or "-"
    # Paths come from clients: control characters in them would forge lines.
    path = scope["path"].encode("unicode_escape").decode()
    LOGGER.info("%s %s %s %s %d %.3fs", address, client, scope["method"], path, status, seconds)
