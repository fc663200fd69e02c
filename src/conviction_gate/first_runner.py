"""Runner V1's batch: it tells which requests stand in which row when that changes."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from conviction_gate.arguments import read
from conviction_gate.holding import Held, Holding
from conviction_gate.reports import Entry


class FirstRunner:
    """Follows the requests through the rows of the batch.

    Args:
        holding: Holds them.
    """

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._running: dict[int, Held] = {}
        self._young: list[Held] = []
        self._reported: list[tuple[int, Held]] = []

    def update(self, change: Any) -> None:
        """Take what has changed, and see whether the last tokens of the young ones counted."""
        if self._young:
            self._look_at_the_young()
        if change is None:
            return
        concerned = bool(self._running)
        # A request may leave and join in one step, in another row: first all leave, then they join.
        for row in _emptied(change):
            self._remove(row)
        for row, params, _, output in change.added:
            wanted = read(params)
            held = wanted and self._holding.take(wanted, params, len(output))
            if held:
                held.output, held.young = output, True
                self._running[row] = held
        for origin, target, direction in change.moved:
            self._move(origin, target, swap=direction == MoveDirectionality.SWAP)
        if concerned or self._running:
            self._holding.windows.flush()
            self._set_rows()

    def apply(self, logits: torch.Tensor) -> None:
        """Measure the rows, and stop traces."""
        if not self._running:
            return
        for held in self._young:
            held.computed = len(held.output)
        entries: list[Entry] = [
            (held.report, place, len(held.output))
            for place, held in self._reported
            if held.report is not None
        ]
        self._holding.rows.step(logits, entries)

    def _look_at_the_young(self) -> None:
        """Whoever has no new token was in the middle of its prompt, and that was none."""
        undone = [one for one in self._young if len(one.output) <= one.computed]
        for held in undone:
            if held.report is not None:
                self._holding.reports.take_back(held.report, held.computed)
        if undone:
            self._holding.windows.take_back([held.slot for held in undone])
        for held in self._young:
            held.young = held.computed < 0 or held in undone
            held.computed = -1
        self._young = [held for held in self._young if held.young]

    def _remove(self, row: int) -> None:
        held = self._running.pop(row, None)
        if held is not None:
            self._holding.leave(held)

    def _move(self, origin: int, target: int, *, swap: bool) -> None:
        moved, other = self._running.pop(origin, None), self._running.pop(target, None)
        if moved is not None:
            self._running[target] = moved
        if other is not None and swap:
            self._running[origin] = other
        elif other is not None:
            self._holding.leave(other)

    def _set_rows(self) -> None:
        rows = sorted(self._running)
        held = [self._running[row] for row in rows]
        self._young = [one for one in held if one.young]
        self._reported = self._holding.set_rows(rows, held)


def _emptied(change: Any) -> set[int]:
    """Rows whose requests left.

    vLLM tells of a row that was emptied only where it stays empty: else it is one that somebody
    joins, or moves into.
    """
    rows = {*change.removed, *(row for row, *_ in change.added)}
    moved: set[int] = set()
    for origin, target, direction in change.moved:
        if direction != MoveDirectionality.SWAP and target not in moved:
            rows.add(target)
        moved.add(origin)
    return rows
