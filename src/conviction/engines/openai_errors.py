"""What goes wrong between us and a server of completions, as errors with a remedy."""

import json
from collections.abc import Mapping
from http import HTTPStatus

import httpx2

from conviction.engines.openai_events import error_message, quoted
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineUnavailableError,
    StreamError,
)

_OVERFLOW_WORDS = (
    "exceed_context_size",
    "context_length_exceeded",
    "context length",
    "context size",
    "context window",
    "maximum context",
)
_UNAUTHORISED = (401, 403)
_REDIRECTS = range(300, 400)


class Failures:
    """Names the failures of one server; its key never appears in a message.

    Args:
        base_url: Address of the server, as in "http://127.0.0.1:8000/v1".
        api_key: The key that is sent, if any.
    """

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self._base_url = base_url
        self._api_key = api_key

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> EngineError:
        """The error for an answer other than 200."""
        if status in _REDIRECTS:
            return EngineUnavailableError(
                tried=f"ask {self._base_url}",
                found=f"it sends us on to {self._clean(headers.get('location', 'nowhere'))}",
                remedy="Use that address if you trust it; redirects are not followed, because "
                "they could carry the key to a stranger.",
            )
        kind, remedy = self._refusal(status, body)
        return kind(
            tried=f"ask {self._base_url}",
            found=f"status {status}: {self._clean(_message(body)) or 'no reason given'}",
            remedy=remedy,
        )

    def _refusal(self, status: int, body: bytes) -> tuple[type[EngineError], str]:
        if status in _UNAUTHORISED:
            return EngineUnavailableError, (
                "Give the key that belongs to this server."
                if self._api_key
                else "The server wants a key: give one."
            )
        if status == HTTPStatus.NOT_FOUND:
            return EngineUnavailableError, (
                "Check the model's name, and the address: most servers want it to end in /v1."
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return EngineUnavailableError, "Wait a little, or run fewer traces at once."
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return EngineUnavailableError, "Look into the server's log, and try again later."
        if _is_overflow(body):
            return ContextOverflowError, (
                "Shorten the question, lower --max-tokens, or give the server a larger context."
            )
        return EngineError, "The server refuses a setting: change it, or use another server."

    def not_a_stream(self, content_type: str, body: bytes) -> StreamError:
        """The error for a 200 that holds no stream of events."""
        said = self._clean(_message(body))
        return StreamError(
            tried=f"read a stream from {self._base_url}",
            found=f"it answered with {content_type or 'no content type'}: {said or 'nothing'}",
            remedy="Check that the address is that of a server of chat completions.",
        )

    def unreachable(self, error: httpx2.HTTPError | httpx2.InvalidURL) -> EngineUnavailableError:
        """The error for a request that got no answer."""
        return EngineUnavailableError(
            tried=f"reach {self._base_url}",
            found=self._reason(error),
            remedy="Check that the server runs, and its address.",
        )

    def broken(self, error: httpx2.HTTPError) -> StreamError:
        """The error for a stream that was cut, or stalled."""
        return StreamError(
            tried=f"read a trace from {self._base_url}",
            found=self._reason(error),
            remedy="Other traces go on; if all fail, look into the server's log.",
        )

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx2.ConnectTimeout):
            return "nobody took the connection in time"
        if isinstance(error, httpx2.TimeoutException):
            return "not a byte came in the time allowed"
        return self._clean(str(error)) or type(error).__name__

    def _clean(self, text: str) -> str:
        text = quoted(text)
        return text.replace(self._api_key, "…") if self._api_key else text


def _message(body: bytes) -> str:
    try:
        return error_message(json.loads(body))
    except (ValueError, RecursionError):
        return quoted(body)


def _is_overflow(body: bytes) -> bool:
    text = body.decode("utf-8", "replace").lower()
    return any(word in text for word in _OVERFLOW_WORDS)
