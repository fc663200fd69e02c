"""The windows of all requests that run, on the device: one batched step per token.

A window is a ring of cumulative sums, so that a group's sum is a difference, as it is for
`conviction.gate.GateMonitor`: both find a stop at the same token.
"""

import torch

from conviction_gate.arguments import Arguments

Values = list[int] | list[float] | list[list[int]]


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
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._device = device
        self._sums = torch.zeros((slots, 2), dtype=torch.float64, device=device)
        self._known = torch.zeros(slots, dtype=torch.int64, device=device)
        self._seen = torch.zeros(slots, dtype=torch.int64, device=device)
        self._was_known = torch.zeros(slots, dtype=torch.int64, device=device)
        self._window = torch.ones(slots, dtype=torch.int64, device=device)
        self._threshold = torch.full((slots,), -torch.inf, dtype=torch.float64, device=device)
        self._least = torch.zeros(slots, dtype=torch.int64, device=device)
        self._begun: dict[int, tuple[Arguments, int, list[float]]] = {}

    def begin(self, slot: int, wanted: Arguments, seen: int, past: list[float]) -> None:
        """Have a slot begin anew at the next `flush`.

        Args:
            slot: Its number.
            wanted: What its request wants.
            seen: Tokens that the trace has already.
            past: Known confidences of the last of them, which fill its window again.
        """
        self._begun[slot] = (wanted, seen, past[-max(1, wanted.window) :])

    def flush(self) -> None:
        """Write what has begun to the device, in one go."""
        if not self._begun:
            return
        begun = list(self._begun.values())
        self._make_room(max(wanted.window for wanted, _, _ in begun))
        slots = self._to_device(list(self._begun), torch.int64)
        numbers = self._to_device(
            [[max(1, one.window), one.least_tokens, seen, len(past)] for one, seen, past in begun],
            torch.int64,
        )
        self._window[slots], self._least[slots] = numbers[:, 0], numbers[:, 1]
        self._seen[slots], self._known[slots] = numbers[:, 2], numbers[:, 3]
        self._was_known[slots] = 0
        self._sums[slots, 0] = 0.0
        limits = [wanted.threshold for wanted, _, _ in begun]
        self._threshold[slots] = self._to_device(limits, torch.float64)
        for slot, (_, _, past) in self._begun.items():
            if past:  # Only what comes back after a preemption has one.
                sums = self._to_device(past, torch.float32).double().cumsum(0)
                self._sums[slot, 1 : len(past) + 1] = sums
        self._begun.clear()

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
