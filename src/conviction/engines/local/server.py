"""llama.cpp's server: whether a model fits this machine, the process, and requests to it.

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
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, NoReturn, Self

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from conviction.children import child_environment
from conviction.core import Message
from conviction.display import quoted
from conviction.engines.openai.http import HttpClient, Json
from conviction.engines.openai.shapes import TokenUsage
from conviction.engines.openai.traces import chat_messages
from conviction.errors import EngineError, EngineStartError, EngineUnavailableError
from conviction.files import TemporaryLock, is_abandoned
from conviction.gguf import GgufHeader

_CHILD = Path(__file__).with_name("child.py")
_PREFIX, _OWNER, _LOG = "conviction-llama-", "owner", "llama.log"
_MOST_REPORT_BYTES = 1 << 16
_TAIL_BYTES = 1 << 12
_TAIL_LINES = 6
_GRACE_SECONDS = 2.0
_KILL_SECONDS = 5.0
_DEATH_SECONDS = 1.0

_WORKING_BYTES = 256 << 20
"""For intermediate results, beside weights and context: seen to suffice for small models."""

_MEMINFO = Path("/proc/meminfo")
# The limits of a container, where there are any.
_GROUP_CORES = Path("/sys/fs/cgroup/cpu.max")
_GROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_GROUP_MEMORY_USED = Path("/sys/fs/cgroup/memory.current")


class LlamaServer:
    """llama.cpp's server. Used as an asynchronous context manager: entering starts it.

    It has `context` tokens per slot; loading the model may take `timeout` seconds.

    Attributes:
        folder: Its own folder, for saved prompts and its log; gone once it ended.
        url: Where it listens; empty until it does.
    """

    def __init__(
        self, model: Path, *, slots: int, context: int, threads: int, timeout: float
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Tells the next start that this folder is in use; a kill gives it back.
        self._lock = TemporaryLock(self.folder / _OWNER)
        self.api_key = secrets.token_urlsafe(32)
        self.url = ""
        self._settings: dict[str, object] = {
            "model": str(model),
            "slots": slots,
            "context": context,
            "threads": threads,
            "folder": str(self.folder),
            "api_key": self.api_key,
        }
        self._tried = f"start llama.cpp with {model.name}, {slots} slots of {context:,} tokens"
        self._timeout = timeout
        self._process: anyio.abc.Process | None = None

    async def __aenter__(self) -> Self:
        """Start the process and wait for its model; EngineStartError if that fails or is late."""
        try:
            with anyio.move_on_after(self._timeout):
                await self._launch()
            if not self.url:
                self._fail(f"it was not ready within {self._timeout:g} s")
        except BaseException:
            await self._end(grace=0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process and remove its folder; bounded, and not to be cancelled."""
        await self._end(_GRACE_SECONDS)

    @property
    def pid(self) -> int | None:
        """Process id of the child, once it was started."""
        return None if self._process is None else self._process.pid

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
        # Waiting threads sleep rather than spin: where cores are shared with other work, threads
        # that spin keep the one they wait for from running, and speed falls to a tenth.
        sleeping = {"OMP_WAIT_POLICY": "PASSIVE"}
        with (self.folder / _LOG).open("wb") as log:
            self._process = await anyio.open_process(
                # As a file, not as a module: nothing of this package has to be found or imported.
                # -P keeps modules that lie beside it from taking other modules' names.
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**sleeping, **child_environment()},
            )
        process, report = self._process, dict[str, str]()
        if process.stdin is None or process.stdout is None:
            raise AssertionError
        with suppress(
            anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound, ValueError
        ):
            # On a pipe, where no other process can read the key.
            await process.stdin.send(json.dumps(self._settings).encode() + b"\n")
            reports = BufferedByteReceiveStream(process.stdout)
            report = json.loads(await reports.receive_until(b"\n", _MOST_REPORT_BYTES))
        if "url" not in report:
            self._fail(report.get("error", "it ended at once"))
        self.url = report["url"]

    def _fail(self, reason: str) -> NoReturn:
        raise EngineStartError(
            tried=self._tried,
            found=f"{reason.rstrip('.')}{_tail(self.folder)}",
            remedy="If memory or time ran out, use fewer slots, a smaller context or a smaller "
            "model; if the model is unknown to it, a newer version of xllamacpp.",
        )

    async def _end(self, grace: float) -> None:
        """Close its standard input, which ends it; kill it if it does not end."""
        with anyio.CancelScope(shield=True):
            if (process := self._process) is not None:
                with anyio.move_on_after(grace):
                    if process.stdin is not None:
                        await process.stdin.aclose()
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                with anyio.move_on_after(_KILL_SECONDS):
                    await process.aclose()
            self._lock.release()
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(self.folder, ignore_errors=True))


