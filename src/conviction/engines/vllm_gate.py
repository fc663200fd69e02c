"""The client's side of the gate inside vLLM: its arguments, and the channel of confidences.

A channel is a small file. vLLM with the gate loaded writes the confidence of every token there, so
that no log-probabilities have to travel. One file belongs to one trace: the client makes it, reads
it while the trace is generated, and unlinks it; a server that cannot fill it goes on without.
"""

import errno
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from math import nan
from pathlib import Path
from secrets import token_hex

import anyio
import numpy as np
from numpy.typing import NDArray

from conviction.engines.base import TraceRequest
from conviction.gate import Gate
from conviction_gate import names
from conviction_gate.channel import HEADER, MAGIC, NAME, VALUE, VERSION
from conviction_gate.channel import folder as channel_folder

ABSURD = Gate(window=1, threshold=1e9)
"""A gate that stops every trace at its first token, which shows whether gates are applied."""

Arguments = Mapping[str, str | int | float]

MOST_TOKENS = 1 << 22
"""Tokens that a channel has room for at most: 16 MiB."""

PATIENCE = 1.0
"""Seconds that one trace waits, all in all, for confidences that come after their tokens."""

_UNWRITTEN = VALUE.pack(nan)
_LEFTOVER_SECONDS = 60.0
_ROUNDING = 1e-3
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02
_NO_LINKS = 0 if sys.platform == "win32" else os.O_NOFOLLOW


def gate_arguments(
    gate: Gate | None, *, top_k: int, stop_token: int | None, report: str | None = None
) -> dict[str, str | int | float]:
    """The arguments of a request that stop a trace by its gate, or measure it, or both.

    Args:
        gate: When to stop; None to measure only. One that the server could not hold is left to
            the client, which applies the gate as well.
        top_k: The k of token confidence (eq. 2).
        stop_token: The reserved token that a stopped trace ends with; without it there is no gate.
        report: Name of the channel that the confidences go to, if any.
    """
    arguments: dict[str, str | int | float] = {}
    if gate is not None and stop_token is not None and gate.window <= names.MOST_WINDOW:
        arguments[names.WINDOW] = gate.window
        arguments[names.THRESHOLD] = float(gate.threshold)
        arguments[names.STOP_TOKEN] = stop_token
    if report is not None:
        arguments[names.REPORT] = report
    elif arguments:
        # By it the window is found again when vLLM has put a trace aside; a channel names it too.
        arguments[names.TRACE] = token_hex(16)
    if arguments and top_k:
        arguments[names.K] = min(top_k, names.MOST_K)
    return arguments


