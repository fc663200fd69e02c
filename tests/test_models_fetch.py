import errno
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction.errors import (
    DownloadError,
    HashMismatchError,
    InvalidSettingError,
    ModelError,
    NotAChatModelError,
)
from conviction.models import Catalogue, CatalogueModel, Limits, ModelStore
from conviction.models.cache import Partial
from conviction.models.catalogue import WebFile
from conviction.prompts import PromptStyle

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
FAST = Limits(connect=2, read=0.5, attempts=3, pause=0.01, part=30, lock=20)


def chat_model() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = {"general.architecture": "llama", "tokenizer.chat_template": "{{ messages }}"}
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, value in values.items():
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("weights") + struct.pack("<IQIQ", 1, 256, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(range(256)) * 4


@dataclass
class Reply:
    """How the server answers one request; what is not said is done as it should be."""

    content: bytes = CONTENT
    tag: str | None = '"one"'
    status: int = 200
    location: str | None = None
    ranges: bool = True
    heedless: bool = False
    shift: int = 0
    cut: int | None = None
    stall: float = 0.0
    trickle: int = 0
    length: bool = True


@dataclass
class Server:
    """Answers requests on loopback from a list of replies; the last one is for all others."""

    replies: list[Reply] = field(default_factory=lambda: [Reply()])
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str = "/files/model.gguf") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        return [request.get("Range") for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    script: Server
    ended: threading.Event

    def do_GET(self) -> None:
        script = self.script
        number = len(script.requests)
        script.requests.append({"path": self.path, **dict(self.headers)})
        self.answer(script.replies[min(number, len(script.replies) - 1)])

    def answer(self, reply: Reply) -> None:
        self.close_connection = True
        start, total = self.start_of(reply), len(reply.content)
        body = reply.content[start:]
        if reply.status != 200 or start == 0:
            self.send_response(reply.status)
        elif start < total:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + reply.shift}-{total - 1}/{total}")
        else:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
        if reply.location:
            self.send_header("Location", reply.location)
        if reply.tag:
            self.send_header("ETag", reply.tag)
        if reply.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.send(body, reply)

    def start_of(self, reply: Reply) -> int:
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range", reply.tag)
        if not asked or not reply.ranges or (condition != reply.tag and not reply.heedless):
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def send(self, body: bytes, reply: Reply) -> None:
        try:
            for i in range(reply.trickle):
                self.wfile.write(body[i : i + 1])
                self.ended.wait(0.02)
            self.wfile.write(body[reply.trickle : reply.cut])
            self.ended.wait(reply.stall)
        except OSError:
            pass  # the other side has gone, as some tests want

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as script:
        yield script


@contextmanager
def serving() -> Iterator[Server]:
    script, ended = Server(), threading.Event()
    handler = type("Scripted", (Handler,), {"script": script, "ended": ended})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        script.port = running.server_address[1]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield script
        ended.set()
        running.shutdown()
        thread.join(10)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def store_of(folder: Path, *urls: str, content: bytes = CONTENT, **limits: float) -> ModelStore:
    model = CatalogueModel(
        name="Tiny",
        file="tiny.gguf",
        size=len(content),
        sha256=sha256(content).hexdigest(),
        licence="Apache-2.0",
        prompt_style=PromptStyle.WORKED_EXAMPLES,
        sources=tuple(map(WebFile, urls)),
    )
    chosen = {**{name: getattr(FAST, name) for name in FAST.__slots__}, **limits}
    return ModelStore(folder / "models", Catalogue((model,), "Tiny"), Limits(**chosen))


@pytest.fixture
def store(tmp_path: Path, server: Server) -> ModelStore:
    return store_of(tmp_path, server.url())


