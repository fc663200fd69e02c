"""A trace's group confidence as a line of few points, however long the trace."""

from math import floor, inf, isfinite

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Floats, GroupWindow

MOST_POINTS = 192
"""Points of a line; when they are reached, each pair becomes one."""

SCALE = 100
"""Points are whole hundredths."""

_FEWEST = 8
"""Known tokens before there is anything worth drawing: fewer say nothing of a trace."""


class Line:
    """The line of one trace: every `stride` tokens a point, and the stride doubles as it grows.

    A point is the lowest *full* group that ended within its stride, rounded down, so that a fall
    below a threshold is never lost. Until the first group is full, points are means of what there
    is; those are the first `partial` points, and no gate looks at them.

    Args:
        window: Tokens in a group, at least 1.

    Attributes:
        window: As given.
        points: Hundredths; None where no confidence is known.
        times: When each stride was complete, in whole milliseconds of the run.
        halvings: How often pairs became points; the stride is two to the power of it.
        partial: Leading points before the first full group.
    """

    __slots__ = (
        "_groups", "_least", "_since", "halvings", "partial", "points", "times", "window",
    )  # fmt: skip

    def __init__(self, window: int) -> None:
        self.window = window
        self.points: list[int | None] = []
        self.times: list[int] = []
        self.halvings = 0
        self.partial = 0
        self._groups: GroupWindow | None = GroupWindow(window)
        self._least = inf
        self._since = 0

    @property
    def stride(self) -> int:
        """Tokens from one point to the next."""
        return 1 << self.halvings

    def push(self, confidences: Floats, times: NDArray[np.int64]) -> None:
        """Take the next tokens.

        Args:
            confidences: Token confidences, shape (tokens,), NaN where unknown.
            times: When each came, in milliseconds of the run, shape (tokens,).
        """
        begin = 0
        while self._groups is not None and begin < confidences.size:
            end = min(begin + self.stride - self._since, confidences.size)
            self._least = min(self._least, self._groups.push(confidences[begin:end]))
            self._since += end - begin
            begin = end
            if self._since == self.stride:
                self._point(self._groups, int(times[end - 1]))
                if len(self.points) == MOST_POINTS:
                    self._halve()

    def end(self, at: int) -> None:
        """The trace ended at `at`: what is left becomes the last point."""
        if self._groups is not None and self._since:
            self._point(self._groups, at)
        self._groups = None  # A window of 2048 takes 34 kB.

    def _point(self, groups: GroupWindow, at: int) -> None:
        value = self._least
        if not isfinite(value):
            value = groups.current if groups.count >= min(_FEWEST, self.window) else inf
            if groups.count < self.window:
                self.partial += 1
        self.points.append(floor(value * SCALE) if isfinite(value) else None)
        self.times.append(at)
        self._least, self._since = inf, 0

    def _halve(self) -> None:
        points, partial = self.points, self.partial
        self.points = [
            merged(points[place], points[place + 1], later_counts=place < partial)
            for place in range(0, len(points), 2)
        ]
        self.times = self.times[1::2]
        self.partial //= 2
        self.halvings += 1


def merged(first: int | None, second: int | None, *, later_counts: bool) -> int | None:
    """Two points as one: the lower; or the later, where the first is of a group not yet full."""
    if second is None:
        return first
    if first is None or later_counts:
        return second
    return min(first, second)
