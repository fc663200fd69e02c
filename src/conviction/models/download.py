"""Fetches a file over HTTP, and continues where an earlier attempt broke off."""

import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from urllib.parse import urlsplit

import httpx2
import stamina

from conviction.models.base import Limits, SourceFailedError, Wanted, Watcher
from conviction.models.disk import require_room
from conviction.models.partial import Kept, Partial
from conviction.models.sources import HubFile, WebFile, is_loopback, may_fetch

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18})")
# Retries are part of the work; without a handler, logging would print them raw on stderr.
logging.getLogger("stamina").addHandler(logging.NullHandler())
# A connection that brings fewer bytes per second than this has stalled.
_SLOWEST = 256
# A round of attempts has to bring the file forward by this much for another one to begin.
_LEAST_GAIN = 1 << 20


class _InterruptedError(Exception):
    """The connection brought no more; another one may."""


def download(
    source: HubFile | WebFile, wanted: Wanted, partial: Partial, limits: Limits, watcher: Watcher
) -> None:
    """Fetch from `source` into `partial`, to the end.

    Raises:
        SourceFailedError: the source cannot be reached, refuses, or breaks off again and again.
        DownloadError: the disk has too little room for it.
        OSError: the disk does not take it.
    """
    transfer = _Transfer(source, wanted, partial, limits, watcher)
    with _client(source.url, limits) as client:
        while True:
            before = partial.kept(source.label).size
            try:
                _with_retries(lambda: transfer.attempt(client), limits)
            except (httpx2.HTTPError, httpx2.InvalidURL, _InterruptedError) as error:
                if partial.kept(source.label).size < before + _LEAST_GAIN:
                    raise SourceFailedError(_reason(error, limits)) from None
            else:
                return


def _client(url: str, limits: Limits) -> httpx2.Client:
    try:
        return httpx2.Client(
            timeout=httpx2.Timeout(limits.read, connect=limits.connect),
            follow_redirects=True,
            max_redirects=10,
            headers={
                "User-Agent": f"conviction/{version('conviction')}",
                "Accept-Encoding": "identity",  # ranges count the bytes as they are stored
            },
            event_hooks={"request": [_only_to_trusted(url)]},
        )
    except (ValueError, ImportError, OSError) as error:
        # Proxies and certificates come from the user's environment.
        raise SourceFailedError(f"the network settings cannot be used ({error})") from None