def remove_leftovers() -> None:
    """Remove the folders of servers that were killed together with their programs."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            named = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
            if named and is_abandoned(Path(entry.path) / _OWNER):
                shutil.rmtree(entry.path, ignore_errors=True)


def _tail(folder: Path) -> str:
    """The end of the log, as part of a sentence."""
    try:
        with (folder / _LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
    return f"; its log ends with: {' / '.join(lines)}" if lines else ""


class _Answer(msgspec.Struct):
    """An answer of the server: of these, each request reads the one that it has to bring."""

    prompt: str | None = None
    tokens: list[int] | None = None
    usage: TokenUsage | None = None
    n_written: int | None = None
    n_restored: int | None = None


class ServerApi:
    """What llama.cpp's server offers beside traces, below its root."""

    def __init__(self, http: HttpClient, url: str) -> None:
        self._http = http
        self._url = url

    async def templated(self, messages: tuple[Message, ...]) -> str:
        """The prompt that a chat becomes."""
        body = {"messages": chat_messages(messages)}
        return await self._post("prompt", "/apply-template", body)

    async def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt."""
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return len(await self._post("tokens", "/tokenize", body))

    async def prefill(self, slot: int, messages: tuple[Message, ...]) -> int:
        """Compute a prompt in a slot; gives how many of its tokens the slot had already.

        The server does not stop short of the first token, so it draws one, which is dropped.
        """
        body = {"messages": chat_messages(messages), "max_tokens": 1, "id_slot": slot}
        usage: TokenUsage = await self._post("usage", "/chat/completions", body)
        details = usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0

    async def save(self, slot: int, file: str) -> int:
        """Save what a slot has computed; gives the bytes written."""
        return await self._post("n_written", f"/slots/{slot}?action=save", {"filename": file})

    async def restore(self, slot: int, file: str) -> None:
        """Load into a slot what was saved."""
        await self._post("n_restored", f"/slots/{slot}?action=restore", {"filename": file})

    async def _post(self, field: str, path: str, body: Json) -> Any:
        """The field of the answer."""
        answer = await self._http.ask("POST", self._url + path, body)
        with suppress(msgspec.DecodeError):
            if (value := getattr(msgspec.json.decode(answer, type=_Answer), field)) is not None:
                return value
        raise EngineError(
            tried=f"ask llama.cpp for {path}",
            found=f"an unknown answer: {quoted(answer)}",
            remedy="Install the version of xllamacpp that conviction names in its extra.",
        )


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has where it is confined."""
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = (int(part) for part in _GROUP_CORES.read_text().split())
    except (OSError, ValueError):
        return cores
    return max(1, min(cores, ceil(quota / period)))


def available_memory() -> int | None:
    """Bytes of memory that a new process may take; None where the system does not tell."""
    known: list[int] = []
    if (free := _system_memory()) is not None:
        known.append(free)
    with suppress(OSError, ValueError):
        limit, used = (int(file.read_text()) for file in (_GROUP_MEMORY, _GROUP_MEMORY_USED))
        known.append(max(0, limit - used))
    return min(known, default=None)


def check_memory(path: Path, header: GgufHeader, *, slots: int, context: int) -> None:
    """EngineStartError if a model with `slots` times `context` tokens does not fit into memory.

    Where the need or the memory is unknown, it passes.
    """
    available = available_memory()
    if available is None:
        return
    cache = slots * context * (header.kv_bytes_per_token() or 0)
    needed = header.file_size + cache + _WORKING_BYTES
    if needed > available:
        raise EngineStartError(
            tried=f"load {path.name} with {slots} slots of {context:,} tokens",
            found=f"it takes about {_gib(needed)} of memory ({_gib(header.file_size)} for the "
            f"model, {_gib(cache)} for the context), and {_gib(available)} are free",
            remedy="Use a smaller model, fewer slots, a smaller context or fewer --max-tokens.",
        )


def _system_memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
