"""What must not leak: the key, and what an address or the environment holds."""

import asyncio
import logging
import shutil
import ssl
import subprocess
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from completion_events import (
    KEY,
    SOME,
    STOP,
    collect,
    event,
    failure,
    joined,
    played,
    position,
    stream,
)
from scripted_server import Received, Step, answer, chunked, serving

from conviction.answers import kind
from conviction.core import Question
from conviction.engines.base import Capabilities
from conviction.engines.openai import OpenAIEngine, Timeouts, http
from conviction.engines.openai.http import HttpClient
from conviction.errors import (
    AllTracesFailedError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
)
from conviction.policies import Majority
from conviction.thinking import deliberate

GOOD = stream(SOME, STOP)


# --- The key --------------------------------------------------------------------------------------

ECHOES: list[list[Step]] = [
    [answer("401 Unauthorized", f"wrong key {KEY}".encode())],
    [answer("403 Forbidden", f'{{"error": {{"message": "{KEY}"}}}}'.encode())],
    [answer("400 Bad Request", f'{{"odd": ["{KEY}"]}}'.encode())],
    [answer("503 Service Unavailable", KEY.encode())],
    # The beginning of it must not be left over where a message is cut.
    *([answer("401 Unauthorized", b"x" * length + KEY.encode())] for length in (290, 296, 299)),
    [answer("307 Temporary Redirect", b"", Location=f"http://elsewhere.test/?key={KEY}")],
    [answer("200 OK", KEY.encode(), "text/html")],
    [answer("200 OK", b"", f"text/{KEY}")],
    [answer("200 OK", f'{{"error": "{KEY}"}}'.encode())],
    [stream(SOME, {"error": {"message": f"wrong key {KEY}"}})],
    [stream(SOME, {"error": [KEY]})],
    [stream(SOME, end=f"data: {{{KEY}\n\n".encode())],
    [stream(SOME, end=b"data: {" + b"x" * 290 + KEY.encode() + b"\n\n")],
    [stream(SOME, event(finish=KEY))],
    [chunked(b"data: ") + f"{KEY}\r\n".encode()],
    [f"HTTP/1.1 {KEY}\r\n\r\n".encode()],
    [f"{KEY}\r\n\r\n".encode()],
    [f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode()],
]


@pytest.mark.anyio
@pytest.mark.parametrize("steps", ECHOES)
async def test_a_key_that_comes_back_from_the_server_is_never_shown(
    steps: list[Step], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        serving(steps) as server,
        OpenAIEngine(server.url, api_key=KEY, retries=0) as engine,
    ):
        with pytest.raises(EngineError) as caught, anyio.fail_after(5):
            await collect(engine)
        shown = [*map(str, server.requests), repr(engine), engine.name, repr(engine.servers)]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    error = caught.value
    told = [str(error), repr(error), *vars(error).values(), caplog.text, *shown[1:]]
    for text in map(str, told):
        assert KEY[:8] not in text


@pytest.mark.anyio
async def test_neither_a_verdict_nor_a_traceback_holds_the_key() -> None:
    def play(received: Received) -> list[Step]:
        if received.body is None:
            return [answer("200 OK", b"{}")]
        if received.body["seed"] % 2:
            return [stream(event("= 4", position(-1.0, -1.0)), {"error": {"message": KEY}})]
        return [stream(event("= 4", position(-1.0, -1.0)), STOP)]

    question = Question.ask("2 + 2")
    async with serving(play) as server, OpenAIEngine(server.url, api_key=KEY) as engine:
        engine._capabilities = Capabilities("m", 2, 9)
        verdict = await deliberate(
            question, engine=engine, policy=Majority(budget=12), answers=kind("number")
        )
        assert 0 < sum(trace.restarts == 2 for trace in verdict.traces) < 12
        assert "reported an error" in " ".join(verdict.warnings)
        assert KEY not in repr(verdict) + str(verdict.to_dict()) + verdict._repr_html_()

        server.play = lambda _: [answer("401 Unauthorized", KEY.encode())]
        with pytest.raises(AllTracesFailedError) as caught:
            await deliberate(
                question, engine=engine, policy=Majority(budget=2), answers=kind("number")
            )
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.anyio
@pytest.mark.parametrize(("key", "remedy"), [(None, "The server wants a key"), ("k", "belongs to")])
async def test_a_missing_key_and_a_wrong_one_have_their_own_advice(
    key: str | None, remedy: str
) -> None:
    steps: list[Step] = [answer("401 Unauthorized", b"")]
    error = await failure(steps, EngineUnavailableError, api_key=key)
    assert remedy in error.remedy


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nHost: elsewhere", f"„{KEY}“", "\0"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        OpenAIEngine("http://127.0.0.1:9/v1", api_key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "key", "warned"),
    [
        ("http://models.test/v1", KEY, True),
        ("http://models.test/v1", None, False),
        ("https://models.test/v1", KEY, False),
        ("http://127.0.0.1:8000/v1", KEY, False),
        ("http://[::1]:8000/v1", KEY, False),
        ("http://localhost/v1", KEY, False),
        ("http://localhost.models.test/v1", KEY, True),
    ],
)
def test_a_key_that_travels_in_the_open_is_told(url: str, key: str | None, *, warned: bool) -> None:
    assert HttpClient(url, api_key=key, timeouts=Timeouts()).sends_key_in_the_open is warned


