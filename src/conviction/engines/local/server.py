"""The parent's side of llama.cpp's server: starts the child process, watches it, ends it.

The server has a process of its own because native code can crash or be killed for its memory;
that must cost the user an error message, not the interpreter.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NoReturn, Self

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from conviction.errors import EngineStartError, EngineUnavailableError

_CHILD = Path(__file__).with_name("child.py")
_MOST_REPORT_BYTES = 1 << 16
_TAIL_BYTES = 1 << 12
_TAIL_LINES = 6
_GRACE_SECONDS = 2.0
_KILL_SECONDS = 5.0
_DEATH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What to serve, and how.

    Attributes:
        model: Path of the model file.
        slots: Traces at once.
        context: Tokens of context per slot.
        threads: Threads that compute.
    """

    model: str
    slots: int
    context: int
    threads: int


class LlamaServer:
    """A running server. Made by `start`, ended by `stop`.

    Attributes:
        settings: What it serves.
        folder: Its own folder, for saved prompts and its log; gone after `stop`.
        api_key: The key it wants.
        url: Where it listens.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="conviction-"))
        self.api_key = secrets.token_urlsafe(32)
        self.url = ""
        self._process: anyio.abc.Process | None = None

    @classmethod
    async def start(cls, settings: ServerSettings, timeout: float) -> Self:  # noqa: ASYNC109  # its message names it
        """Start a server and wait until it has loaded its model.

        Args:
            settings: What to serve.
            timeout: Seconds that this may take.

        Raises:
            EngineStartError: it did not start, or not in time.
        """
        server = cls(settings)
        try:
            with anyio.move_on_after(timeout):
                await server._launch()
            if not server.url:
                server._fail(f"it was not ready within {timeout:g} s")
        except BaseException:
            await server._end(grace=0)
            raise
        return server

    @property
    def pid(self) -> int | None:
        """Process id of the child, once it was started."""
        return None if self._process is None else self._process.pid

    async def stop(self) -> None:
        """End the process and remove its folder; bounded, and not to be cancelled."""
        await self._end(_GRACE_SECONDS)

    async def death(self) -> EngineUnavailableError | None:
        """The error to raise if the process has ended; None if it lives."""
        if self._process is None:
            return None
        with anyio.move_on_after(_DEATH_SECONDS):
            # A connection breaks a moment before the process is known to have ended.
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return EngineUnavailableError(
            tried="generate with llama.cpp",
            found=f"its process ended by itself ({how}){_tail(self.folder)}",
            remedy="Start the engine again; with a smaller model, fewer slots or a smaller "
            "context if memory is short.",
        )

    async def _launch(self) -> None:
        with _log_path(self.folder).open("wb") as log:
            self._process = await _spawn(log)
        report = await _introduce(
            self._process,
            {**asdict(self.settings), "folder": str(self.folder), "api_key": self.api_key},
        )
        if "url" not in report:
            self._fail(report.get("error", "it ended at once"))
        self.url = report["url"]

    def _fail(self, reason: str) -> NoReturn:
        settings = self.settings
        raise EngineStartError(
            tried=f"start llama.cpp with {Path(settings.model).name}, {settings.slots} slots of "
            f"{settings.context:,} tokens",
            found=f"{reason.rstrip('.')}{_tail(self.folder)}",
            remedy="If memory or time ran out, use fewer slots, a smaller context or a smaller "
            "model; if the model is unknown to it, a newer version of xllamacpp.",
        )

    async def _end(self, grace: float) -> None:
        with anyio.CancelScope(shield=True):
            if self._process is not None:
                await _end_process(self._process, grace)
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(self.folder, ignore_errors=True))


async def _spawn(log: IO[bytes]) -> anyio.abc.Process:
    # Waiting threads sleep rather than spin: where cores are shared with other work, threads
    # that spin keep the one they wait for from running, and speed falls to a tenth.
    sleeping = {"OMP_WAIT_POLICY": "PASSIVE"}
    return await anyio.open_process(
        # As a file, not as a module: nothing of this package has to be found or imported. -P
        # keeps modules that lie beside it from taking other modules' names.
        [sys.executable, "-P", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**sleeping, **os.environ},
    )


async def _introduce(process: anyio.abc.Process, settings: dict[str, object]) -> dict[str, str]:
    """Hand over the settings, on a pipe where no other process can read the key."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError
    try:
        await process.stdin.send(json.dumps(settings).encode() + b"\n")
        reports = BufferedByteReceiveStream(process.stdout)
        return json.loads(await reports.receive_until(b"\n", _MOST_REPORT_BYTES))
    except (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound, ValueError):
        return {}


async def _end_process(process: anyio.abc.Process, grace: float) -> None:
    """Ask the process to end by closing its standard input; kill it if it does not."""
    with anyio.move_on_after(grace):
        if process.stdin is not None:
            await process.stdin.aclose()
        await process.wait()
    if process.returncode is None:
        process.kill()
    with anyio.move_on_after(_KILL_SECONDS):
        await process.aclose()


def _log_path(folder: Path) -> Path:
    return folder / "llama.log"


def _tail(folder: Path) -> str:
    """The end of the log, as part of a sentence."""
    try:
        with _log_path(folder).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
    return f"; its log ends with: {' / '.join(lines)}" if lines else ""
