"""One step of the gate over the rows of a batch, whichever interface brings them."""

import torch

from conviction_gate.arguments import Arguments
from conviction_gate.confidence import row_confidences
from conviction_gate.reports import Entry, Reports
from conviction_gate.windows import Windows, to_device

_CERTAIN = 1e30
"""A logit beside which no other has a chance, at any temperature and under any filter.

Writing it in one place costs nothing, where masking all others would write the whole row."""


class Rows:
    """The rows of a batch that concern the gate. Set them when they change, then step.

    Args:
        windows: Where the windows of their requests are.
        reports: Where their confidences go.
        device: Where the logits are.
    """

    def __init__(self, windows: Windows, reports: Reports, device: torch.device) -> None:
        self._windows = windows
        self._reports = reports
        self._device = device
        self._count = 0
        self._gates = False
        self._most_k = 0

    def set(self, rows: list[int], slots: list[int], wanted: list[Arguments]) -> None:
        """Take the rows of the steps to come.

        Args:
            rows: Rows of the logits, each once.
            slots: Their slots.
            wanted: What their requests want.
        """
        self._count = len(rows)
        if not rows:
            return
        numbers = to_device(
            [rows, slots, [one.k for one in wanted], [one.stop_token for one in wanted]],
            torch.int64,
            self._device,
        )
        self._rows, self._slots, self._ks, stops = numbers.unbind(0)
        self._most_k = max(one.k for one in wanted)
        self._first = rows == list(range(len(rows)))
        gated = [place for place, one in enumerate(wanted) if one.window]
        self._gates = bool(gated)
        if gated:
            self._gated = to_device(gated, torch.int64, self._device)
            self._gated_rows, self._stops = self._rows[self._gated], stops[self._gated]

    def step(self, logits: torch.Tensor, entries: list[Entry]) -> None:
        """Measure the rows, write their reports, and have traces that are to stop draw their end.

        Args:
            logits: Raw logits, shape (rows, vocabulary); changed in place.
            entries: The reports; their rows count among those that were set.
        """
        if not self._count:
            return
        whole = self._first and logits.shape[0] == self._count
        measured = logits if whole else logits.index_select(0, self._rows)
        confidences = row_confidences(measured, self._ks, self._most_k)
        low = self._windows.step(self._slots, confidences)
        if self._gates:
            # What stands for a stop is never drawn by chance.
            ends = torch.where(low[self._gated], _CERTAIN, -torch.inf)
            logits[self._gated_rows, self._stops] = ends.to(logits.dtype)
        if entries:
            self._reports.put(entries, confidences)
