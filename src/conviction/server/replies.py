"""Failures as answers of HTTP."""

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from conviction.server.failures import retry_after, status_and_body


def failure_response(error: BaseException) -> Response:
    """The answer for an error."""
    status, body = status_and_body(error)
    headers: dict[str, str] = {}
    if (seconds := retry_after(error)) is not None:
        headers["retry-after"] = str(seconds)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


async def refuse(error: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    await failure_response(error)(scope, receive, send)
