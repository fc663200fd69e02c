"""How policies measure a trace: its confidence under a metric, and how many tokens a group holds.

The paper's window of 2048 suits traces of tens of thousands of tokens. On traces shorter than
the window the stop test never fires, so where the user sets none it follows the traces.
"""

from collections.abc import Sequence

import numpy as np

from conviction.confidence import Metric, confidence_gain, measure
from conviction.core import Trace, require, require_whole
from conviction.registry import unknown_name

PAPER_WINDOW = 2048
LEAST_WINDOW = 16
"""Fewer tokens measure single words rather than a stretch of reasoning."""

_PART_OF_TRACE = 3
"""A third of a trace: long enough to be steady, short enough to save most of a weak trace."""
_MOST_WINDOW = 1 << 17
"""Every trace that runs keeps memory for two windows, and a client of the server may set them."""
_GAIN = ("gain", 0)


def check_window(window: int | None) -> None:
    """Check a window that a user set.

    Raises:
        InvalidSettingError: it is no whole number from 1 to 131,072.
    """
    if window is not None:
        require_whole("window", window, low=1)
        require("window", window, low=1, high=_MOST_WINDOW)


def fitting_window(traces: Sequence[Trace]) -> int:
    """A third of the median trace, from 16 to the paper's 2048 tokens; 2048 without traces."""
    if not traces:
        return PAPER_WINDOW
    median = float(np.median([trace.tokens for trace in traces]))
    return min(max(round(median / _PART_OF_TRACE), LEAST_WINDOW), PAPER_WINDOW)


def check_metric(metric: str) -> Metric:
    """The metric that a user named.

    Raises:
        UnknownNameError: no metric has this name.
    """
    if metric not in set(Metric):
        raise unknown_name("metric", metric, [known.value for known in Metric])
    return Metric(metric)


def score(trace: Trace, metric: Metric, window: int) -> float:
    """The trace's confidence (eqs. 3, 5, 6, 7) with groups of `window` tokens; NaN if unknown.

    Kept with the trace: policies ask again after every trace that ends, and recordings replay the
    same trace thousands of times.
    """
    key = (metric.value, window)
    known = trace.scores.get(key)
    if known is None:
        known = trace.scores[key] = measure(metric, trace.confidences, window)
    return known


def gain(trace: Trace) -> float:
    """How much its confidence rose; `confidence_gain`, kept with the trace as a score is."""
    known = trace.scores.get(_GAIN)
    if known is None:
        known = trace.scores[_GAIN] = confidence_gain(trace.confidences)
    return known
