"""Serves one page on this machine, until Ctrl-C; needs no package beyond Python."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conviction.errors import InvalidSettingError

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")


def serve_page(page: str, *, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve a page at / until Ctrl-C.

    Args:
        page: HTML.
        port: Port to listen on; 0 for any free one.
        on_ready: Called with the address once it can be opened.

    Raises:
        InvalidSettingError: the port cannot be had.
    """
    data = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            # Another name is that of a web page which points its own name to this machine.
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
            """Say nothing."""

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
