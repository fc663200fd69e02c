"""Confidence from log-probabilities: the formulas of DeepConf (arXiv 2508.15260), written once.

All values are natural-log units. Higher means more peaked, so more sure; the least value that
k log-probabilities allow is ln k, and there is no greatest. Values compare only within one
model and one k.

Tokens whose confidence is unknown (NaN or infinite: masked, missing, malformed) are left out
of every mean and every group: a group is the last `window` *known* tokens.

Metrics exist in two forms that are tested equal: over arrays (`measure`, and `measure_pool`
for many traces at once) and one token at a time (`GroupWindow`).
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from heapq import nlargest
from itertools import pairwise
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32] | Doubles
Bounds = NDArray[np.int64]

FILLER = -9999.0
"""Servers send this (vLLM) or less in place of minus infinity; it is no log-probability."""

BOTTOM_SHARE = 0.1
HEAD_SHARE = 0.1

_POOL_BLOCK = 65536
"""Tokens per cumulative sum: keeps rounding near 1e-10 and the block in the cache."""

_SORTED_GROUPS = 256
"""Of up to so many groups, sorting all takes less time than parting off the lowest."""

_SCALAR_CHUNK = 48
"""Chunks up to this size are pushed token by token, which is faster than numpy's overhead."""

_ROOM = 256
"""Numbers that a window holds beyond two groups, so that small windows seldom make room."""


class Metric(StrEnum):
    """How a trace's token confidences become one number (METHOD: eqs. 3, 5, 6, 7)."""

    MEAN = "mean"
    """Mean over all tokens (eq. 3)."""
    BOTTOM_10 = "bottom-10"
    """Mean of the lowest 10% of the group confidences (eq. 5)."""
    LOWEST_GROUP = "lowest-group"
    """Lowest group confidence (eq. 6)."""
    TAIL = "tail"
    """Mean over the last `window` tokens (eq. 7)."""
    HEAD = "head"
    """Mean over the first 10% of the tokens (an ablation of the paper)."""


def token_confidence(logprobs: Sequence[float], k: int) -> float:
    """Token confidence C_i (eq. 2): minus the mean of the k largest log-probabilities.

    Args:
        logprobs: Natural-log probabilities of the likeliest next tokens, in any order. Servers
            add the sampled token when it is not among the k likeliest; it is not averaged in.
        k: How many to average, at least 1.

    Returns:
        The confidence, or NaN if fewer than k usable values were given. NaN, infinite and
        filler values are unusable: averaging the rest would read a masked, hence forced, token
        as an unsure one.
    """
    usable = [value for value in logprobs if FILLER < value <= 0.0]
    if len(usable) > k:
        usable = nlargest(k, usable)
    return -sum(usable) / k if len(usable) == k else nan


def token_confidences(logprobs: Floats, k: int) -> NDArray[np.float32]:
    """`token_confidence` of many tokens at once.

    From shape (tokens, m), with k from 1 to m, to shape (tokens,).
    """
    usable = (logprobs > FILLER) & (logprobs <= 0.0)
    known = np.where(usable, logprobs, -inf)
    best = np.partition(known, known.shape[1] - k, axis=1)[:, -k:]
    mean = -best.mean(axis=1, dtype=np.float64)
    return np.where(np.isfinite(mean), mean, nan).astype(np.float32)


def known(confidences: Floats) -> Floats:
    """`confidences` without the tokens whose confidence is unknown; shape (<= tokens,)."""
    finite = np.isfinite(confidences)
    return confidences if finite.all() else confidences[finite]


def cumulative(confidences: Floats) -> Doubles:
    """Sums S_0 = 0, S_1, … of known confidences, added in order; shape (tokens + 1,).

    Streaming and vectorised code take group sums as differences of these very numbers, which
    is why a gate fires at the same token in a stream and in a recording.
    """
    sums = np.empty(confidences.size + 1, np.float64)
    sums[0] = 0.0
    np.cumsum(confidences, dtype=np.float64, out=sums[1:])
    return sums


def group_confidences(confidences: Floats, window: int) -> Doubles:
    """Group confidences (eq. 4): means over `window` consecutive tokens of a trace, stride 1.

    From shape (tokens,) to shape (known tokens - window + 1,). A trace shorter than the window has
    one group, of all that it has; a trace without known tokens has none.
    """
    values = known(confidences)
    if values.size == 0:
        return np.empty(0, np.float64)
    sums = cumulative(values)
    width = min(window, values.size)
    return (sums[width:] - sums[:-width]) / width


