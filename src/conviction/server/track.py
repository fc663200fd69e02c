"""One trace on the tape.

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

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.confidence import Floats
from conviction.engines.base import Chunk
from conviction.server.lines import Line
from conviction.server.passages import Passages, Sureness

_MOST_WAITING = 256
"""Chunks that wait to be drawn; drawing many at once takes a fraction of drawing each."""


@dataclass(slots=True)
class _Shown:
    """What the frames so far have told."""

    line: Line | None = None
    points: int = 0
    halvings: int = 0
    partial: int = 0
    tokens: int = 0
    lost: int = 0
    begun: bool = False
    ended: bool = False


@dataclass(slots=True)
class _Kept:
    """Confidences of all tokens so far, and when they came: for another window."""

    confidences: list[Floats] = field(default_factory=list[Floats])
    times: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])


class Track:
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
        "_began", "_end", "_gated", "_kept", "_line", "_lost", "_passages", "_shown", "_sureness",
        "_tokens", "_waiting", "number", "text_bytes",
    )  # fmt: skip

    def __init__(
        self, number: int, at: int, *, gated: bool, window: int, sureness: Sureness, keep: bool
    ) -> None:
        self.number = number
        self.text_bytes = 0
        self._began = at
        self._gated = gated
        self._sureness = sureness
        self._line = Line(window)
        self._passages = Passages(sureness)
        self._kept = _Kept() if keep else None
        self._waiting: list[tuple[int, Chunk]] = []
        self._tokens = self._lost = 0
        self._end: dict[str, Any] | None = None
        self._shown = _Shown()

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._tokens

    @property
    def passages(self) -> Passages:
        """What it wrote."""
        return self._passages

    def advance(self, chunk: Chunk, at: int) -> bool:
        """It grew; whether it is time to `draw`."""
        self._waiting.append((at, chunk))
        return len(self._waiting) >= _MOST_WAITING

    def draw(self, *, with_text: bool) -> int:
        """Take in what waits.

        Args:
            with_text: Whether its text is kept, too.

        Returns:
            By how many bytes its text grew.
        """
        if not self._waiting:
            return 0
        chunks = [chunk for _, chunk in self._waiting]
        sizes = [chunk.confidences.size for chunk in chunks]
        confidences = np.concatenate([chunk.confidences for chunk in chunks])
        times = np.repeat(np.array([at for at, _ in self._waiting], np.int64), sizes)
        self._waiting.clear()
        self._tokens += confidences.size
        self._line.push(confidences, times)
        if self._kept is not None:
            self._kept.confidences.append(confidences)
            self._kept.times.append(times)
        if not with_text:
            return 0
        grown = sum(self._passages.push(chunk.text, chunk.confidences) for chunk in chunks)
        self.text_bytes += grown
        return grown

    def redraw(self, window: int) -> None:
        """Draw its line again with another window, as far as its tokens were kept."""
        if self._kept is None or self._line.window == window:
            return
        line = Line(window)
        for confidences, times in zip(self._kept.confidences, self._kept.times, strict=True):
            line.push(confidences, times)
        if self._end is not None:
            line.end(self._end["at"])
        self._line = line

    def forget(self) -> None:
        """Keep its tokens no longer: its window will not change."""
        self._kept = None

    def begin_again(self, lost: int) -> None:
        """It broke off and begins again from nothing."""
        self._waiting.clear()
        self._lost += lost
        self._tokens = 0
        self._line = Line(self._line.window)
        self._passages = Passages(self._sureness)
        if self._kept is not None:
            self._kept = _Kept()

    def finish(self, end: dict[str, Any]) -> None:
        """It ended; `end` is what a frame says of that."""
        self._end = end
        self._tokens = end["tokens"]
        self._line.end(end["at"])
        self._passages.end()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._end is None

    @property
    def points(self) -> int:
        """Points of its line."""
        return len(self._line.points)

    @property
    def told(self) -> bool:
        """Whether a frame has told of it."""
        return self._shown.begun

    def news(self) -> dict[str, Any] | None:
        """What is new since the last call; None if nothing is."""
        told = self._changes(self._shown)
        line = self._line
        self._shown = _Shown(
            line=line,
            points=len(line.points),
            halvings=line.halvings,
            partial=line.partial,
            tokens=self._tokens,
            lost=self._lost,
            begun=True,
            ended=self._end is not None,
        )
        return told

    def everything(self) -> dict[str, Any]:
        """All that was told by `news` so far, at once."""
        return self._changes(_Shown()) or {}

    def _changes(self, shown: _Shown) -> dict[str, Any] | None:
        told: dict[str, Any] = {}
        if not shown.begun:
            told |= {"from": self._began, "gated": self._gated}
        line, points, partial = self._line, shown.points, shown.partial
        if line is not shown.line:
            told |= {"window": line.window, "tokens": self._tokens}
            points, partial = 0, 0
        if self._lost != shown.lost:
            told["lost"] = self._lost
        halved = line.halvings - (shown.halvings if line is shown.line else 0)
        points, partial = points >> halved, partial >> halved
        if halved:
            told["halved"] = halved
        if len(line.points) > points:
            told |= {
                "points": line.points[points:],
                "gaps": _gaps(
                    line.times[points:], line.times[points - 1] if points else self._began
                ),
                "tokens": self._tokens,
            }
        if line.partial != partial:
            told["partial"] = line.partial
        if self._end is not None and not shown.ended:
            told["end"] = self._end
        return {"id": self.number} | told if told else None


def _gaps(times: Sequence[int], before: int) -> list[int]:
    return [later - earlier for earlier, later in pairwise((before, *times))]