def files_in(store: ModelStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


READY = {"tiny.gguf", "tiny.gguf.verified.json", "tiny.gguf.lock"}


def stop_at(count: int) -> Callable[[int, int | None, str], None]:
    """A progress that ends the fetching, as Ctrl-C does."""

    def progress(done: int, total: int | None, what: str) -> None:
        del total, what
        if done >= count:
            raise KeyboardInterrupt

    return progress


def test_a_file_is_fetched_verified_and_put_in_its_place(store: ModelStore) -> None:
    seen: list[tuple[int, int | None, str]] = []
    model = store.pull("tiny", progress=lambda *step: seen.append(step))
    assert model.path.read_bytes() == CONTENT
    assert model.sha256 == sha256(CONTENT).hexdigest()
    assert (model.name, model.prompt_style) == ("Tiny", "worked-examples")
    assert files_in(store) == READY
    assert (len(CONTENT), len(CONTENT), "Fetching Tiny") in seen
    assert seen[-1] == (len(CONTENT), len(CONTENT), "Checking Tiny")


def test_a_cut_connection_is_continued_where_it_broke(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(cut=100_000), Reply(cut=50_000), Reply()]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert server.requests[1]["If-Range"] == '"one"'


replies = st.builds(
    Reply,
    cut=st.integers(0, len(CONTENT)),
    tag=st.sampled_from(['"one"', None]),
    ranges=st.booleans(),
    shift=st.sampled_from([0, 0, 1]),
    status=st.sampled_from([200, 200, 200, 503, 404]),
    length=st.booleans(),
)


@settings(max_examples=40)
@given(broken=st.lists(replies, max_size=6))
def test_after_any_row_of_failures_the_file_is_whole(broken: list[Reply]) -> None:
    with TemporaryDirectory() as folder, serving() as server:
        server.replies = [*broken, Reply()]
        store = store_of(Path(folder), server.url())
        for _ in server.replies:
            try:
                model = store.pull("Tiny")
            except (DownloadError, HashMismatchError):
                with pytest.raises(ModelError, match="not been fetched"):
                    store.resolve("Tiny", fetch=False)
            else:
                break
        assert model.path.read_bytes() == CONTENT


def test_an_interrupted_pull_is_continued_by_the_next_one(
    store: ModelStore, server: Server
) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("Tiny", progress=stop_at(100_000))
    assert not store.holds(store.catalogue.models[0])
    kept = (store.folder / "tiny.gguf.partial").stat().st_size
    assert kept >= 100_000
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"]
    assert files_in(store) == READY


def test_a_server_that_ignores_ranges_makes_it_start_afresh(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(cut=100_000, ranges=False), Reply(ranges=False)]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_without_tags_is_continued_because_the_hash_decides(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(cut=100_000, tag=None), Reply(tag=None)]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert "If-Range" not in server.requests[1]
    assert server.ranges == [None, "bytes=100000-"]


def test_a_file_that_changed_meanwhile_is_fetched_afresh(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(b"x" * len(CONTENT), '"old"', cut=100_000), Reply(tag='"new"')]
    assert store.pull("Tiny").path.read_bytes() == CONTENT


def test_a_range_that_was_not_asked_for_is_not_used(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(cut=100_000), Reply(shift=7), Reply()]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", None]


def test_a_server_that_heeds_no_condition_does_not_mix_two_files(
    store: ModelStore, server: Server
) -> None:
    old = Reply(chat_model()[:-600] + b"x" * 600, '"old"', cut=1000)
    server.replies = [old, Reply(chat_model(), '"new"', heedless=True)]
    assert store.pull(server.url("/other.gguf")).path.read_bytes() == chat_model()
    assert server.ranges == [None, "bytes=1000-", None]


def test_a_connection_that_ends_early_without_a_word_is_continued(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(cut=100_000, length=False), Reply(length=False)]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_that_is_busy_is_asked_again(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(b"", status=503), Reply(b"", status=429), Reply()]
    assert store.pull("Tiny").path.read_bytes() == CONTENT


def test_wrong_bytes_are_set_aside_and_never_used(store: ModelStore, server: Server) -> None:
    wrong = CONTENT[::-1]
    server.replies = [Reply(wrong), Reply()]
    with pytest.raises(HashMismatchError) as caught:
        store.pull("Tiny")
    assert sha256(wrong).hexdigest() in caught.value.found
    assert "tiny.gguf.rejected" in caught.value.found
    assert (store.folder / "tiny.gguf.rejected").read_bytes() == wrong
    assert "tiny.gguf" not in files_in(store)
    with pytest.raises(ModelError, match="not been fetched"):
        store.resolve("Tiny", fetch=False)
    assert store.pull("Tiny").path.read_bytes() == CONTENT


def test_wrong_bytes_from_one_source_send_it_to_the_next(tmp_path: Path, server: Server) -> None:
    server.replies = [Reply(CONTENT[::-1]), Reply()]
    store = store_of(tmp_path, server.url("/a"), server.url("/b"))
    notices: list[str] = []
    assert store.pull("Tiny", notice=notices.append).path.read_bytes() == CONTENT
    assert "sha256" in notices[0]
    assert f"Trying {server.url('/b')}" in notices[0]


def test_a_file_of_another_length_is_refused_before_it_is_fetched(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(CONTENT + b"more")]
    with pytest.raises(DownloadError, match="307,204 bytes instead of 307,200"):
        store.pull("Tiny")
    assert "tiny.gguf.partial" not in files_in(store)


def test_a_server_that_names_no_length_is_stopped_at_the_length_of_the_file(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(CONTENT * 3, length=False)]
    with pytest.raises(DownloadError, match="more than 307,200 bytes"):
        store.pull("Tiny")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_source_that_refuses_sends_it_to_the_next(
    tmp_path: Path, server: Server, status: int
) -> None:
    server.replies = [Reply(b"", status=status), Reply()]
    store = store_of(tmp_path, server.url("/a"), server.url("/b"))
    notices: list[str] = []
    assert store.pull("Tiny", notice=notices.append).path.read_bytes() == CONTENT
    assert len(notices) == 1
    assert f"{server.url('/a')}: the server answered {status}" in notices[0]
    assert [request["path"] for request in server.requests] == ["/a", "/b"]


def test_bytes_of_one_source_are_not_continued_with_another(tmp_path: Path, server: Server) -> None:
    broken = [Reply(b"x" * len(CONTENT), cut=9000), *[Reply(b"", status=500)] * 2]
    server.replies = [*broken, Reply()]
    store = store_of(tmp_path, server.url("/a"), server.url("/b"))
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges[-1] is None


def test_where_every_source_fails_the_error_names_them_and_the_manual_step(
    tmp_path: Path, server: Server
) -> None:
    server.replies = [Reply(b"", status=404)]
    nobody = "http://127.0.0.1:9/tiny.gguf"
    store = store_of(tmp_path, server.url("/a"), nobody)
    with pytest.raises(DownloadError) as caught:
        store.pull("Tiny")
    assert f"{server.url('/a')}: the server answered 404" in caught.value.found
    assert f"{nobody}: no connection" in caught.value.found
    for part in (server.url("/a"), str(store.folder / "tiny.gguf"), "307,200 bytes"):
        assert part in caught.value.remedy
    assert sha256(CONTENT).hexdigest() in caught.value.remedy


def test_redirects_within_this_machine_are_followed(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(b"", status=302, location="/elsewhere"), Reply()]
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.requests[1]["path"] == "/elsewhere"


@pytest.mark.parametrize("location", ["http://192.0.2.1/x", "ftp://127.0.0.1/x"])
def test_redirects_to_what_is_not_trusted_are_not_followed(
    store: ModelStore, server: Server, location: str
) -> None:
    server.replies = [Reply(b"", status=302, location=location)]
    with pytest.raises(DownloadError):
        store.pull("Tiny")
    assert len(server.requests) == 1


def test_redirects_without_end_are_given_up(store: ModelStore, server: Server) -> None:
    server.replies = [Reply(b"", status=302, location="/round")]
    with pytest.raises(DownloadError, match="redirects"):
        store.pull("Tiny")


def test_a_connection_that_brings_nothing_more_is_given_up(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(cut=1000, stall=5.0)]
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"nothing came for 0\.5 s"):
        store.pull("Tiny")
    assert time.monotonic() - start < 5


