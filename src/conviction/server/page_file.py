"""The page as files, and as one file with everything: style, scripts, and a tape to play.

Such a file needs no server and no network; its security policy forbids both. `serve_page` shows it
on this machine with nothing but Python.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec

from conviction.errors import InvalidSettingError

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Kinds of files that the page consists of."""

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


@cache
def page_files() -> Mapping[str, bytes]:
    """All files of the page by their path below `page/`."""
    return dict(_below(files("conviction.server") / "page", ""))


def whole_page(recorded: bytes) -> str:
    """One HTML file that plays a run, as `Tape.recorded` describes it, in JSON."""
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
