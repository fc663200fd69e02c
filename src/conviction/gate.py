"""The stop rule: a trace is stopped when its group confidence falls below a threshold."""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from conviction.confidence import Floats, GroupWindow, group_confidences
from conviction.core import require, require_whole


@dataclass(frozen=True, slots=True)
class Gate:
    """When to stop a trace (Algorithm 2, the online test).

    The test needs a *full* window: a trace with fewer known tokens is never stopped.

    Attributes:
        window: Known tokens in a group, at least 1.
        threshold: Least group confidence at which a trace goes on; finite.

    Raises:
        InvalidSettingError: a value lies outside its range.
    """

    window: int
    threshold: float

    def __post_init__(self) -> None:
        require_whole("window", self.window, low=1)
        if not isfinite(self.threshold):
            require("threshold", self.threshold, low=0.0)

    def stop_position(self, confidences: Floats) -> int | None:
        """Tokens that a recorded trace would have generated when this gate stopped it.

        At least `window`; None if it is never stopped. Its confidences have shape (tokens,), and
        are NaN where unknown.
        """
        positions = np.flatnonzero(np.isfinite(confidences))
        if positions.size < self.window:
            return None
        below = group_confidences(confidences, self.window) < self.threshold
        first = int(below.argmax())
        return int(positions[first + self.window - 1]) + 1 if below[first] else None

    def monitor(self) -> "GateMonitor":
        """A monitor for one stream."""
        return GateMonitor(self)


class GateMonitor:
    """A gate that watches one stream of tokens."""

    __slots__ = ("groups", "threshold")

    def __init__(self, gate: Gate) -> None:
        self.threshold = gate.threshold
        self.groups = GroupWindow(gate.window)

    def push(self, confidences: Floats) -> bool:
        """Take the next tokens, shape (tokens,), NaN where unknown; whether to stop the trace."""
        return self.groups.push(confidences) < self.threshold

    def safe_tokens(self) -> int:
        """How many tokens can come before it could say stop: a count from 0 to the window."""
        return self.groups.safe_tokens(self.threshold)
