"""What the workers tell of each trace: its confidences, written to its channel."""

import logging
from queue import SimpleQueue
from threading import Thread

import torch

from conviction_gate.channel import Writer

_log = logging.getLogger("vllm.conviction_gate")


class Report:
    """The channel of one trace; it falls silent when it cannot be written any more.

    Args:
        name: The channel's name.
    """

    def __init__(self, name: str) -> None:
        self._writer: Writer | None = None
        try:
            self._writer = Writer(name)
        except (OSError, ValueError) as error:
            _log.warning("conviction: a trace goes on without its report: %s", error)

    def put(self, place: int, confidence: float, stopped: float) -> None:
        """Write one token's confidence, and whether the gate stopped the trace at it."""
        if self._writer is None:
            return
        try:
            self._writer.put(place, confidence, stopped=bool(stopped))
        except OSError as error:
            _log.warning("conviction: a trace goes on without its report: %s", error)
            self.close()

    def past(self, before: int, most: int) -> list[float]:
        """Confidences of the tokens just before a place, as far as they were written."""
        try:
            return self._writer.past(before, most) if self._writer else []
        except OSError:
            return []

    def close(self) -> None:
        """Leave the channel."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


Entry = tuple[Report, int, int]
"""A report, the row of the step that belongs to it, and the token's place in its trace."""


class Reports:
    """Brings what is on the device to the channels, without anyone waiting for it.

    From a GPU, values go to pinned memory by themselves, and a single thread writes them when they
    are there. On the CPU they are there already.

    Args:
        device: Where the values are.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._queue: SimpleQueue[tuple[list[Entry], torch.Tensor, torch.cuda.Event] | Report] = (
            SimpleQueue()
        )
        self._thread: Thread | None = None

    def put(self, entries: list[Entry], confidences: torch.Tensor, low: torch.Tensor) -> None:
        """Write a step's confidences.

        Args:
            entries: Which rows are reported, where.
            confidences: float32, shape (rows,).
            low: Which traces are stopped here, bool, shape (rows,).
        """
        values = torch.stack((confidences, low.float()))
        if not self._cuda:
            _write(entries, values)
            return
        # torch keeps the memory for the copy alive until the copy is done, and uses it again.
        pinned = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
        pinned.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._later((entries, pinned, copied))

    def close(self, report: Report) -> None:
        """Close a report once all that was given to it is written."""
        if self._cuda:
            self._later(report)
        else:
            report.close()

    def _later(self, item: tuple[list[Entry], torch.Tensor, torch.cuda.Event] | Report) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="conviction reports", daemon=True)
            self._thread.start()
        self._queue.put(item)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, Report):
                item.close()
                continue
            entries, values, copied = item
            copied.synchronize()
            _write(entries, values)


def _write(entries: list[Entry], values: torch.Tensor) -> None:
    confidences, low = values.tolist()
    for report, row, place in entries:
        report.put(place, confidences[row], low[row])
