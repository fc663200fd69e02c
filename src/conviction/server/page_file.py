"""The page as files, and as one file with everything: style, scripts, and a tape to play.

Such a file needs no server and no network; its security policy forbids both. `serve_page` shows it
on this machine with nothing but Python.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import msgspec

from conviction.errors import InvalidSettingError
from conviction.server.tape import Frame, Tape, encode
from conviction.server.taped_trace import Piece

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Kinds of files that the page consists of."""

_MOST_TEXT = 8_000_000
"""Characters of all traces' texts in a file; each trace has an equal part of them."""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")

_IMPORT = re.compile(r'(from ")(\./[\w./]+\.js)(")')
_STYLE = re.compile(r'<link rel="stylesheet" href="page/([\w./]+)">')
_ICON = re.compile(r'href="page/(icon\.svg)"')
_SCRIPT = re.compile(r'<script type="module" src="page/main\.js"></script>')


@dataclass(frozen=True)
class Recorded:
    """A run as a file holds it.

    Attributes:
        frame: The whole tape.
        texts: What each trace wrote, as from `text_of`.
        speed: At which it plays at first.
    """

    frame: Frame
    texts: Mapping[int, dict[str, Any]]
    speed: float = 1.0

    @classmethod
    def of(
        cls, tape: Tape, *, spread: bool = False, has_texts: bool = True, speed: float = 1.0
    ) -> "Recorded":
        """The content of a tape, of which all frames were taken.

        Args:
            tape: The tape.
            spread: Whether texts were laid over their tokens evenly.
            has_texts: Whether there are any.
            speed: At which it plays.
        """
        if not has_texts:
            return cls(tape.snapshot(), {}, speed)
        each = _MOST_TEXT // max(len(tape.traces), 1)
        texts = {one: told for one in tape.traces if (told := text_of(tape, one, each)) is not None}
        for told in texts.values():
            told["spread"] = spread
        return cls(tape.snapshot(), texts, speed)

    def encode(self) -> bytes:
        """The run as JSON, as a file of the page and the history of verdicts hold it."""
        return msgspec.json.encode(
            {
                "frame": msgspec.Raw(encode(self.frame)),
                "texts": msgspec.Raw(encode({str(one): told for one, told in self.texts.items()})),
                "speed": self.speed,
            }
        )


def text_of(tape: Tape, trace: int, most: int) -> dict[str, Any] | None:
    """What a trace wrote so far; None if there is no such trace.

    Args:
        tape: Of its run.
        trace: Its number.
        most: Characters to return; the number of further ones is in "left".
    """
    passages = tape.passages(trace)
    if passages is None:
        return None
    pieces, left = _cut(passages.pieces(), most)
    return {"pieces": pieces, "left": left, "running": tape.runs(trace)}


def _cut(pieces: Sequence[Piece], characters: int) -> tuple[list[Piece], int]:
    """The first pieces, of at most so many characters, and how many characters were left out."""
    kept: list[Piece] = []
    left = characters
    for text, mark in pieces:
        if left <= 0:
            break
        kept.append((text[:left], mark))
        left -= len(text)
    total = sum(len(text) for text, _ in pieces)
    return kept, total - sum(len(text) for text, _ in kept)


@cache
def page_files() -> Mapping[str, bytes]:
    """All files of the page by their path below `page/`."""
    return dict(_below(files("conviction.server") / "page", ""))


def whole_page(recorded: bytes) -> str:
    """One HTML file that plays a run, given as by `Recorded.encode`."""
    contents = page_files()
    page = contents["index.html"].decode()
    # A script ends at "</script", even within a string.
    tape = recorded.decode().replace("<", "\\u003c")
    head = [f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">']
    # The file contains uPlot, whose licence has to come with it.
    head += [f"<!-- uPlot\n\n{contents['vendor/uplot/LICENSE'].decode()}-->"]
    head += [f"<style>\n{contents[path].decode()}</style>" for path in _STYLE.findall(page)]
    modules = {
        _name(path): _data("text/javascript", _bound(path, data.decode()).encode())
        for path, data in contents.items()
        if path.endswith(".js")
    }
    body = [
        f'<script type="application/json" id="tape">{tape}</script>',
        f'<script type="importmap">{msgspec.json.encode({"imports": modules}).decode()}</script>',
        f'<script type="module">import "{_name("main.js")}";</script>',
    ]
    page = _STYLE.sub("", page)
    page = _ICON.sub(lambda found: f'href="{_data("image/svg+xml", contents[found[1]])}"', page)
    page = _SCRIPT.sub(lambda _: "\n".join(head), page)
    return page.replace("</body>", "\n".join([*body, "</body>"]))


def _below(folder: Traversable, prefix: str) -> Iterable[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        elif any(entry.name.endswith(ending) for ending in TYPES) or entry.name == "LICENSE":
            yield prefix + entry.name, entry.read_bytes()


def _name(path: str) -> str:
    """A module's name within the file; relative ones mean nothing there."""
    return f"conviction/{path}"


def _bound(path: str, source: str) -> str:
    """A module that imports others by their names within the file."""
    folder = path.rpartition("/")[0]
    within = f"{folder}/" if folder else ""
    return _IMPORT.sub(lambda found: f"{found[1]}{_name(within + found[2][2:])}{found[3]}", source)


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def serve_page(page: str, *, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve a page at / until Ctrl-C.

    Args:
        page: HTML.
        port: Port to listen on; 0 for any free one.
        on_ready: Called with the address once it can be opened.

    Raises:
        InvalidSettingError: the port is not available.
    """
    data = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another name belongs to a web page that points it to this machine (DNS rebinding).
            known = self.headers.get("host", "").rpartition(":")[0] in _NAMES
            found = known and self.path == "/"
            body = data if found else b"There is nothing here.\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8" if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    try:
        server = ThreadingHTTPServer((_HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InvalidSettingError(
            tried=f"listen on port {port} of {_HOST}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="Name another port, or none.",
        ) from None
    with server:
        on_ready(f"http://{_HOST}:{server.server_address[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
