"""Runner V2's slots: it says with every step which row belongs to which."""

from typing import Any

import torch

from conviction_gate.arguments import Arguments, read
from conviction_gate.holding import Held, Holding
from conviction_gate.reports import Entry


class SecondRunner:
    """Follows the requests through vLLM's slots.

    A slot is taken by the next request without a word about the last one, which may have ended, or
    may come back in another slot.

    Args:
        states: vLLM's own arrays, by slot.
        holding: Holds the requests.
    """

    def __init__(self, states: Any, holding: Holding) -> None:
        self._states = states
        self._holding = holding
        self._held: dict[int, Held] = {}
        self._gated: Any = torch.zeros(states.max_num_reqs, dtype=torch.bool).numpy()
        self._last: tuple[list[int], list[int]] | None = None
        self._reported: list[tuple[int, Held]] = []
        self._joining: dict[int, tuple[Arguments, Any] | None] = {}
        self._idle = False

    def add(self, slot: int, params: Any) -> bool:
        """Note the request of a slot; whether it concerns the gate."""
        wanted = read(params)
        self._joining[slot] = None if wanted is None else (wanted, params)
        return wanted is not None

    def flush(self) -> None:
        """Take those that were noted, and bring them to the device: vLLM does so before a step."""
        if self._joining:
            self._join()
        self._holding.windows.flush()
        if self._idle:  # Nothing was computed since the last time, so all may have ended.
            self._set_rows([], [])
        self._idle = True

    def apply(self, logits: torch.Tensor, ctx: Any) -> None:
        """Measure the rows, and stop traces.

        Raises:
            RuntimeError: there are rows of drafts.
        """
        self._idle = False
        slots = ctx.idx_mapping_np
        if logits.shape[0] != len(slots):
            raise RuntimeError("conviction: drafts are in the batch, though none were to be")
        # A row before the end of its prompt brings no token.
        lengths = ctx.seq_lens_upper_bound_np
        chosen = self._gated[slots] & (lengths >= self._states.prefill_len.np[slots])
        rows = chosen.nonzero()[0]
        self._set_rows(rows.tolist(), slots[rows].tolist())
        if not rows.size:
            return
        places = (lengths[rows] - self._states.prompt_len.np[slots[rows]]).tolist()
        entries: list[Entry] = [
            (held.report, row, places[row])
            for row, held in self._reported
            if held.report is not None
        ]
        self._holding.rows.step(logits, entries)

    def _join(self) -> None:
        # Requests may change their slots in one step: first all leave, then they join.
        joining = {slot: one for slot, one in self._joining.items() if one is not None}
        for slot in self._joining:
            self._leave(slot)
        self._joining.clear()
        seen = {slot: self._seen(slot) for slot in joining}
        for slot, (wanted, params) in joining.items():
            # Without an id, one that has no token yet may as well be another with its parameters.
            again = seen[slot] or wanted.trace
            before = self._holding.known(wanted, params) if again else None
            for other, held in list(self._held.items()):
                if held is before:  # Nobody took the slot that it had when it was put aside.
                    self._leave(other)
        for slot, (wanted, params) in joining.items():
            held = self._holding.take(wanted, params, seen[slot])
            if held is not None:
                self._held[slot] = held
                self._gated[slot] = True

    def _seen(self, slot: int) -> int:
        """Tokens that the request of a slot came with."""
        return int(self._states.prefill_len.np[slot]) - int(self._states.prompt_len.np[slot])

    def _leave(self, slot: int) -> None:
        self._gated[slot] = False
        held = self._held.pop(slot, None)
        if held is not None:
            self._holding.leave(held)
            self._last = None

    def _set_rows(self, rows: list[int], slots: list[int]) -> None:
        """Take the rows of a step, where they are not those of the last one."""
        if (rows, slots) == self._last:
            return
        held = [self._held[slot] for slot in slots]
        for _, before in self._reported:
            if before not in held:
                self._holding.rest(before)
        self._last = rows, slots
        self._reported = self._holding.set_rows(rows, held)