def _with_retries(attempt: Callable[[], None], limits: Limits) -> None:
    for retry in stamina.retry_context(
        on=_may_pass,
        attempts=limits.attempts,
        timeout=None,  # large files take their time; the waits within are bounded
        wait_initial=limits.pause,
        wait_max=limits.pause * 8,
        wait_jitter=limits.pause / 2,
    ):
        with retry:
            attempt()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt makes sense; where no connection comes about, the next source."""
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.ConnectTimeout):
        return False
    return isinstance(error, httpx2.TransportError | _InterruptedError)


def _reason(error: Exception, limits: Limits) -> str:
    match error:
        case httpx2.ConnectTimeout():
            return f"no connection within {limits.connect:g} s"
        case httpx2.ReadTimeout():
            return f"nothing came for {limits.read:g} s"
        case httpx2.ConnectError():
            return f"no connection ({error})"
        case _:
            return str(error) or type(error).__name__


def _only_to_trusted(first: str) -> Callable[[httpx2.Request], None]:
    # Redirects come through here too. Another server must not send us to a service of this
    # machine, so plain http is for those who began on this machine.
    from_loopback = is_loopback(urlsplit(first).hostname or "")

    def check(request: httpx2.Request) -> None:
        if not may_fetch(str(request.url), from_loopback=from_loopback):
            where = f"{request.url.scheme}://{request.url.host}"
            raise SourceFailedError(f"it leads to {where}, and only https is trusted")

    return check


class _Transfer:
    """One file from one address; as many attempts as it takes."""

    def __init__(
        self,
        source: HubFile | WebFile,
        wanted: Wanted,
        partial: Partial,
        limits: Limits,
        watcher: Watcher,
    ) -> None:
        self._source, self._wanted, self._partial = source, wanted, partial
        self._limits, self._watcher = limits, watcher

    def attempt(self, client: httpx2.Client) -> None:
        """Ask for what is missing, and write it.

        Raises:
            SourceFailedError: the server refuses.
            httpx2.HTTPError: the connection broke.
            _InterruptedError: it stalled, or the server asks to come again.
        """
        kept = self._resumable()
        if kept.size and kept.size == self._wanted.size:
            return
        headers = {"Range": f"bytes={kept.size}-"} if kept.size else {}
        if kept.size and kept.tag:
            headers["If-Range"] = kept.tag
        with client.stream("GET", self._source.url, headers=headers) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._nothing_left(response, kept)
            else:
                self._write(response, *self._begin(response, kept))

    def _resumable(self) -> Kept:
        kept = self._partial.kept(self._source.label)
        # Without a hash to decide and a tag to compare, old and new bytes may not belong
        # together.
        sure = kept.tag or self._wanted.sha256
        return kept if sure and kept.size <= (self._wanted.size or kept.size) else Kept()

    def _nothing_left(self, response: httpx2.Response, kept: Kept) -> None:
        if _range(response)[1] != kept.size:
            self._partial.discard()
            raise _InterruptedError("the file on the server has changed")

    def _begin(self, response: httpx2.Response, kept: Kept) -> tuple[int, int | None]:
        """Where in the file the response begins, and how long the file is."""
        status = response.status_code
        if status in _BUSY:
            raise _InterruptedError(f"the server answered {status} {response.reason_phrase}")
        begin, total = 0, None
        if status == HTTPStatus.PARTIAL_CONTENT:
            begin, total = _range(response)
            tag = _tag(response)
            if begin is None or begin != kept.size or (kept.tag and tag and tag != kept.tag):
                self._partial.discard()
                raise _InterruptedError("the server delivered another range than was asked for")
        elif status == HTTPStatus.OK:
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
        else:
            raise SourceFailedError(f"the server answered {status} {response.reason_phrase}")
        if self._wanted.size is not None and total not in (None, self._wanted.size):
            raise SourceFailedError(
                f"the server's file has {total:,} bytes instead of {self._wanted.size:,}"
            )
        if total is not None:
            require_room(self._partial.path.parent, total - begin)
        if begin == 0:
            self._partial.restart(self._source.label, _tag(response))
        return begin, total if total is not None else self._wanted.size

    def _write(self, response: httpx2.Response, begin: int, total: int | None) -> None:
        done = begin
        what = f"Fetching {self._wanted.name}"
        pace = _Pace(self._limits.read)
        with self._partial.writing(begin) as file:
            self._watcher.progress(done, total, what)
            for block in response.iter_raw():
                file.write(block)
                done += len(block)
                if total is not None and done > total:
                    raise SourceFailedError(f"the server sent more than {total:,} bytes")
                self._watcher.progress(done, total, what)
                pace.check(len(block))
        if done < (total or 0):
            raise _InterruptedError(f"the connection ended at {done:,} of {total:,} bytes")


class _Pace:
    """Notices a connection that only trickles, which no read timeout does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since, self._count = time.monotonic(), 0

    def check(self, more: int) -> None:
        self._count += more
        now = time.monotonic()
        if now - self._since < self._seconds:
            return
        if self._count < _SLOWEST * self._seconds:
            raise _InterruptedError(f"only {self._count} bytes came in {now - self._since:.0f} s")
        self._since, self._count = now, 0


def _range(response: httpx2.Response) -> tuple[int | None, int | None]:
    """The first byte and the length of the file, from Content-Range; None where it is absent."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        return None, None
    return int(match[1]) if match[1] else None, int(match[2])


def _tag(response: httpx2.Response) -> str | None:
    tag = response.headers.get("etag")
    return None if tag is None or tag.startswith("W/") else tag
