"""One trace on the tape: its group confidence as a line of few points, and what it wrote.

A trace within a frame (what is not new is left out):

    id         its number
    from       when it began, in milliseconds of the run
    gated      whether it may be stopped for low confidence
    window     tokens of a group; its line begins anew
    halved     how often its line is halved, before the points below are added
    points     hundredths of group confidence, or null where unknown; one per stride of tokens
    gaps       milliseconds from one point to the next; the first one from `from`
    partial    leading points that come before the first full group
    tokens     generated so far
    lost       tokens of attempts that broke off; the line begins anew
    end        {at, finish, tokens, answer, class, error}
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import floor, inf, isfinite
from sys import getsizeof
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Floats, GroupWindow
from conviction.engines.base import Chunk

MOST_POINTS = 192
"""Points of a line; when they are reached, each pair becomes one."""

SCALE = 100
"""Points are whole hundredths."""

_POINT_BYTES = 80
"""Memory of a point and its time."""

_FEWEST = 8
"""Known tokens that the first point takes: fewer say nothing of a trace."""

_MOST_WAITING = 256
"""Chunks that wait to be drawn; drawing many at once takes a fraction of drawing each."""

LEAST_SURE = 0.05
"""Share of a run's passages that are marked strongly."""

LESS_SURE = 0.2
"""Share of a run's passages that are marked at all."""

_SHORT, _LONG = 6, 16
"""Tokens of a passage: it ends at the first space after the one, at any token after the other."""

_BINS, _BINS_PER_UNIT = 2048, 50
"""Of the histogram of a run's passages: up to a confidence of 40.96, in steps of 0.02."""

_SPACE = re.compile(r"\s")

Piece = tuple[str, int]
"""Some text, and how it is marked: 0 not at all, 1 less sure, 2 least sure."""


class ConfidenceLine:
    """The line of one trace: every `stride` tokens a point, and the stride doubles as it grows.

    A point is the lowest *full* group that ended within its stride, rounded down, so that a fall
    below a threshold is never lost. Until the first group is full, points are means of what there
    is; those are the first `partial` points, and no gate looks at them.

    Attributes:
        window: Tokens in a group, at least 1.
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
        """Take the next tokens: their confidences, NaN where unknown, and when each came, in ms."""
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


class Sureness:
    """How sure the model was of all passages of a run: what a single one is compared to."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, confidence: float) -> None:
        """Take one more passage; NaN is left out."""
        if confidence == confidence:  # noqa: PLR0124  # false for NaN alone
            self._counts[min(max(int(confidence * _BINS_PER_UNIT), 0), _BINS - 1)] += 1

    def bounds(self) -> tuple[float, float]:
        """Below which confidences a passage is least sure, and less sure.

        Where many are alike, fewer are marked than the shares say, and none where all are.
        """
        total = int(self._counts.sum())
        below = np.cumsum(self._counts)
        first, second = np.searchsorted(below, (LEAST_SURE * total, LESS_SURE * total))
        return float(first) / _BINS_PER_UNIT, float(second) / _BINS_PER_UNIT


class Passages:
    """The text of one trace; some five bytes per token. `sureness` hears of every passage."""

    __slots__ = (
        "_bytes", "_confidences", "_ends", "_known", "_open", "_sum", "_sureness", "_tokens",
    )  # fmt: skip

    def __init__(self, sureness: Sureness) -> None:
        self._sureness = sureness
        self._bytes = bytearray()
        self._ends = array("I")
        self._confidences = array("f")
        self._begin()

    def _begin(self) -> None:
        self._open: list[str] = []
        self._tokens = self._known = 0
        self._sum = 0.0

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self._bytes) + (self._ends.itemsize + 4) * len(self._ends)

    def push(self, text: str, confidences: Floats) -> int:
        """Take what one chunk added; by how many bytes it grew."""
        before = self.size
        if self._tokens >= _SHORT:
            word = _SPACE.search(text)
            if word is not None or self._tokens >= _LONG:
                begin = word.start() if word else 0
                self._open.append(text[:begin])
                self._close()
                text = text[begin:]
        self._open.append(text)
        self._tokens += confidences.size
        for value in confidences.tolist():
            if value == value:  # noqa: PLR0124  # false for NaN alone
                self._sum += value
                self._known += 1
        return self.size - before

    def _close(self) -> None:
        # A model's text may hold halves of characters, which JSON cannot.
        self._bytes += "".join(self._open).encode("utf-8", "replace")
        self._ends.append(len(self._bytes))
        confidence = self._sum / self._known if self._known else float("nan")
        self._confidences.append(confidence)
        self._sureness.add(confidence)
        self._begin()

    def end(self) -> None:
        """The trace ended."""
        if self._open:
            self._close()

    def pieces(self) -> list[Piece]:
        """The text so far; neighbours that are marked alike are one piece."""
        least, less = self._sureness.bounds()
        joined: list[Piece] = []
        for text, confidence in self._passages():
            mark = 2 if confidence < least else 1 if confidence < less else 0
            before, last = joined.pop() if joined else ("", mark)
            if mark == last:
                joined.append((before + text, mark))
                continue
            # A mark begins at a word, not at the space before it.
            blank = len(text) - len(text.lstrip()) if mark > last else 0
            joined += [(before + text[:blank], last), (text[blank:], mark)]
        return joined

    def _passages(self) -> Iterator[tuple[str, float]]:
        begin = 0
        for end, confidence in zip(self._ends, self._confidences, strict=True):
            yield self._bytes[begin:end].decode("utf-8"), confidence
            begin = end
        if self._open:
            known = self._known or float("nan")
            yield "".join(self._open).encode("utf-8", "replace").decode("utf-8"), self._sum / known


