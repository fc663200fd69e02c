"""What stands in front of the routes: keys, names, web pages, sizes, headers, the log."""

import logging
import re
from pathlib import Path
from time import process_time
from typing import Any

import anyio
import numpy as np
import pytest
from server_app import SECONDS, Served, asking, engine_of, served
from starlette.datastructures import Headers

from conviction.cli.serve import logging_to_stderr
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import EngineUnavailableError, InvalidSettingError
from conviction.server.access import check_bound, host_check, read_keys, readable_by_others
from conviction.server.app import create_app
from conviction.server.failures import RequestError
from conviction.server.settings import Settings

KEYS = {"a-key-of-ann": "ann", "a-key-of-bob": "bob"}


WORDS = {"tried": "ask the\nserver", "found": "\x1b[2Jforged\r\nline", "remedy": "Retry."}


async def raw(server: Served, request: bytes) -> bytes:
    """What comes back for bytes that no client would send."""
    host, port = server.url.removeprefix("http://").split(":")
    with anyio.fail_after(SECONDS):
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(request)
            return await stream.receive(65536)


@pytest.mark.anyio
@pytest.mark.parametrize("header", [None, "Bearer wrong-key", "Basic a-key-of-ann", "Bearer"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/api/runs", "/v1/chat/completions"])
async def test_without_a_right_key_nothing_is_told(path: str, header: str | None) -> None:
    async with served(engine_of(7), keys=KEYS) as server:
        headers = {} if header is None else {"authorization": header}
        answer = await server.http.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.anyio
async def test_every_key_opens_and_health_needs_none() -> None:
    async with served(engine_of(7), keys=KEYS) as server:
        for key in KEYS:
            answer = await server.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        assert (await server.http.get("/health")).status_code == 200
        assert (await server.http.get("/docs")).status_code == 200


@pytest.mark.anyio
async def test_keys_are_in_no_answer_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(engine_of(7), keys=KEYS) as server:
        said: list[str] = [repr(server.service.settings)]
        for key in (*KEYS, "a-key-of-nobody"):
            headers = {"authorization": f"Bearer {key}"}
            for path in ("/v1/models", "/openapi.json", "/metrics", "/health"):
                answer = await server.http.get(path, headers=headers)
                said += [answer.text, str(answer.headers)]
    text = "".join(said) + caplog.text
    assert "a-key-of" not in text
    assert "ann GET /v1/models 200" in caplog.text


def test_keys_come_from_a_file_with_names_or_without(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nann  first-key-1\n\nsecond-key-2\n", encoding="utf-8")
    assert read_keys(file) == {"first-key-1": "ann", "second-key-2": "key-2"}


def test_it_is_known_whether_others_can_read_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key-1", encoding="utf-8")
    found: list[bool] = []
    for mode in (0o600, 0o640, 0o604):
        file.chmod(mode)
        found.append(readable_by_others(file))
    assert found == [False, True, True]


def test_keys_come_from_the_environment_where_there_is_no_file() -> None:
    found = read_keys(None, {"CONVICTION_SERVER_KEYS": "first-key-1,bob second-key-2"})
    assert found == {"first-key-1": "key-1", "second-key-2": "bob"}
    assert read_keys(None, {}) == {}


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "a b first-key-1\n", "schlüssel-1\n"])
def test_a_file_without_usable_keys_is_refused_and_no_key_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettingError) as raised:
        read_keys(file)
    assert str(file) in raised.value.tried
    for word in text.split():
        assert len(word) < 5 or word not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bound(host, {})


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "192.168.1.5", "example.org", ""],  # noqa: S104  # nothing is bound
)
def test_what_others_can_reach_needs_keys(host: str) -> None:
    with pytest.raises(InvalidSettingError, match="client-keys"):
        check_bound(host, {})
    check_bound(host, KEYS)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8008", "127.0.0.1.evil.example", ""]
)
async def test_a_name_that_is_not_its_own_is_refused(name: str) -> None:
    async with served(engine_of(7)) as server:
        answer = await server.http.get("/v1/models", headers={"host": name})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("localhost", "localhost"),
        ("localhost", "evil.example"),
        ("[::1].evil",),
        ("[::1]evil:80",),
        ("[::1",),
        ("localhost:",),
        ("localhost:80:90",),
        ("localhost:port",),
        ("localhost:123456",),
        ("user@localhost",),
        ("localhost@evil.example",),
        ("localhost:80@evil.example",),
        ("localhost, evil.example",),
        ("localhost/",),
        ("localhost\u0660",),
        ("localhost\n",),
        ("",),
    ],
)
def test_anything_but_one_name_with_perhaps_a_port_is_refused(given: tuple[str, ...]) -> None:
    check = host_check(["localhost", "[::1]", "[::1].evil"])
    headers = Headers(raw=[(b"host", one.encode()) for one in given])
    with pytest.raises(RequestError, match="--allow-host"):
        check({}, headers)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["localhost:1", "LOCALHOST", "[::1]:8008", "think.example"])