# --- Where requests go ----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"]
)
async def test_a_redirect_is_not_followed(status: str) -> None:
    async with serving([GOOD]) as other:
        steps: list[Step] = [answer(status, b"", Location=other.url)]
        error = await failure(steps, EngineUnavailableError, api_key=KEY)
        assert other.url in error.found
        assert not other.requests


@pytest.mark.anyio
async def test_a_proxy_for_the_outside_world_is_not_asked_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert joined(await played([GOOD])) == ("a", [1.0])


@pytest.mark.anyio
@pytest.mark.parametrize("user", ["", "me:proxy-password@"])
async def test_the_outside_world_is_reached_through_the_proxy_and_without_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password not-for-models\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving([GOOD]) as proxy:
        address = proxy.url.removesuffix("/v1").replace("//", f"//{user}")
        monkeypatch.setenv("http_proxy", address)
        async with OpenAIEngine("http://models.test/v1", api_key=KEY) as engine:
            assert joined(await collect(engine)) == ("a", [1.0])
        async with OpenAIEngine("http://models.test/v1") as engine:
            await collect(engine)
    with_key, without = (request.headers.get("authorization") for request in proxy.requests)
    assert (with_key, without) == (f"Bearer {KEY}", None)
    assert proxy.requests[0].path == "http://models.test/v1/chat/completions"
    assert ("proxy-authorization" in proxy.requests[0].headers) is bool(user)


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("http://models.test/v1", "http://proxy.test:1"),
        ("https://models.test/v1", None),
        ("http://inside.test/v1", None),
        ("http://inside.test:8000/v1", None),
        ("http://deep.inside.test/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://[::1]:8000/v1", None),
    ],
)
def test_servers_inside_are_reached_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, through: str | None
) -> None:
    for name in ("NO_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.test:1")
    monkeypatch.setenv("no_proxy", "inside.test")
    assert http._proxy(urlsplit(url)) == through


@pytest.mark.anyio
async def test_a_proxy_is_not_told_the_key_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving([refusal]) as proxy:
        address = proxy.url.removesuffix("/v1").replace("//", "//me:proxy-password@")
        monkeypatch.setenv("https_proxy", address)
        async with OpenAIEngine("https://models.test/v1", api_key=KEY, retries=0) as engine:
            with pytest.raises(EngineUnavailableError) as caught, anyio.fail_after(5):
                await collect(engine)
    assert "407" in str(caught.value)
    assert "proxy-password" not in str(caught.value)
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
    assert KEY not in str(proxy.requests)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://[", "Invalid IPv6"),
        ("no address", "http://"),
        ("", "http://"),
        ("ftp://h/v1", "http://"),
        ("http:///v1", "no host"),
        ("http://h:0/v1", "port 0"),
        ("http://h:99999/v1", "Port out of range"),
        ("http://h:eighty/v1", "could not be cast"),
        ("http://h/v1?api-version=5", "cannot hold a ?"),
        ("http://me:hush-hush@h/v1", "name or a password"),
        ("http://hush-hush@h/v1", "name or a password"),
        ("http://me:hush-hush@h:99999/v1", "name or a password"),
        ("http://me:hush-hush@[h/v1", "malformed"),
        ("http://me:hush/hush-hush@h/v1", "malformed"),
        ("ftp://me:hush-hush@h/v1", "http://"),
        ("http://h/v1?key=hush-hush", "cannot hold a ?"),
    ],
)
async def test_an_unusable_address_is_refused_and_what_is_secret_in_it_not_shown(
    url: str, words: str
) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        async with OpenAIEngine(url):
            pass
    assert words in caught.value.found + caught.value.remedy
    assert "hush-hush" not in str(caught.value)


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A certificate for this machine that nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [openssl, "req", "-x509", "-days", "2", *curve, *name, *made],
        check=True,
        capture_output=True,
        timeout=20,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.anyio
async def test_a_certificate_that_nobody_trusts_ends_the_talk_before_the_key_is_sent(
    tls: ssl.SSLContext,
) -> None:
    async with (
        serving([GOOD], tls=tls) as server,
        OpenAIEngine(server.url, api_key=KEY) as engine,
    ):
        with pytest.raises(EngineUnavailableError, match="certificate") as caught:
            await collect(engine)
        assert not server.requests
    assert type(caught.value) is EngineUnavailableError
    assert "SSL_CERT_FILE" in caught.value.remedy


@pytest.mark.anyio
async def test_a_server_without_tls_is_not_spoken_to_where_tls_was_asked_for() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    heard: list[bytes] = []
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with OpenAIEngine(f"https://127.0.0.1:{port}/v1", api_key=KEY) as engine:
            with pytest.raises(EngineUnavailableError, match="safely"), anyio.fail_after(5):
                await collect(engine)
    assert len(heard) == 1
    assert KEY.encode() not in heard[0]
