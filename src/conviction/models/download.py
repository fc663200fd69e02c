"""Fetches a file over HTTP, and continues where an earlier attempt broke off."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from conviction.models.cache import (
    Kept,
    Limits,
    Partial,
    SourceFailedError,
    Wanted,
    Watcher,
    require_room,
)
from conviction.models.catalogue import HubFile, WebFile, is_loopback, may_fetch

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18})")
# A connection that brings fewer bytes per second than this has stalled.
_SLOWEST = 256
# Failed attempts are counted anew once the file has grown by this much.
_LEAST_GAIN = 1 << 20


class _InterruptedError(Exception):
    """The connection brought no more; another one may."""


def download(
    source: HubFile | WebFile, wanted: Wanted, partial: Partial, limits: Limits, watcher: Watcher
) -> None:
    """Fetch from `source` into `partial`, to the end; a SourceFailedError says why it cannot."""
    transfer = _Transfer(source, wanted, partial, limits, watcher)
    failed, reached = 0, partial.kept(source.label).size
    with transfer.client() as client:
        while True:
            try:
                return transfer.attempt(client)
            except (httpx2.HTTPError, httpx2.InvalidURL, _InterruptedError) as error:
                failed, size = failed + 1, partial.kept(source.label).size
                if size >= reached + _LEAST_GAIN:
                    failed, reached = 1, size
                if failed >= limits.attempts or not _may_pass(error):
                    raise SourceFailedError(_reason(error, limits)) from None
            time.sleep(limits.pause * min(2 ** (failed - 1), 8))


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


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One file from one address; as many attempts as it takes."""

    source: HubFile | WebFile
    wanted: Wanted
    partial: Partial
    limits: Limits
    watcher: Watcher

    def client(self) -> httpx2.Client:
        headers = {
            "User-Agent": f"conviction/{version('conviction')}",
            "Accept-Encoding": "identity",  # ranges count the bytes as they are stored
        }
        # Models of the catalogue are public; a stale token would only lock users out.
        if isinstance(self.source, HubFile) and not self.wanted.sha256 and (token := hub_token()):
            headers["Authorization"] = f"Bearer {token}"
        try:
            return httpx2.Client(
                timeout=httpx2.Timeout(self.limits.read, connect=self.limits.connect),
                follow_redirects=True,
                max_redirects=10,
                headers=headers,
                event_hooks={"request": [self._check]},
            )
        except (ValueError, ImportError, OSError) as error:
            # Proxies and certificates come from the user's environment.
            raise SourceFailedError(f"the network settings cannot be used ({error})") from None

    def _check(self, request: httpx2.Request) -> None:
        # Redirects come through here too. Another server must not send us to a service of this
        # machine, so plain http is for those who began on this machine.
        from_loopback = is_loopback(urlsplit(self.source.url).hostname or "")
        if not may_fetch(str(request.url), from_loopback=from_loopback):
            where = f"{request.url.scheme}://{request.url.host}"
            raise SourceFailedError(f"it leads to {where}, and only https is trusted")

    def attempt(self, client: httpx2.Client) -> None:
        """Ask for what is missing, and write it."""
        kept = self._resumable()
        if kept.size and kept.size == self.wanted.size:
            return
        headers = {"Range": f"bytes={kept.size}-"} if kept.size else {}
        if kept.size and kept.tag:
            headers["If-Range"] = kept.tag
        with client.stream("GET", self.source.url, headers=headers) as response:
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._write(response, *self._begin(response, kept))
            elif _range(response)[1] != kept.size:
                self.partial.discard()
                raise _InterruptedError("the file on the server has changed")

    def _resumable(self) -> Kept:
        kept = self.partial.kept(self.source.label)
        # Without a hash to decide and a tag to compare, old and new bytes may not belong
        # together.
        sure = kept.tag or self.wanted.sha256
        return kept if sure and kept.size <= (self.wanted.size or kept.size) else Kept()

    def _begin(self, response: httpx2.Response, kept: Kept) -> tuple[int, int | None]:
        """Where in the file the response begins, and how long the file is."""
        status, size = response.status_code, self.wanted.size
        answered = f"the server answered {status} {response.reason_phrase}"
        begin, total = 0, None
        if status in _BUSY:
            raise _InterruptedError(answered)
        if status == HTTPStatus.PARTIAL_CONTENT:
            begin, total = _range(response)
            tag = _tag(response)
            if begin is None or begin != kept.size or (kept.tag and tag and tag != kept.tag):
                self.partial.discard()
                raise _InterruptedError("the server delivered another range than was asked for")
        elif status == HTTPStatus.OK:
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
        else:
            private = isinstance(self.source, HubFile) and status in (401, 403) and not size
            hint = "; a private or gated repository needs HF_TOKEN" if private else ""
            raise SourceFailedError(answered + hint)
        if size is not None and total not in (None, size):
            raise SourceFailedError(f"the server's file has {total:,} bytes instead of {size:,}")
        if total is not None:
            require_room(self.partial.path.parent, total - begin)
        if begin == 0:
            self.partial.restart(self.source.label, _tag(response))
        return begin, total if total is not None else size

    def _write(self, response: httpx2.Response, begin: int, total: int | None) -> None:
        done, what = begin, f"Fetching {self.wanted.name}"
        # Notices a connection that only trickles, which no read timeout does.
        since, count = time.monotonic(), 0
        with self.partial.writing(begin) as file:
            self.watcher.progress(done, total, what)
            for block in response.iter_raw():
                file.write(block)
                done += len(block)
                count += len(block)
                if total is not None and done > total:
                    raise SourceFailedError(f"the server sent more than {total:,} bytes")
                self.watcher.progress(done, total, what)
                if (passed := time.monotonic() - since) >= self.limits.read:
                    if count < _SLOWEST * self.limits.read:
                        raise _InterruptedError(f"only {count} bytes came in {passed:.0f} s")
                    since, count = time.monotonic(), 0
        if done < (total or 0):
            raise _InterruptedError(f"the connection ended at {done:,} of {total:,} bytes")


def hub_token() -> str | None:
    """The user's token for the Hugging Face hub, from where its own tools keep it."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    token = os.environ.get("HF_TOKEN")
    with suppress(OSError, UnicodeDecodeError):
        token = token or path.read_text("utf-8")
    return (token or "").strip() or None


def _range(response: httpx2.Response) -> tuple[int | None, int | None]:
    """The first byte and the length of the file, from Content-Range; None where it is absent."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        return None, None
    return int(match[1]) if match[1] else None, int(match[2])


def _tag(response: httpx2.Response) -> str | None:
    tag = response.headers.get("etag")
    return None if tag is None or tag.startswith("W/") else tag
