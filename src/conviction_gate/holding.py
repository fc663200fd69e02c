"""The requests whose windows are held: those that run, and those that may come back."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from conviction_gate.arguments import Arguments
from conviction_gate.reports import Report, Reports
from conviction_gate.rows import Rows
from conviction_gate.windows import Windows

_log = logging.getLogger("vllm.conviction_gate")


@dataclass(eq=False, slots=True)
class Held:
    """A request whose window is held.

    Attributes:
        wanted: Its arguments.
        params: Its parameters, held so that no others get their address, which may be the key.
        slot: Where its window is.
        report: Its report.
        output: Its tokens so far: the list that runner V1 goes on to fill.
        young: Whether its prompt may still be in the making, so that its last token may not count.
        computed: Tokens that it had when its last confidence was computed, while it is young.
    """

    wanted: Arguments
    params: Any
    slot: int
    report: Report | None
    output: list[int] = field(default_factory=list[int])
    young: bool = True
    computed: int = -1

    @property
    def key(self) -> object:
        """What it is found by when it comes back."""
        return key_of(self.wanted, self.params)


def key_of(wanted: Arguments, params: Any) -> object:
    """What a request is found by: its trace's id, or the parameters that vLLM holds on to."""
    return wanted.trace or id(params)


class Holding:
    """Gives requests their windows, and keeps those of requests that were put aside.

    vLLM takes out of the batch whoever is preempted, and says neither that this was the reason nor
    whether a request has ended. So windows of those that left are kept while there is room, the
    longest absent giving way first. There is room for as many as run, so that a preempted request
    finds its window again unless more than that left after it.

    All workers that hold parts of one model do the same here, so that they decide alike.

    Args:
        requests: The most that run at once.
        device: Where the logits are.
        reporting: Whether this worker writes the reports.
    """

    def __init__(self, requests: int, device: torch.device, *, reporting: bool) -> None:
        self.windows = Windows(2 * requests, device)
        self.reports = Reports(device)
        self.rows = Rows(self.windows, self.reports, device)
        self._reporting = reporting
        self._free = list(range(2 * requests))
        self._absent: dict[object, Held] = {}

    def take(self, wanted: Arguments, params: Any, seen: int) -> Held:
        """Hold a request that joins the batch.

        Args:
            wanted: What it wants.
            params: Its parameters.
            seen: Tokens that it has already: more than 0 if it comes back.
        """
        held = self._absent.pop(key_of(wanted, params), None)
        if held is not None and held.wanted == wanted and seen:
            self.windows.resume(held.slot, seen)
            return held
        if held is not None:
            self._free.append(held.slot)
        if not self._free:
            self._free.append(self._absent.pop(next(iter(self._absent))).slot)
        if seen and wanted.window:
            _log.warning(
                "conviction: a trace came back after a preemption at token %d, and its window "
                "begins anew, as it was not held any more%s",
                seen,
                "" if wanted.trace else " (conviction_trace makes it easier to find)",
            )
        report = Report(wanted.report) if wanted.report and self._reporting else None
        slot = self._free.pop()
        self.windows.begin(slot, wanted, seen)
        return Held(wanted, params, slot, report)

    def leave(self, held: Held) -> None:
        """Keep the window of a request that left the batch, as long as there is room."""
        self.rest(held)
        if held.wanted.window and held.key not in self._absent:
            self._absent[held.key] = held
        else:  # Of two traces with one id, one can be found again.
            self._free.append(held.slot)

    def rest(self, held: Held) -> None:
        """Close the report of a request that is not computed at present."""
        if held.report is not None:
            self.reports.close(held.report)
