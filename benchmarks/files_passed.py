"""How many files of this package a call passes through: those of which a function ran.

    python benchmarks/files_passed.py            # the counts
    python benchmarks/files_passed.py --list     # and the files

Three ways are followed, each in a process of its own: a library call (`conviction.think`) on
made-up traces, `conviction think` with the embedded default model, and a chat asked of
`conviction serve`'s application on made-up traces. Code that only runs at import does not count.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

import anyio
import httpx2

import conviction
from conviction.cli.main import run
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.server.app import create_app
from conviction.server.settings import Settings

PACKAGE = Path(conviction.__file__).parent
WAYS = ("library call", "conviction think", "served chat")


class Followed:
    """Follows every call in every thread while it is entered.

    Attributes:
        files: Files of the package of which a function was called, relative to it.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._seen: set[Any] = set()

    def __enter__(self) -> Self:
        threading.setprofile(self._call)
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _call(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code in self._seen:
            return
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE):
            # Bodies of modules and of classes, and what these call, run when they are imported.
            if not code.co_flags & 0x2 or _imports(frame):
                return
            self.files.add(str(path.relative_to(PACKAGE)))
        self._seen.add(code)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module of the package is being imported by this frame or a caller of it."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and Path(code.co_filename).is_relative_to(PACKAGE):
            return True
        frame = frame.f_back
    return False


def _engine() -> Any:
    return ScriptedEngine([Script.even(f"\\boxed{{{n}}}") for n in (7, 7, 5, 7)])


def _library_call() -> None:
    verdict = conviction.think("How many?", engine=_engine())
    assert verdict.answer == "7"


def _think() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(["think", "What is 6 * 7?", "--budget", "4"])
    assert code == 0, code
    assert out.getvalue().strip()


def _served_chat() -> None:
    async def ask() -> None:
        app = create_app(Settings(), _engine())
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8008") as client,
        ):
            asked = {"model": "scripted", "messages": [{"role": "user", "content": "How many?"}]}
            answer = await client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 200, answer.text

    anyio.run(ask)


def main() -> None:
    """Print the counts."""
    if sys.argv[1:2] == ["--follow"]:
        way = {"library call": _library_call, "conviction think": _think}.get(
            sys.argv[2], _served_chat
        )
        with Followed() as followed:
            way()
        print("\n".join(sorted(followed.files)))
        return
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            # What is thought here is not for the user's history.
            done = subprocess.run(
                [sys.executable, __file__, "--follow", way],
                env={**os.environ, "CONVICTION_HISTORY": f"{folder}/history.db"},
                capture_output=True,
                text=True,
                check=True,
            )
        files = done.stdout.split()
        print(f"{len(files):3} files: {way}")
        if "--list" in sys.argv:
            print("".join(f"      {file}\n" for file in files), end="")


if __name__ == "__main__":
    main()