async def test_its_own_names_are_taken(name: str) -> None:
    async with served(engine_of(7), hosts=("think.example",)) as server:
        assert (await server.http.get("/v1/models", headers={"host": name})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("own", 200),
        ("https://chat.example", 200),
        ("https://evil.example", 403),
        ("http://localhost:1", 403),
        ("http://[", 403),
        ("null", 403),
    ],
)
async def test_only_pages_that_may_can_make_it_think(origin: str | None, status: int) -> None:
    async with served(engine_of(7), origins=("https://chat.example",)) as server:
        headers = {} if origin is None else {"origin": server.url if origin == "own" else origin}
        address = "/v1/chat/completions"
        answer = await server.http.post(address, json=asking(), headers=headers)
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == ("https://chat.example" if origin == "https://chat.example" else None)


@pytest.mark.anyio
async def test_browsers_are_told_of_no_other_page_by_default() -> None:
    preflight = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    async with served(engine_of(7)) as server:
        answer = await server.http.options("/v1/chat/completions", headers=preflight)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    async with served(engine_of(7), origins=("https://chat.example",), keys=KEYS) as server:
        answer = await server.http.options("/v1/chat/completions", headers=preflight)
    # The browser asks before it sends the key.
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"


@pytest.mark.anyio
@pytest.mark.parametrize("origin", ["*", "https://chat.example"])
async def test_pages_that_may_use_the_api_see_no_runs_and_begin_none(origin: str) -> None:
    page = {"origin": "https://chat.example"}
    preflight = page | {"access-control-request-method": "DELETE"}
    async with served(engine_of(7), origins=(origin,)) as server:
        asked = await server.http.post("/v1/chat/completions", json=asking(), headers=page)
        assert asked.status_code == 200
        assert "access-control-allow-origin" in asked.headers
        run = asked.json()["conviction"]["run"]
        for path in ("/api/runs", f"/api/runs/{run}", f"/api/runs/{run}/export", "/metrics"):
            for how, headers in (("GET", page), ("OPTIONS", preflight)):
                answer = await server.http.request(how, path, headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control")]
        begun = await server.http.post("/api/runs", json={"question": "x"}, headers=page)
        ended = await server.http.delete(f"/api/runs/{run}", headers=page)
    assert (begun.status_code, ended.status_code) == (403, 403)


@pytest.mark.anyio
@pytest.mark.parametrize(("proxies", "address"), [((), "127.0.0.1"), (("127.0.0.1",), "10.9.8.7")])
async def test_only_a_named_proxy_is_believed(
    caplog: pytest.LogCaptureFixture, proxies: tuple[str, ...], address: str
) -> None:
    caplog.set_level(logging.INFO)
    headers = {"x-forwarded-for": "10.9.8.7", "x-forwarded-proto": "https"}
    async with served(engine_of(7), proxies=proxies) as server:
        await server.http.get("/health", headers=headers)
        # A redirect repeats the scheme that the server believes to be called by.
        moved = await server.http.get("/health/", headers=headers)
    assert f"{address} - GET /health 200" in caplog.text
    assert moved.headers["location"].startswith("https:" if proxies else "http:")


@pytest.mark.anyio
async def test_a_form_of_a_web_page_cannot_ask() -> None:
    engine = engine_of(7)
    async with served(engine) as server:
        headers = {"content-type": "text/plain"}
        body = b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}]}'
        answer = await server.http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert engine.generated == []


