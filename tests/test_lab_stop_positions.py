"""Where a recorded trace would have been stopped, found for all thresholds at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import FinishReason
from conviction.gate import Gate
from conviction.lab.replay import PlayedTrace


@given(
    seed=st.integers(0, 1 << 16),
    tokens=st.integers(1, 30_000),
    window=st.sampled_from([1, 16, 300, 2048]),
    drift=st.sampled_from([-8.0, -1.0, 0.0, 3.0]),
    unknown=st.sampled_from([0.0, 0.01]),
)
def test_a_long_trace_stops_where_its_gate_says(
    seed: int, tokens: int, window: int, drift: float, unknown: float
) -> None:
    random = np.random.default_rng(seed)
    values = random.gamma(9.0, 1.5, tokens) + np.linspace(0.0, drift, tokens)
    confidences = np.maximum(values, 0.0).astype(np.float32)
    confidences[random.random(tokens) < unknown] = np.nan
    trace = PlayedTrace(tokens, FinishReason.STOP, None, confidences=confidences)
    for threshold in (0.0, *np.quantile(values, [0.01, 0.2, 0.4, 0.5, 0.6]).tolist(), 1e9):
        gate = Gate(window, threshold)
        assert trace.stop_position(gate) == gate.stop_position(confidences)


@pytest.mark.parametrize("drift", [-20.0, 20.0])
def test_a_trace_whose_confidence_only_falls_or_only_rises_stops_where_its_gate_says(
    drift: float,
) -> None:
    confidences = np.linspace(30.0, 30.0 + drift, 20_000).astype(np.float32)
    trace = PlayedTrace(20_000, FinishReason.STOP, None, confidences=confidences)
    for threshold in (12.0, 20.0, 29.999, 30.0, 31.0):
        gate = Gate(64, threshold)
        assert trace.stop_position(gate) == gate.stop_position(confidences)
