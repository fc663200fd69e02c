"""What a trace wrote, in passages of a few words, each with how sure the model was of it."""

import re
from array import array
from collections.abc import Iterator

import numpy as np

from conviction.confidence import Floats

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
