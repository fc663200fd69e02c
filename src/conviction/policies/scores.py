"""A trace's confidence under a metric, measured once."""

from conviction.confidence import Metric, confidence_gain, measure
from conviction.core import Trace
from conviction.registry import unknown_name

_GAIN = ("gain", 0)


def check_metric(metric: str) -> Metric:
    """The metric that a user named.

    Raises:
        UnknownNameError: no metric has this name.
    """
    if metric not in set(Metric):
        raise unknown_name("metric", metric, [known.value for known in Metric])
    return Metric(metric)


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


def gain(trace: Trace) -> float:
    """How much its confidence rose; `confidence_gain`, kept with the trace as a score is."""
    known = trace.scores.get(_GAIN)
    if known is None:
        known = trace.scores[_GAIN] = confidence_gain(trace.confidences)
    return known