def measure(metric: Metric, confidences: Floats, window: int) -> float:
    """`measure_pool` of one trace, shape (tokens,); NaN if no token's confidence is known."""
    return float(measure_pool(metric, confidences, np.array([0, confidences.size]), window)[0])


def measure_pool(metric: Metric, confidences: Floats, offsets: Bounds, window: int) -> Doubles:
    """Confidences of many traces under `metric`.

    Args:
        metric: How token confidences become one number.
        confidences: Token confidences of all traces, one after another, shape (tokens,).
        offsets: Where each trace begins, and the end: shape (traces + 1,), ascending.
        window: Tokens in a group, at least 1; the mean and the head do not depend on it.

    Returns:
        Shape (traces,), NaN for traces without a known token.
    """
    result = np.full(offsets.size - 1, nan)
    for first, last in _blocks(offsets):
        bounds = offsets[first : last + 1]
        values, bounds = _drop_unknown(confidences[bounds[0] : bounds[-1]], bounds - bounds[0])
        result[first:last] = _measure_block(metric, values, bounds, window)
    return result


def confidence_gain(confidences: Floats) -> float:
    """How much a trace's confidence rose: mean of its last tenth less that of its first.

    Each tenth has at least one token. 0 for a steady trace, and often negative; NaN if no token's
    confidence is known. Source: confidence dynamics, arXiv 2605.25244.

    Args:
        confidences: Token confidences of a whole trace, shape (tokens,).
    """
    tenth = max(int(known(confidences).size * HEAD_SHARE), 1)
    last = measure(Metric.TAIL, confidences, tenth)
    return last - measure(Metric.HEAD, confidences, tenth)


def _blocks(offsets: Bounds) -> list[tuple[int, int]]:
    """Runs of whole traces of about `_POOL_BLOCK` tokens, as (first, past the last)."""
    traces = offsets.size - 1
    cuts = np.searchsorted(offsets, np.arange(int(offsets[0]), int(offsets[-1]), _POOL_BLOCK))
    return list(pairwise(sorted({0, *cuts.tolist(), traces})))


def _drop_unknown(values: Floats, bounds: Bounds) -> tuple[Floats, Bounds]:
    finite = np.isfinite(values)
    if finite.all():
        return values, bounds
    return values[finite], np.concatenate(([0], np.cumsum(finite, dtype=np.int64)))[bounds]


def _measure_block(metric: Metric, values: Floats, bounds: Bounds, window: int) -> Doubles:
    sums = cumulative(values)
    begin, end = bounds[:-1], bounds[1:]
    tokens = end - begin
    present = tokens > 0
    tokens = np.maximum(tokens, 1)
    match metric:
        case Metric.MEAN:
            result = (sums[end] - sums[begin]) / tokens
        case Metric.TAIL:
            width = np.minimum(tokens, window) * present
            result = (sums[end] - sums[end - width]) / np.maximum(width, 1)
        case Metric.HEAD:
            width = np.maximum((tokens * HEAD_SHARE).astype(np.int64), 1) * present
            result = (sums[begin + width] - sums[begin]) / np.maximum(width, 1)
        case Metric.LOWEST_GROUP:
            result = _over_groups(partial(_reduce, np.minimum), sums, begin, end, window)
        case Metric.BOTTOM_10:
            result = _over_groups(_bottom, sums, begin, end, window)
    return np.where(present, result, nan)


def _over_groups(
    summary: Callable[..., Doubles], sums: Doubles, begin: Bounds, end: Bounds, window: int
) -> Doubles:
    """A summary of each trace's group confidences; a trace shorter than the window has one."""
    tokens = end - begin
    result = (sums[end] - sums[begin]) / np.maximum(tokens, 1)
    full = np.flatnonzero(tokens >= window)
    if full.size:
        groups = sums[window:] - sums[:-window]
        result[full] = summary(groups, begin[full], end[full] - window + 1) / window
    return result


def _bottom(groups: Doubles, first: Bounds, stop: Bounds) -> Doubles:
    lowest = np.maximum(((stop - first) * BOTTOM_SHARE).astype(np.int64), 1)
    for a, b, count in zip(first.tolist(), stop.tolist(), lowest.tolist(), strict=True):
        if b - a <= _SORTED_GROUPS:
            groups[a:b].sort()
        else:
            groups[a:b].partition(count - 1)
    return _reduce(np.add, groups, first, first + lowest) / lowest