def test_a_connection_that_only_trickles_is_given_up(tmp_path: Path, server: Server) -> None:
    server.replies = [Reply(trickle=200)]
    store = store_of(tmp_path, server.url(), attempts=1)
    with pytest.raises(DownloadError, match="bytes came in"):
        store.pull("Tiny")


def test_proxy_settings_that_cannot_be_used_are_named(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "nonsense://127.0.0.1:1")
    with pytest.raises(DownloadError, match="network settings"):
        store.pull("Tiny")


class FullDisk:
    """Takes some bytes and then no more."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, block: bytes) -> None:
        if len(block) > self.room:
            self.file.write(block[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(block)
        self.file.write(block)


def test_a_disk_that_fills_up_keeps_what_came_and_continues_later(
    store: ModelStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Partial.writing

    @contextmanager
    def until_full(partial: Partial, at: int) -> Iterator[Any]:
        with writing(partial, at) as file:
            yield FullDisk(file, 120_000)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "writing", until_full)
        with pytest.raises(DownloadError, match="disk is full") as caught:
            store.pull("Tiny")
    assert "Make room" in caught.value.remedy
    assert "tiny.gguf" not in files_in(store)
    with pytest.raises(ModelError, match="not been fetched"):
        store.resolve("Tiny", fetch=False)
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=120000-"]


def test_too_little_room_is_noticed_before_anything_is_fetched(
    store: ModelStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DownloadError, match="307,200 more bytes are needed and 1 are free"):
        store.pull("Tiny")
    assert server.requests == []


def test_a_cache_that_cannot_be_made_is_named_with_the_way_out(
    tmp_path: Path, server: Server
) -> None:
    (tmp_path / "file").touch()
    store = store_of(tmp_path / "file", server.url())
    with pytest.raises(ModelError, match="CONVICTION_CACHE") as caught:
        store.pull("Tiny")
    assert str(store.folder) in caught.value.tried
    assert server.requests == []


def test_a_chat_model_is_fetched_by_address_and_its_hash_is_told(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(chat_model())]
    url = server.url("/some/other.gguf?token=secret")
    model = store.pull(url)
    assert model.path.read_bytes() == chat_model()
    assert model.path.name == "other.gguf"
    assert model.sha256 == sha256(chat_model()).hexdigest()
    assert "secret" not in model.name
    assert [other.path for other in store.others()] == [model.path]
    assert store.resolve(url) == model
    assert len(server.requests) == 1


def test_what_is_fetched_by_address_and_no_chat_model_is_set_aside(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(b"<!DOCTYPE html>")]
    with pytest.raises(NotAChatModelError, match=r"rejected") as caught:
        store.pull(server.url("/page.gguf"))
    assert "no GGUF" in caught.value.found
    assert list(store.others()) == []


def test_a_file_of_unknown_hash_and_tag_is_never_continued(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(chat_model(), tag=None, cut=500), Reply(chat_model(), tag=None)]
    store.pull(server.url("/other.gguf"))
    assert server.ranges == [None, None]


def stop_when_checked(done: int, total: int | None, what: str) -> None:
    del done, total
    if what.startswith("Checking"):
        raise KeyboardInterrupt


def test_a_file_that_came_whole_before_an_interruption_is_not_fetched_again(
    store: ModelStore, server: Server
) -> None:
    server.replies = [Reply(chat_model())]
    url = server.url("/other.gguf")
    with pytest.raises(KeyboardInterrupt):
        store.pull(url, progress=stop_when_checked)
    assert store.pull(url).path.read_bytes() == chat_model()
    assert server.ranges == [None, f"bytes={len(chat_model())}-"]


def test_a_whole_file_of_known_length_is_not_asked_for_again(
    store: ModelStore, server: Server
) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("Tiny", progress=stop_when_checked)
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_file_that_got_shorter_meanwhile_is_fetched_afresh(
    store: ModelStore, server: Server
) -> None:
    longer = chat_model() + b"more"
    server.replies = [Reply(longer), Reply(chat_model())]
    url = server.url("/other.gguf")
    with pytest.raises(KeyboardInterrupt):
        store.pull(url, progress=stop_when_checked)
    assert store.pull(url).path.read_bytes() == chat_model()
    assert server.ranges == [None, f"bytes={len(longer)}-", None]


def test_a_file_from_the_hub_has_a_place_of_its_own(
    store: ModelStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    server.replies = [Reply(chat_model())]
    model = store.resolve("hf:someone/Some-Model-GGUF/sub/some.gguf")
    assert model.path == store.folder / "hub/someone/Some-Model-GGUF/sub/some.gguf"
    assert model.name == "hf:someone/Some-Model-GGUF/sub/some.gguf"
    assert server.requests[0]["path"] == "/someone/Some-Model-GGUF/resolve/main/sub/some.gguf"
    assert store.resolve(model.name, fetch=False) == model
    assert len(server.requests) == 1


HUB_FILE = "hf:someone/Some-Model-GGUF/some.gguf"


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The hub, for a user who is not logged in."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    server.replies = [Reply(chat_model())]
    return server


@pytest.mark.parametrize("where", ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_a_private_repository_is_opened_with_the_users_token(
    store: ModelStore, hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "huggingface" / "token"
    path.parent.mkdir()
    path.write_text("hf_secret\n")
    value = {"HF_TOKEN": "hf_secret", "HF_TOKEN_PATH": str(path), "HF_HOME": str(path.parent)}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv(where, value[where])
    store.pull(HUB_FILE)
    assert hub.requests[0]["Authorization"] == "Bearer hf_secret"


def test_a_token_is_not_sent_where_the_hub_redirects_to(
    store: ModelStore, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = f"http://localhost:{hub.port}/storage"
    hub.replies = [Reply(b"", status=302, location=elsewhere), Reply(chat_model())]
    store.pull(HUB_FILE)
    assert ["Authorization" in request for request in hub.requests] == [True, False]


def test_a_token_is_only_for_the_hub_and_only_where_it_may_be_needed(
    tmp_path: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store_of(tmp_path, hub.url(), content=chat_model()).pull("Tiny")
    store_of(tmp_path, hub.url()).pull(hub.url("/other.gguf"))
    assert not any("Authorization" in request for request in hub.requests)


@pytest.mark.parametrize("status", [401, 403])
def test_a_private_repository_without_a_token_names_the_variable(
    store: ModelStore, hub: Server, status: int
) -> None:
    hub.replies = [Reply(b"", status=status)]
    with pytest.raises(DownloadError, match="needs HF_TOKEN"):
        store.pull(HUB_FILE)
    assert "Authorization" not in hub.requests[0]


@pytest.mark.parametrize(
    "target",
    [
        "http://192.0.2.1/model.gguf",
        "ftp://example.org/model.gguf",
        "https:///model.gguf",
        "http://[::bad/model.gguf",
        "hf:owner/repository",
        "hf:owner/repository/readme.md",
        "hf:owner/../../model.gguf",
        "hf:owner/repository/..%2f/model.gguf",
    ],
)
def test_an_address_that_is_malformed_or_not_trusted_is_refused(
    store: ModelStore, target: str
) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        store.pull(target)
    assert caught.value.exit_code == 2


def test_two_who_want_the_same_file_at_once_fetch_it_once(tmp_path: Path, server: Server) -> None:
    # A busy machine may pause longer than half a second, which would be a second request.
    store = store_of(tmp_path, server.url(), read=20)
    server.replies = [Reply(trickle=25)]
    waited: list[str] = []
    first = threading.Thread(target=store.pull, args=("Tiny",))
    first.start()
    while not server.requests:
        time.sleep(0.01)
    model = store.pull("Tiny", progress=lambda _d, _t, what: waited.append(what))
    first.join(10)
    assert model.path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert set(waited) == {"Waiting for another process to fetch Tiny"}


def test_waiting_for_another_process_has_an_end(tmp_path: Path, server: Server) -> None:
    server.replies = [Reply(cut=0, stall=0.6)]
    store = store_of(tmp_path, server.url(), lock=0.3, attempts=1, read=2)
    failed: list[Exception] = []

    def fetch() -> None:
        try:
            store.pull("Tiny")
        except DownloadError as error:
            failed.append(error)

    first = threading.Thread(target=fetch)
    first.start()
    while not server.requests:
        time.sleep(0.01)
    with pytest.raises(ModelError, match="another process"):
        store.pull("Tiny")
    first.join(10)
    assert len(failed) == 1
