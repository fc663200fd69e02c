"""Every failure in the shape that clients of OpenAI know."""

from typing import Any

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
    message = f"{error.tried}: {error.found}".rstrip(".") + f". {error.remedy}"
    return status, error_body(message[:1].upper() + message[1:], status=status, code=code)


def retry_after(error: BaseException) -> int | None:
    """Seconds to wait before asking again; None where waiting does not help."""
    if isinstance(error, OverloadedError):
        return error.retry_after
    return 1 if isinstance(error, RefusedError) else None


def _status_and_code(error: ConvictionError) -> tuple[int, str]:
    match error:
        case OverloadedError():
            return (429, "rate_limit_exceeded") if error.own else (503, "overloaded")
        case RefusedError():
            return 503, "shutting_down"
        case ContextOverflowError():
            return 400, "context_length_exceeded"
        case MissingLogprobsError():
            return 400, "no_logprobs"
        case UsageError():
            return 400, "invalid_value"
        case EngineError() | AllTracesFailedError():
            return 502, "engine_failed"
        case _:
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
