"""The windows of all requests that run, on the device: one batched step per token.

A window is a ring of cumulative sums, so that a group's sum is a difference, as it is for
`conviction.gate.GateMonitor`: both find a stop at the same token.
"""

from collections.abc import Sequence

import torch

from conviction_gate.arguments import Arguments

Values = Sequence[float] | Sequence[Sequence[float]]

USUAL_WINDOW = 2048
"""That of the paper (section 4.1)."""


def to_device(values: Values, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers as a tensor on the device, by a copy that nothing waits for."""
    # Only a copy from pinned memory goes by itself.
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)


class Windows:
    """State of the gates, one row of each tensor per slot.

    Nothing here waits for the device, and nothing loops over rows.

    Args:
        slots: Requests that can be held.
        device: Where the logits are.
        room: Tokens of the windows that there is room for from the start. The rings are widened
            for the first that is wider.
    """

    def __init__(self, slots: int, device: torch.device, room: int = USUAL_WINDOW) -> None:
        self._device = device
        self._sums = torch.zeros((slots, room + 1), dtype=torch.float64, device=device)
        self._known = torch.zeros(slots, dtype=torch.int64, device=device)
        self._seen = torch.zeros(slots, dtype=torch.int64, device=device)
        self._was_known = torch.zeros(slots, dtype=torch.int64, device=device)
        self._window = torch.ones(slots, dtype=torch.int64, device=device)
        self._threshold = torch.full((slots,), -torch.inf, dtype=torch.float64, device=device)
        self._least = torch.zeros(slots, dtype=torch.int64, device=device)
        self._begun: dict[int, tuple[Arguments, int]] = {}
        self._resumed: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Memory that the rings take on the device."""
        return self._sums.nbytes

    def begin(self, slot: int, wanted: Arguments, seen: int) -> None:
        """Have a slot begin anew at the next `flush`, with an empty window.

        Args:
            slot: Its number.
            wanted: What its request wants.
            seen: Tokens that the trace has already.
        """
        self._resumed.pop(slot, None)
        self._begun[slot] = (wanted, seen)

    def resume(self, slot: int, seen: int) -> None:
        """Have a slot go on at the next `flush`, with the tokens that it had.

        A token that was computed and then dropped, because its trace was put aside, is taken back.
        Were there several, the window begins anew: what they overwrote is gone.

        Args:
            slot: Its number.
            seen: Tokens that the trace has.
        """
        if slot not in self._begun:
            self._resumed[slot] = seen

    def flush(self) -> None:
        """Write what has begun or goes on to the device, in one go."""
        if self._begun:
            self._begin()
        if self._resumed:
            self._resume()

    def _begin(self) -> None:
        begun = list(self._begun.values())
        self._make_room(max(wanted.window for wanted, _ in begun))
        slots = self._to_device(list(self._begun), torch.int64)
        numbers = self._to_device(
            [[max(1, wanted.window), wanted.least_tokens, seen] for wanted, seen in begun],
            torch.int64,
        )
        self._window[slots], self._least[slots], self._seen[slots] = numbers.unbind(1)
        limits = [wanted.threshold for wanted, _ in begun]
        self._threshold[slots] = self._to_device(limits, torch.float64)
        self._known[slots], self._was_known[slots] = 0, 0
        self._sums[slots, 0] = 0.0
        self._begun.clear()

    def _resume(self) -> None:
        slots, seen = self._to_device(list(self._resumed.items()), torch.int64).unbind(1)
        dropped = self._seen[slots] - seen
        known = self._known[slots]
        known = torch.where(dropped.eq(1), known - self._was_known[slots], known)
        lost = (dropped < 0) | (dropped > 1)
        known = torch.where(lost, 0, known)
        self._sums[slots, 0] = torch.where(lost, 0.0, self._sums[slots, 0])
        self._known[slots], self._seen[slots], self._was_known[slots] = known, seen, 0
        self._resumed.clear()

    def step(self, slots: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
        """Take the next token of each of these slots.

        Args:
            slots: Their numbers, int64, shape (rows,), each once.
            confidences: The tokens' confidences, float32, shape (rows,).

        Returns:
            Which traces are to be stopped at this token, bool, shape (rows,).
        """
        ring = self._sums.shape[1]
        finite = torch.isfinite(confidences)
        known, window = self._known[slots], self._window[slots]
        added = torch.where(finite, confidences, 0.0).double()
        total = self._sums[slots, known % ring] + added
        known = known + finite
        self._sums[slots, known % ring] = total
        group = total - self._sums[slots, (known - window) % ring]
        seen = self._seen[slots]
        low = finite & (known >= window) & (group / window < self._threshold[slots])
        self._known[slots], self._seen[slots] = known, seen + 1
        self._was_known[slots] = finite.long()
        return low & (seen >= self._least[slots])

    def take_back(self, slots: list[int]) -> None:
        """Undo the last token of these slots: it was computed before the prompt was whole.

        What it overwrote in its ring lies outside of every window to come.
        """
        chosen = self._to_device(slots, torch.int64)
        self._known[chosen] -= self._was_known[chosen]
        self._seen[chosen] -= 1
        self._was_known[chosen] = 0

    def _to_device(self, values: Values, dtype: torch.dtype) -> torch.Tensor:
        return to_device(values, dtype, self._device)

    def _make_room(self, window: int) -> None:
        """Widen the rings, so that they hold a window of this size and one sum more."""
        old = self._sums
        if window + 1 <= old.shape[1]:
            return
        ring = window + 1
        self._sums = torch.zeros((old.shape[0], ring), dtype=torch.float64, device=self._device)
        back = torch.arange(old.shape[1], device=self._device)[None, :]
        places = (self._known[:, None] - back).clamp(min=0)
        kept = old.gather(1, places % old.shape[1])
        self._sums.scatter_(1, places % ring, kept)