@pytest.mark.anyio
async def test_a_large_request_is_refused_by_its_declared_size_before_it_is_sent() -> None:
    async with served(engine_of(7), ceilings={"body_bytes": 1000}) as server:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n"
        )
        answer = await raw(server, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


@pytest.mark.anyio
async def test_a_large_request_in_pieces_is_refused_when_it_grows_too_large() -> None:
    sent = 0

    async def pieces() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    async with served(engine_of(7), ceilings={"body_bytes": 10_000}) as server:
        answer = await server.http.post("/v1/chat/completions", content=pieces())
    assert answer.status_code == 413


@pytest.mark.anyio
async def test_a_request_of_just_the_size_is_taken() -> None:
    async with served(engine_of(7), ceilings={"body_bytes": 1000}) as server:
        text = '{"model": "scripted", "messages": [{"role": "user", "content": "x"}]}'.ljust(1000)
        headers = {"content-type": "application/json"}
        answer = await server.http.post("/v1/chat/completions", content=text, headers=headers)
    assert answer.status_code == 200


@pytest.mark.anyio
async def test_browsers_are_told_to_ask_nobody_else() -> None:
    async with served(engine_of(7)) as server:
        policy = (await server.http.get("/health")).headers["content-security-policy"]
        docs = await server.http.get("/docs")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in docs.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", docs.text)
    assert "<script" not in docs.text
    assert "/v1/chat/completions" in docs.text
    assert "conviction.budget" in docs.text


@pytest.mark.anyio
async def test_the_log_has_a_line_per_request_and_no_word_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(engine_of(7)) as server:
        await server.chat("My secret is 42", stream=True)
        await server.chat("My secret is 42", n=2)
        await server.http.get("/a%0a2026%20forged%20line")
    lines = [one.getMessage() for one in caplog.records if one.name == "conviction.server"]
    assert re.fullmatch(r"127\.0\.0\.1 - POST /v1/chat/completions 200 \d+\.\d{3}s", lines[0])
    assert " 400 " in lines[1]
    assert "forged" in lines[2]
    assert "\n" not in lines[2]
    assert "secret" not in caplog.text
    assert "So it is" not in caplog.text


@pytest.mark.anyio
async def test_the_log_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failing = ScriptedEngine([Script("", np.zeros(0), fault=EngineUnavailableError(**WORDS))])
    async with served(failing, log_content=True) as server:
        await server.chat("One?\n2026-01-01 00:00:00 127.0.0.1 ann GET /v1 200\x1b[2J\x85\u2028")
        await server.http.get("/x%20200%200.001s%0d%0a%1b%5b2J%e2%80%a8")
    lines = [one.getMessage() for one in caplog.records if one.name == "conviction.server"]
    assert any("forged" in one for one in lines)
    assert all(one.isprintable() for one in lines)
    assert re.fullmatch(r"\S+ - GET /x%20200%200\.001s\S+ 404 \d\.\d+s", lines[-1])


@pytest.mark.anyio
async def test_no_request_fills_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served(engine_of(7)) as server:
        headers = {b"baggage": b"forged\x9b2J," * 900}
        answer = await server.http.request("X" * 2000, "/" + "a" * 5000, headers=headers)
        assert answer.status_code == 404
    records = [one for one in caplog.records if one.name.startswith(("conviction", "opentele"))]
    lines = [one.getMessage() for one in records]
    assert any("/aaa" in line for line in lines)
    assert all(len(line) < 1000 and "forged" not in line for line in lines)


def test_what_else_is_logged_stays_on_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(quiet=False):
        error = ValueError("x\n2026-01-01 00:00:00 forged\x1b[2J")
        logging.getLogger("uvicorn.error").error("failed", exc_info=error)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith("failed")
    assert any("forged" in one for one in others)
    assert all(one.startswith("    ") and "\x1b" not in one for one in others)


@pytest.mark.anyio
async def test_questions_and_answers_are_logged_where_that_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with served(engine_of(7), log_content=True) as server:
        await server.chat("My secret is 42")
    assert "asked: My secret is 42" in caplog.text
    assert "answered: So it is. Answer: 7" in caplog.text


@pytest.mark.anyio
async def test_many_headers_are_read_in_linear_time() -> None:
    app = create_app(Settings(), engine_of(7))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_: object) -> None:
        pass

    async def seconds(count: int) -> float:
        headers = [(b"host", b"localhost"), *((b"a%d" % i, b"b") for i in range(count))]
        scope = {"type": "http", "method": "GET", "path": "/nothing", "headers": headers}
        began = process_time()
        await app(scope, receive, send)  # type: ignore[arg-type]
        return process_time() - began

    await seconds(1)
    few, many = [min([await seconds(count) for _ in range(5)]) for count in (1000, 4000)]
    assert many < 9 * few
