"""Every failure in the shape that clients of OpenAI know."""

from collections.abc import Sequence
from typing import Any, Final

from conviction.errors import (
    AllTracesFailedError,
    ContextOverflowError,
    ConvictionError,
    EngineError,
    MissingLogprobsError,
    OverloadedError,
    RefusedError,
    UsageError,
)
from conviction.server.openai_schema import REFUSED

_KINDS: Final = (
    (OverloadedError, 503, "overloaded"),
    (RefusedError, 503, "shutting_down"),
    (ContextOverflowError, 400, "context_length_exceeded"),
    (MissingLogprobsError, 400, "no_logprobs"),
    (UsageError, 400, "invalid_value"),
    (EngineError, 502, "engine_failed"),
    (AllTracesFailedError, 502, "engine_failed"),
)
"""Status of HTTP and code by kind of error; the first that fits."""


_LONGEST_NAME = 100
"""Characters of a field's name that is repeated; those of this server are shorter."""


class RequestError(UsageError):
    """A request asks for what this server does not do.

    Args:
        message: What is wrong and what to do, for people; whole sentences.
        param: The field that is meant, as in "conviction.budget"; None where there is none.
        code: A word for programs.
        status: Of HTTP.
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
    return {
        "error": {
            "message": message,
            "type": _kind(status),
            "param": param,
            "code": code,
        }
    }


def status_and_body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status of HTTP and JSON of any error; one that nobody foresaw tells nothing of itself."""
    if isinstance(error, RequestError):
        body = error_body(error.message, status=error.status, param=error.param, code=error.code)
        return error.status, body
    if not isinstance(error, ConvictionError):
        return 500, error_body("The server failed.", status=500, code="internal_error")
    status, code = _status_and_code(error)
    message = str(error)
    return status, error_body(message[:1].upper() + message[1:], status=status, code=code)


def retry_after(error: BaseException) -> int | None:
    """Seconds to wait before asking again; None where waiting does not help."""
    if isinstance(error, OverloadedError):
        return error.retry_after
    return 1 if isinstance(error, RefusedError) else None


def _status_and_code(error: ConvictionError) -> tuple[int, str]:
    if isinstance(error, OverloadedError) and error.own:
        return 429, "rate_limit_exceeded"
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return status, code
    return 500, "internal_error"


def _kind(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case 503:
            return "overloaded_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"


def of_validation(problems: Sequence[Any]) -> RequestError:
    """The first thing that is wrong with a request; nothing of its content is repeated."""
    first = problems[0]
    path = [part for part in first["loc"] if part != "body"]
    # Where JSON breaks off stands in the path as well, but is no field.
    no_object = first["type"] == "model_attributes_type" and not _names(path)
    if no_object or first["type"] == "json_invalid":
        return RequestError(
            "The body is no JSON object. Send one, as Content-Type: application/json.",
            code="invalid_json",
        )
    names = _names(path)
    param = ".".join(names) or None
    field = next((name for name in names if name in REFUSED), None)
    if first["type"] == "extra_forbidden":
        return RequestError(
            f"There is no field {names[-1]!r} here." if names else "An unknown field.",
            param=param,
            code="unknown_field",
        )
    if first["type"] == "missing":
        return RequestError("A field is missing.", param=param, code="missing_field")
    text = REFUSED.get(field or "") or f"{first['msg']}."
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
