"""A trace's confidence under a metric, measured once."""

from conviction.confidence import Metric, measure
from conviction.core import Trace


def score(trace: Trace, metric: Metric, window: int) -> float:
    """The trace's confidence (eqs. 3, 5, 6, 7); NaN if no token's confidence is known.

    Kept with the trace: policies ask again after every trace that ends, and recordings replay the
    same trace thousands of times.

    Args:
        trace: The trace.
        metric: How it is measured.
        window: Tokens in a group, at least 1.
    """
    key = (metric.value, window)
    known = trace.scores.get(key)
    if known is None:
        known = trace.scores[key] = measure(metric, trace.confidences, window)
    return known
