"""Every failure in the format that clients of OpenAI know, and in the log."""

import logging
from collections.abc import Sequence
from math import ceil
from traceback import format_tb
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from conviction.display import printable, quoted
from conviction.errors import (
    AllTracesFailedError,
    ContextOverflowError,
    ConvictionError,
    EngineError,
    EngineUnavailableError,
    MissingLogprobsError,
    NothingGeneratedError,
    OverloadedError,
    RefusedError,
    UsageError,
)
from conviction.server.request_schema import UNSUPPORTED

LOGGER: Final = logging.getLogger("conviction.server")
"""The server's log. What clients, models and other servers wrote cannot forge lines in it."""

_STATUS_AND_CODE: Final = (
    (OverloadedError, 503, "overloaded"),
    (RefusedError, 503, "shutting_down"),
    (ContextOverflowError, 400, "context_length_exceeded"),
    (MissingLogprobsError, 400, "no_logprobs"),
    (UsageError, 400, "invalid_value"),
    (NothingGeneratedError, 504, "engine_timeout"),
    (EngineError, 502, "engine_failed"),
    (AllTracesFailedError, 502, "engine_failed"),
)
"""HTTP status and code by kind of error; the first that fits."""

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""OpenAI's type of error by HTTP status, where it is not the one of all below or above 500."""

_LONGEST_NAME = 100
"""Characters of a field's name that is repeated; those of this server are shorter."""


def _escape(record: logging.LogRecord) -> bool:
    """Make a record's message printable; its traceback, which is ours, stays on lines."""
    record.msg, record.args = printable(record.getMessage()), None
    record.exc_text = getattr(record, "where", None) or record.exc_text
    return True


LOGGER.addFilter(_escape)


class RequestError(UsageError):
    """A request asks for something that this server does not do.

    Args:
        message: What is wrong and what to do, for people; whole sentences.
        param: The field that is meant, as in "conviction.budget"; None where there is none.
        code: A word for programs.
        status: HTTP status.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
    ) -> None:
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        super().__init__(tried="answer the request", found=message, remedy="")


def error_body(
    message: str, *, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The JSON of a failure."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_and_body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of any error; an unexpected one reveals nothing of itself."""
    if isinstance(error, RequestError):
        body = error_body(error.message, status=error.status, param=error.param, code=error.code)
        return error.status, body
    if not isinstance(error, ConvictionError):
        return 500, error_body("The server failed.", status=500, code="internal_error")
    status, code = _status_and_code(error)
    return status, error_body(sentence(error), status=status, code=code)


def _status_and_code(error: ConvictionError) -> tuple[int, str]:
    if isinstance(error, OverloadedError) and error.own:
        return 429, "rate_limit_exceeded"
    if isinstance(error, AllTracesFailedError) and (engine := _upstream(error)):
        # The client's own requests are not the ones that were too many.
        return (503, "engine_busy") if engine.busy else (502, "engine_failed")
    if isinstance(error, NothingGeneratedError) and error.ended == "interrupted":
        return 503, "interrupted"
    if isinstance(error, NothingGeneratedError) and not error.unexplained:
        return 502, "engine_failed"
    return next(
        ((status, code) for kind, status, code in _STATUS_AND_CODE if isinstance(error, kind)),
        (500, "internal_error"),
    )


def _upstream(error: BaseException) -> EngineUnavailableError | None:
    """What the server behind this one refused, where that is known."""
    engine = error.engine if isinstance(error, AllTracesFailedError) else error
    return engine if isinstance(engine, EngineUnavailableError) else None


def sentence(error: ConvictionError) -> str:
    """What was tried, what was found and what to do, in sentences."""
    message = str(error)
    return message[:1].upper() + message[1:]


def failure_response(error: BaseException) -> Response:
    """The HTTP response for an error."""
    status, body = status_and_body(error)
    headers: dict[str, str] = {}
    if isinstance(error, RefusedError):
        headers["retry-after"] = str(error.retry_after if isinstance(error, OverloadedError) else 1)
    elif status == 503:
        wait = engine.wait if (engine := _upstream(error)) else None
        headers["retry-after"] = str(ceil(max(1.0, wait or 0.0)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def log_failure(error: BaseException, *, content: bool) -> None:
    """Log an error that left a request without its answer, and where it is ours, its traceback.

    With `content`, what was found is logged, too. That comes from the server behind this one, which
    may repeat the question in it; the client gets it in any case.
    """
    status, body = status_and_body(error)
    if status < 500 or isinstance(error, RefusedError):
        return
    known = isinstance(error, ConvictionError)
    what = f"{type(error).__name__}: {error.tried}" if known else type(error).__name__
    if content:
        said = body["error"]["message"] if known else quoted(str(error))
        what = f"{type(error).__name__}: {said}"
    where = "" if known else "".join(format_tb(error.__traceback__)).rstrip()
    LOGGER.error(what, extra={"where": where})


def validation_error(problems: Sequence[Any]) -> RequestError:
    """The first problem of a request as an error; nothing of the request's content is repeated."""
    first = problems[0]
    path = [part for part in first["loc"] if part != "body"]
    names = _names(path)
    # Where JSON breaks off stands in the path as well, but is not a field.
    no_object = first["type"] == "model_attributes_type" and not names
    if no_object or first["type"] == "json_invalid":
        return RequestError(
            "The body is no JSON object. Send one, as Content-Type: application/json.",
            code="invalid_json",
        )
    param = ".".join(names) or None
    field = next((name for name in names if name in UNSUPPORTED), None)
    if first["type"] == "extra_forbidden":
        return RequestError(
            f"There is no field {names[-1]!r} here." if names else "An unknown field.",
            param=param,
            code="unknown_field",
        )
    if first["type"] == "missing":
        return RequestError("A field is missing.", param=param, code="missing_field")
    text = UNSUPPORTED.get(field or "") or f"{first['msg']}."
    return RequestError(text, param=param, code="unsupported" if field else "invalid_value")


def _names(path: Sequence[Any]) -> list[str]:
    """The fields and numbers of a path; validators add the types of alternatives to it."""
    names: list[str] = []
    for part in path:
        text = str(part)
        if not text.isidentifier() and not text.isdecimal():
            break
        if text in ("str", "list", "int", "float", "dict") or len(text) > _LONGEST_NAME:
            break
        names.append(text)
    return names
