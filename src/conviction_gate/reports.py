"""What the workers tell of each trace: its confidences, written to its channel."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import isnan
from queue import SimpleQueue
from threading import Thread

import torch

from conviction_gate.channel import Writer

_log = logging.getLogger("vllm.conviction_gate")


class Report:
    """The channel of one trace; it falls silent when it cannot be written any more.

    The file is open from the first value to `close`, and opened again by the next one.

    Args:
        name: The channel's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._writer: Writer | None = None
        self._silent = False
        self._spoiled = False

    def put(self, place: int, confidence: float) -> None:
        """Write one token's confidence."""
        if isnan(confidence) and not self._spoiled:
            self._spoiled = True
            _log.warning(
                "conviction: token %d of a trace has logits that are no numbers, so its "
                "confidence is unknown, and is left out of its groups; there may be more",
                place,
            )
        self._write(lambda writer: writer.put(place, confidence))

    def take_back(self, place: int) -> None:
        """Forget the last token, which was none."""
        self._write(lambda writer: writer.take_back(place))

    def close(self) -> None:
        """Leave the channel."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _write(self, change: Callable[[Writer], None]) -> None:
        if self._silent:
            return
        try:
            if self._writer is None:
                self._writer = Writer(self._name)
            change(self._writer)
        except (OSError, ValueError) as error:
            _log.warning("conviction: a trace goes on without its report: %s", error)
            self._silent = True
            self.close()


Entry = tuple[Report, int, int]
"""A report, the row of the step that belongs to it, and the token's place in its trace."""


class Reports:
    """Brings what is on the device to the channels, without anyone waiting for it.

    From a GPU, values go to pinned memory by themselves, and a single thread writes them when they
    are there; it does all else that concerns channels too, in the order in which it was wanted. On
    the CPU values are there already.

    Args:
        device: Where the values are.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: Thread | None = None

    def put(self, entries: list[Entry], confidences: torch.Tensor) -> None:
        """Write a step's confidences.

        Args:
            entries: Which rows are reported, where.
            confidences: float32, shape (rows,).
        """
        if not self._cuda:
            _write(entries, confidences)
            return
        values, wait = _copied(confidences)

        def write() -> None:
            wait()
            _write(entries, values)

        self._do(write)

    def take_back(self, report: Report, place: int) -> None:
        """Forget a token that was none, once what was given before is written."""
        self._do(partial(report.take_back, place))

    def close(self, report: Report) -> None:
        """Close a report, once all that was given to it is written."""
        self._do(report.close)

    def _do(self, action: Callable[[], None]) -> None:
        if not self._cuda:
            action()
            return
        if self._thread is None:
            self._thread = Thread(target=self._run, name="conviction reports", daemon=True)
            self._thread.start()
        self._queue.put(action)

    def _run(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            except Exception:  # noqa: BLE001  # without the thread all reports would fall silent
                _log.exception("conviction: a step goes without its reports")


def _copied(values: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
    """A copy from the GPU that is under way, and what waits for it."""
    # torch keeps the memory for the copy alive until the copy is done, and uses it again.
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return pinned, copied.synchronize


def _write(entries: list[Entry], confidences: torch.Tensor) -> None:
    values = confidences.tolist()
    for report, row, place in entries:
        report.put(place, values[row])