class Channel:
    """The confidences of one trace, as they arrive. Close it when the trace is over.

    Its file is read with plain calls in place of a mapping: a trace then costs one descriptor, and
    a file that was cut short costs confidences, not the process. The server is told its `name`.

    Args:
        tokens: The most tokens that the trace may generate; more than `MOST_TOKENS` have no room.
        folder: Where the file is made.

    Raises:
        OSError: it cannot be made, for want of room, of descriptors, or of such files at all.
    """

    def __init__(self, tokens: int, folder: Path | None = None) -> None:
        self.name = f"conviction-{token_hex(16)}"
        self._capacity = max(1, min(tokens, MOST_TOKENS))
        self._path = (folder or channel_folder()) / self.name
        self._taken = 0
        self._missed = 0
        self._unknown = 0
        self._patience = PATIENCE
        self._file: int | None = None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o600)
        try:
            _lock(self._file)
            # All of its room is taken at once, so that none is wanting in the middle of a trace.
            data = HEADER.pack(MAGIC, VERSION, self._capacity, 0) + _UNWRITTEN * self._capacity
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # closed below
        except BaseException:
            self.close()
            raise

    @property
    def silent(self) -> bool:
        """Whether nothing was written into it so far."""
        return self._written() == 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Which confidences are missing and why, in whole sentences."""
        missed = "Some confidences did not arrive through the gate's channel."
        unknown = (
            "Some confidences are unknown: the model's logits were no numbers there, or a mask "
            "left too few."
        )
        found = ((self._missed, missed), (self._unknown, unknown))
        return tuple(note for count, note in found if count)

    async def take(self, tokens: int) -> NDArray[np.float32]:
        """The confidences of the next `tokens`, waiting a little for those that are late.

        Shape (tokens,), NaN for those that are unknown or did not come.
        """
        begin = self._taken
        self._taken += tokens
        end = min(self._taken, self._capacity)
        written = self._written()
        if written < end and self._patience > 0:
            written = await self._wait(end)
        values = np.full(tokens, nan, np.float32)
        arrived = self._values(begin, min(written, end))
        values[: arrived.size] = arrived
        self._missed += tokens - arrived.size
        self._unknown += int(np.count_nonzero(np.isnan(arrived)))
        return values

    def close(self) -> None:
        """Remove the file; what was written in the meantime is gone."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(file)

    async def _wait(self, end: int) -> int:
        began, pause = anyio.current_time(), _SHORTEST_PAUSE
        left = self._patience
        while (written := self._written()) < end and left > 0:
            await anyio.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
            left = self._patience - (anyio.current_time() - began)
        self._patience = left
        return written

    def _written(self) -> int:
        """Tokens whose confidence is there, as far as the header can be believed."""
        header = self._read(0, HEADER.size)
        if len(header) < HEADER.size:
            return 0
        magic, version, capacity, written = HEADER.unpack(header)
        if (magic, version, capacity) != (MAGIC, VERSION, self._capacity):
            return 0
        return min(written, self._capacity)

    def _values(self, begin: int, end: int) -> NDArray[np.float32]:
        size = VALUE.size * max(0, end - begin)
        data = self._read(HEADER.size + VALUE.size * begin, size)
        whole = len(data) - len(data) % VALUE.size
        values = np.frombuffer(data[:whole], "<f4").astype(np.float32)
        # NaN marks what is unknown; only rounding makes one negative.
        known = np.isfinite(values) & (values > -_ROUNDING)
        return np.where(known, np.maximum(values, 0), np.float32(nan))

    def _read(self, offset: int, size: int) -> bytes:
        if self._file is None or not size or sys.platform == "win32":
            return b""
        try:
            return os.pread(self._file, size, offset)
        except OSError:
            return b""


def channel_for(request: TraceRequest, most_top_k: int) -> tuple[Channel | None, tuple[str, ...]]:
    """A channel for a trace; or none, and a note of why: `most_top_k` values come in its place."""
    try:
        return Channel(request.sampling.max_tokens), ()
    except OSError as error:
        why = error.strerror or error
        note = f"No channel could be made for some confidences ({why})."
        if most_top_k < request.top_k:
            note += (
                f" They are means of {most_top_k} log-probabilities in place of {request.top_k}, "
                "which is more than travel."
            )
        return None, (note,)


def remove_leftovers(folder: Path | None = None) -> int:
    """Remove the channels of programs that were killed, and count them.

    A living program holds a lock on each of its channels; the system releases it however the
    program ends.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder or channel_folder()) as entries:
        for entry in entries:
            if not NAME.fullmatch(entry.name):
                continue
            with suppress(OSError):
                # One that was made just now may not have its lock yet.
                if time.time() - entry.stat(follow_symlinks=False).st_mtime < _LEFTOVER_SECONDS:
                    continue
                file = os.open(entry.path, os.O_RDWR | _NO_LINKS)
                try:
                    _lock(file)
                    Path(entry.path).unlink()
                finally:
                    os.close(file)
                removed += 1
    return removed


def _lock(file: int) -> None:
    if sys.platform == "win32":
        raise OSError("vLLM does not run here")
    import fcntl  # noqa: PLC0415  # not everywhere

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