def _reduce(operation: np.ufunc, values: Doubles, first: Bounds, stop: Bounds) -> Doubles:
    """`operation` over values[first:stop], for each pair of bounds; none of them empty."""
    # reduceat answers for the gaps between the segments too, and takes no bound past the end.
    bounds = np.stack((first, stop), axis=1).ravel()
    bounds = bounds[:-1] if bounds[-1] == values.size else bounds
    return operation.reduceat(values, bounds)[::2]


class GroupWindow:
    """A trace's confidences as they come: O(1) time per token, some two windows of memory.

    Args:
        window: Tokens in a group, at least 1.
    """

    __slots__ = ("_last", "_least", "_origin", "_sums", "_view", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        # Cumulative sums, the newest at `_last`, and S_0 at `_origin`. When there is no room
        # left, those of the last group move to the front, and `_origin` becomes negative.
        self._sums = array("d", bytes(8 * (2 * window + _ROOM)))
        self._view = np.frombuffer(self._sums, np.float64)
        self._origin = self._last = 0
        self._least = inf

    def push(self, confidences: Floats) -> float:
        """Take the next tokens of the trace, shape (tokens,); unknown ones are left out.

        Returns:
            The lowest confidence of the full groups that they completed; infinity without any.
        """
        many = confidences.size > _SCALAR_CHUNK
        least = self._push_many(confidences) if many else self._push_few(confidences)
        self._least = min(self._least, least)
        return least / self.window

    def _push_few(self, confidences: Floats) -> float:
        """Push token by token; the least group sum that was completed."""
        if self._last + confidences.size >= len(self._sums):
            self._make_room()
        sums, last, window, least = self._sums, self._last, self.window, inf
        full, total = self._origin + window, sums[last]
        for value in confidences.tolist():
            if not isfinite(value):
                continue
            last += 1
            sums[last] = total = total + value
            if last >= full:
                group = total - sums[last - window]
                if group < least:  # noqa: PLR1730  # min() costs as much as all the rest
                    least = group
        self._last = last
        return least

    def _push_many(self, confidences: Floats) -> float:
        """Push with array operations; the least group sum that was completed."""
        view, window, least = self._view, self.window, inf
        values = known(confidences)
        while values.size:
            if self._last + 1 == view.size:
                self._make_room()
            begin = self._last
            end = min(begin + values.size, view.size - 1)
            new, values = values[: end - begin], values[end - begin :]
            view[begin + 1 : end + 1] = new
            # Continues the addition where it stood, so the sums are those of `cumulative`.
            np.cumsum(view[begin : end + 1], out=view[begin : end + 1])
            self._last = end
            first = max(begin + 1, self._origin + window)
            if first <= end:
                groups = view[first : end + 1] - view[first - window : end + 1 - window]
                least = min(least, float(groups.min()))
        return least

    def _make_room(self) -> None:
        group = self._view[self._last - self.window : self._last + 1].copy()
        self._view[: group.size] = group
        self._origin -= self._last - self.window
        self._last = self.window

    def safe_tokens(self, threshold: float) -> int:
        """How many tokens, from 0 to the window, can come before a full group is below `threshold`.

        However low they are: a confidence is never negative, so a group sum shrinks at most by
        the tokens that leave it. So a gate that is checked now and then can fire at the very token
        at which it would fire if it were checked every time.
        """
        if self.count < self.window:
            return self.window - self.count - 1
        sums, window, last = self._sums, self.window, self._last
        total, begin = sums[last], last - window
        # The very expression of a group confidence, so that rounding cannot tell them apart.
        return bisect_left(
            range(1, window + 1),
            True,  # noqa: FBT003  # the value that is searched for
            key=lambda tokens: (total - sums[begin + tokens]) / window < threshold,
        )

    @property
    def count(self) -> int:
        """Known tokens so far."""
        return self._last - self._origin

    @property
    def mean(self) -> float:
        """Mean over all known tokens so far (eq. 3); NaN before the first."""
        return self._sums[self._last] / self.count if self.count else nan

    @property
    def current(self) -> float:
        """Confidence of the group that ends here (eq. 4, and eq. 7 at the end of a trace).

        Before the window is full: of what there is. NaN before the first token.
        """
        if self.count < self.window:
            return self.mean
        return (self._sums[self._last] - self._sums[self._last - self.window]) / self.window

    @property
    def lowest(self) -> float:
        """Lowest group confidence so far (eq. 6); before the window is full, of what there is."""
        return self._least / self.window if self.count >= self.window else self.mean
