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
        self._known: dict[object, list[Held]] = {}
        self._absent: dict[Held, None] = {}

    def known(self, wanted: Arguments, params: Any) -> Held | None:
        """What is held of a request that comes back.

        Requests may share what they are found by, as with `n` in a vLLM of one process. Where there
        are several, nobody can tell whose window is whose.
        """
        found = self._known.get(key_of(wanted, params), ())
        return found[0] if len(found) == 1 else None

    def take(self, wanted: Arguments, params: Any, seen: int) -> Held | None:
        """Hold a request that joins the batch, once all that leave it in the same step have left.

        Args:
            wanted: What it wants.
            params: Its parameters.
            seen: Tokens that it has already: more than 0 if it comes back.

        Returns:
            None if more run than vLLM said there would be.
        """
        held = self.known(wanted, params)
        if held in self._absent and held.wanted == wanted and seen:
            del self._absent[held]
            self.windows.resume(held.slot, seen)
            return held
        if not seen:  # It was put aside before its first token, or its id is used again.
            for before in self._known.get(key_of(wanted, params), [])[:]:
                if before in self._absent:
                    self._forget(before)
        if not self._free and self._absent:
            self._forget(next(iter(self._absent)))
        if not self._free:
            _log.error("conviction: there is no room for a window, so a trace goes without a gate")
            return None
        if seen and wanted.window:
            _log.warning(
                "conviction: a trace came back after a preemption at token %d, and its window "
                "begins anew, as it could not be found%s",
                seen,
                "" if wanted.trace else "; conviction_trace makes it easier to find",
            )
        return self._begin(wanted, params, seen)

    def leave(self, held: Held) -> None:
        """Keep the window of a request that left the batch, as long as there is room."""
        self.rest(held)
        self._absent[held] = None
        if not held.wanted.window:
            self._forget(held)

    def set_rows(self, rows: list[int], held: list[Held]) -> list[tuple[int, Held]]:
        """Take the rows of the steps to come, and whose they are.

        Returns:
            Those with a report, and their places among the rows.
        """
        self.rows.set(rows, [one.slot for one in held], [one.wanted for one in held])
        return [(place, one) for place, one in enumerate(held) if one.report]

    def rest(self, held: Held) -> None:
        """Close the report of a request that is not computed at present."""
        if held.report is not None:
            self.reports.close(held.report)

    def _begin(self, wanted: Arguments, params: Any, seen: int) -> Held:
        slot = self._free.pop()
        report = Report(wanted.report) if wanted.report and self._reporting else None
        held = Held(wanted, params, slot, report)
        self._known.setdefault(held.key, []).append(held)
        self.windows.begin(slot, wanted, seen)
        return held

    def _forget(self, held: Held) -> None:
        del self._absent[held]
        self._free.append(held.slot)
        same = self._known[held.key]
        same.remove(held)
        if not same:
            del self._known[held.key]
