"""What goes wrong between us and a server of completions, as errors with a remedy."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite

import aiohttp

from conviction.display import quoted
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineUnavailableError,
    StreamError,
    TemporarilyUnavailableError,
)

_OVERFLOW_WORDS = (
    b"exceed_context_size",
    b"context_length_exceeded",
    b"context length",
    b"context size",
    b"context window",
    b"maximum context",
    b"max_model_len",
)
_UNAUTHORISED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY)
_REDIRECTS = range(300, 400)
OTHERS_GO_ON = "Other traces go on; if all fail, look into the server's log."


@dataclass(frozen=True, slots=True)
class Failures:
    """Names the failures of one server; its key, the `secret`, never appears in a message."""

    base_url: str
    secret: str | None

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> EngineError:
        """The error for an answer other than 200."""
        if status in _REDIRECTS:
            return EngineUnavailableError(
                tried=f"ask {self.base_url}",
                found=f"it sends us on to {self._clean(headers.get('Location', 'nowhere'))}",
                remedy="Use that address if you trust it; redirects are not followed, because "
                "they could carry the key to a stranger.",
            )
        kind, remedy = self._refusal(status, body)
        wait = _seconds_to_wait(headers.get("Retry-After", ""))
        asks = "" if wait is None else f"; it asks us to wait {wait:,.0f} s"
        error = kind(
            tried=f"ask {self.base_url}",
            found=f"status {status}: {_message(body, self.secret) or 'no reason given'}{asks}",
            remedy=remedy,
        )
        if isinstance(error, TemporarilyUnavailableError):
            error.busy = status in _BUSY or status == HTTPStatus.SERVICE_UNAVAILABLE
            error.wait = wait
        return error

    def _refusal(self, status: int, body: bytes) -> tuple[type[EngineError], str]:
        kind: type[EngineError] = EngineUnavailableError
        if status in _UNAUTHORISED and self.secret:
            remedy = "Give the key that belongs to this server."
        elif status in _UNAUTHORISED:
            remedy = (
                "The server wants a key: put it into CONVICTION_API_KEY, or name a file with "
                "--api-key-file; in a program, give api_key."
            )
        elif status == HTTPStatus.NOT_FOUND:
            remedy = "Check the model's name, and the address: most servers want it to end in /v1."
        elif status in _BUSY and b"insufficient_quota" in body:
            remedy = "Raise the quota of this key, or use another one."
        elif status in _BUSY:
            kind = TemporarilyUnavailableError
            remedy = "Wait a little, or run fewer traces at once."
        elif status == HTTPStatus.NOT_IMPLEMENTED:
            remedy = "The server does not offer this; use another one."
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = TemporarilyUnavailableError
            remedy = "Look into the server's log, and try again later."
        elif any(words in body.lower() for words in _OVERFLOW_WORDS):
            kind = ContextOverflowError
            remedy = (
                "Shorten the question, lower --max-tokens, or give the server a larger context."
            )
        else:
            kind = EngineError
            remedy = "The server refuses a setting: change it, or use another server."
        return kind, remedy

    def not_a_stream(self, content_type: str, body: bytes) -> EngineError:
        """The error for a 200 that holds no stream of events."""
        said = _message(body, self.secret) or "nothing"
        # A server that reports its trouble this way may be well again when asked once more;
        # whatever else answers in a page or a file will do so every time.
        in_trouble = content_type.startswith("application/json")
        return (StreamError if in_trouble else EngineUnavailableError)(
            tried=f"read a stream from {self.base_url}",
            found=f"it answered with {self._clean(content_type) or 'no content type'}: {said}",
            remedy="Check that the address is that of a server of completions.",
        )

    def unreachable(self, error: Exception) -> EngineUnavailableError:
        """The error for a request that got no answer."""
        kind, tried = EngineUnavailableError, f"reach {self.base_url}"
        match error:
            case aiohttp.ClientSSLError():
                tried += " safely"
                remedy = (
                    "Mend the server's certificate, or add its authority to those that this "
                    "machine trusts (SSL_CERT_FILE names a file of them)."
                )
            case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | ValueError():
                tried = f"use {self.base_url!r} as a server's address"
                remedy = "Give an address such as http://127.0.0.1:8000/v1."
            case aiohttp.ClientConnectorDNSError():
                remedy = "Check the name in the address."
            case _:
                kind = TemporarilyUnavailableError
                tls = ", and that it speaks TLS" if self.base_url[:6] == "https:" else ""
                remedy = f"Check that the server runs, and its address{tls}."
        return kind(tried=tried, found=self._reason(error), remedy=remedy)

    def broken(self, why: str | Exception) -> StreamError:
        """The error for a stream that was cut, or cannot be read on."""
        return StreamError(
            tried=f"read a trace from {self.base_url}",
            found=why if isinstance(why, str) else self._reason(why),
            remedy=OTHERS_GO_ON,
        )

    def silent(self, seconds: float) -> StreamError:
        """The error for a stream that stalled."""
        return StreamError(
            tried=f"read a trace from {self.base_url}",
            found=f"not a byte came within {seconds:g} s",
            remedy="If the server is only slow, allow it more time; if something between holds "
            "streams back until they are complete, go around it.",
        )

    def _reason(self, error: Exception) -> str:
        found = str(error)
        match error:
            case aiohttp.ConnectionTimeoutError():
                found = "the connection was not accepted in time"
            case TimeoutError():
                found = "not a byte came in the time allowed"
            case aiohttp.ClientHttpProxyError(status=status):
                found = f"the proxy refuses with status {status}"
            case aiohttp.ClientResponseError(message=message):
                # Its text has the address of the proxy, and the password that may stand there.
                found = message
            case aiohttp.ClientSSLError():
                pass
            case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
                found = os.strerror(number).lower()
            case _:
                pass
        return self._clean(found) or type(error).__name__

    def _clean(self, text: str) -> str:
        return quoted(text, self.secret)


def _seconds_to_wait(value: str) -> float | None:
    """What Retry-After says, which is a number of seconds or a date."""
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if isfinite(seconds) else None
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def error_message(error: object, secret: str | None) -> str:
    """The words in an error object, however the server shapes it."""
    try:
        match error:
            case {"message": str(words)} | {"detail": str(words)} | {"error": str(words)}:
                return quoted(words, secret)
            case {"error": object() as inner}:
                return error_message(inner, secret)
            case _:
                return quoted(str(error), secret)
    except RecursionError:
        return "a message nested too deeply to be shown"


def _message(body: bytes, secret: str | None) -> str:
    try:
        return error_message(json.loads(body), secret)
    except (ValueError, RecursionError):
        return quoted(body, secret)