@dataclass(slots=True)
class _Shown:
    """What is in the frames so far; nothing without a line."""

    line: ConfidenceLine | None = None
    points: int = 0
    halvings: int = 0
    partial: int = 0
    lost: int = 0
    ended: bool = False


class TapedTrace:
    """One trace, as far as it has come.

    Args:
        number: Of the trace.
        at: When it began, in milliseconds of the run.
        gated: Whether it may be stopped for low confidence.
        window: Tokens in a group of its line.
        sureness: Of the run.
        keep: Whether its line may have to be drawn again with another window.
    """

    __slots__ = (
        "_began", "_end", "_gated", "_kept", "_lost", "_shown", "_sureness", "_waiting",
        "line", "number", "passages", "tokens",
    )  # fmt: skip

    def __init__(
        self, number: int, at: int, *, gated: bool, window: int, sureness: Sureness, keep: bool
    ) -> None:
        self.number = number
        self.tokens = 0
        self.passages = Passages(sureness)
        self._began = at
        self._gated = gated
        self._sureness = sureness
        self.line = ConfidenceLine(window)
        # Confidences of all tokens so far, and when they came: for another window.
        self._kept: list[tuple[Floats, NDArray[np.int64]]] | None = [] if keep else None
        self._waiting: list[tuple[int, Chunk]] = []
        self._lost = 0
        self._end: dict[str, Any] | None = None
        self._shown = _Shown()

    def advance(self, chunk: Chunk, at: int) -> bool:
        """Take a chunk; whether it is time to `draw`."""
        self._waiting.append((at, chunk))
        return len(self._waiting) >= _MOST_WAITING

    def draw(self, *, with_text: bool) -> int:
        """Take in what waits, text too if `with_text`; by how many bytes its text grew."""
        if not self._waiting:
            return 0
        chunks = [chunk for _, chunk in self._waiting]
        sizes = [chunk.confidences.size for chunk in chunks]
        confidences = np.concatenate([chunk.confidences for chunk in chunks])
        times = np.repeat(np.array([at for at, _ in self._waiting], np.int64), sizes)
        self._waiting.clear()
        self.tokens += confidences.size
        self.line.push(confidences, times)
        if self._kept is not None:
            self._kept.append((confidences, times))
        if not with_text:
            return 0
        return sum(self.passages.push(chunk.text, chunk.confidences) for chunk in chunks)

    def redraw(self, window: int) -> None:
        """Draw its line again with another window, as far as its tokens were kept."""
        if self._kept is None or self.line.window == window:
            return
        line = ConfidenceLine(window)
        for confidences, times in self._kept:
            line.push(confidences, times)
        if self._end is not None:
            line.end(self._end["at"])
        self.line = line

    def forget(self) -> None:
        """Keep its tokens no longer: its window will not change."""
        self._kept = None

    def begin_again(self, lost: int) -> None:
        """It broke off and begins again from nothing."""
        self._waiting.clear()
        self._lost += lost
        self.tokens = 0
        self.line = ConfidenceLine(self.line.window)
        self.passages = Passages(self._sureness)
        if self._kept is not None:
            self._kept = []

    def finish(self, end: dict[str, Any]) -> None:
        """It ended; `end` is its entry in a frame."""
        self._end = end
        self.tokens = end["tokens"]
        self.line.end(end["at"])
        self.passages.end()

    @property
    def size(self) -> int:
        """Bytes that its text, its line and what is kept for another window take, about."""
        kept = sum(one.nbytes + times.nbytes for one, times in self._kept or ())
        ended = sum(getsizeof(value) for value in (self._end or {}).values())
        return self.passages.size + len(self.line.points) * _POINT_BYTES + kept + ended

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._end is None

    def news(self) -> dict[str, Any] | None:
        """What is new since the last call; None if nothing is."""
        changes, line, ended = self._changes(self._shown), self.line, not self.running
        points, halvings, partial = len(line.points), line.halvings, line.partial
        self._shown = _Shown(line, points, halvings, partial, self._lost, ended)
        return changes

    def everything(self) -> dict[str, Any]:
        """All that `news` has returned so far, at once; empty before its first call."""
        return (self._changes(_Shown()) or {}) if self._shown.line is not None else {}

    def _changes(self, shown: _Shown) -> dict[str, Any] | None:
        new: dict[str, Any] = {}
        if shown.line is None:
            new |= {"from": self._began, "gated": self._gated}
        line, points, partial = self.line, shown.points, shown.partial
        if line is not shown.line:
            new |= {"window": line.window, "tokens": self.tokens}
            points, partial = 0, 0
        if self._lost != shown.lost:
            new["lost"] = self._lost
        halved = line.halvings - (shown.halvings if line is shown.line else 0)
        points, partial = points >> halved, partial >> halved
        if halved:
            new["halved"] = halved
        if len(line.points) > points:
            before = line.times[points - 1] if points else self._began
            gaps = [later - earlier for earlier, later in pairwise((before, *line.times[points:]))]
            new |= {"points": line.points[points:], "gaps": gaps, "tokens": self.tokens}
        if line.partial != partial:
            new["partial"] = line.partial
        if self._end is not None and not shown.ended:
            new["end"] = self._end
        return {"id": self.number} | new if new else None


def merged(first: int | None, second: int | None, *, later_counts: bool) -> int | None:
    """Two points as one: the lower; or the later, where the first is of a group not yet full."""
    if second is None:
        return first
    if first is None or later_counts:
        return second
    return min(first, second)
