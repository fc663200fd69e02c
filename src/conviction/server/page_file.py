"""The page as files, and as one file that holds everything: style, scripts, and a tape to play.

Such a file needs no server and no network; its policy forbids it both.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import msgspec

from conviction.server.passages import cut
from conviction.server.tape import Frame, Tape, encode

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

_IMPORT = re.compile(r'(from ")(\./[\w./]+\.js)(")')
_STYLE = re.compile(r'<link rel="stylesheet" href="page/([\w./]+)">')
_ICON = re.compile(r'href="page/(icon\.svg)"')
_SCRIPT = re.compile(r'<script type="module" src="page/main\.js"></script>')


@dataclass(frozen=True)
class Recorded:
    """A run as a file holds it.

    Attributes:
        frame: The whole tape.
        texts: What each trace wrote, as `text_of` tells it.
        speed: At which it plays if nobody chooses another.
    """

    frame: Frame
    texts: Mapping[int, dict[str, Any]]
    speed: float = 1.0

    @classmethod
    def of(
        cls, tape: Tape, *, spread: bool = False, has_texts: bool = True, speed: float = 1.0
    ) -> "Recorded":
        """What a tape says, of which every frame was told.

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


def text_of(tape: Tape, trace: int, most: int) -> dict[str, Any] | None:
    """What a trace wrote so far; None if there is no such trace.

    Args:
        tape: Of its run.
        trace: Its number.
        most: Characters that are told.
    """
    passages = tape.passages(trace)
    if passages is None:
        return None
    pieces, left = cut(passages.pieces(), most)
    return {"pieces": pieces, "left": left, "running": tape.runs(trace)}


@cache
def page_files() -> Mapping[str, bytes]:
    """All files of the page by their path below `page/`."""
    return dict(_below(files("conviction.server") / "page", ""))


def whole_page(recorded: Recorded) -> str:
    """One HTML file that plays a run."""
    contents = page_files()
    page = contents["index.html"].decode()
    tape = msgspec.json.encode(
        {
            "frame": msgspec.Raw(encode(recorded.frame)),
            "texts": msgspec.Raw(encode({str(one): told for one, told in recorded.texts.items()})),
            "speed": recorded.speed,
        }
    ).decode()
    # Where "</script" stands, a script ends, and be it within a string.
    tape = tape.replace("<", "\\u003c")
    head = [f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">']
    # Whoever passes the file on passes uPlot on, whose licence wants to go with it.
    head += [f"<!-- uPlot\n\n{_text(contents, 'vendor/uplot/LICENSE')}-->"]
    head += [f"<style>\n{_text(contents, path)}</style>" for path in _STYLE.findall(page)]
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


def _text(contents: Mapping[str, bytes], path: str) -> str:
    return contents[path].decode()


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
