import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conviction.core import InvalidSettingError
from conviction.gate import Gate

traces = hnp.arrays(
    np.float32,
    st.integers(0, 120),
    elements=st.one_of(st.floats(0.0, 20.0, width=32), st.sampled_from([math.nan, math.inf])),
)
gates = st.builds(Gate, window=st.integers(1, 30), threshold=st.floats(0.0, 20.0))


@given(gates, traces)
def test_a_stream_stops_at_the_very_token_where_a_recording_does(
    gate: Gate, confidences: np.ndarray
) -> None:
    monitor = gate.monitor()
    fired = (n for n in range(1, confidences.size + 1) if monitor.push(confidences[n - 1 : n]))
    assert next(fired, None) == gate.stop_position(confidences)


@given(gates, traces, st.data())
def test_in_chunks_it_stops_in_the_chunk_that_holds_that_token(
    gate: Gate, confidences: np.ndarray, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, confidences.size), max_size=6)))
    monitor, seen, stopped = gate.monitor(), 0, None
    for chunk in np.split(confidences, cuts):
        seen += chunk.size
        if monitor.push(chunk):
            stopped = seen
            break
    position = gate.stop_position(confidences)
    expected = None
    if position is not None:
        expected = min(end for end in [*cuts, confidences.size] if end >= position)
    assert stopped == expected


def test_a_trace_shorter_than_the_window_is_never_stopped() -> None:
    assert Gate(window=5, threshold=9.0).stop_position(np.ones(4)) is None
    assert Gate(window=4, threshold=9.0).stop_position(np.ones(4)) == 4


def test_a_group_exactly_at_the_threshold_goes_on() -> None:
    assert Gate(window=2, threshold=3.0).stop_position(np.full(9, 3.0)) is None


@pytest.mark.parametrize(("window", "threshold"), [(0, 1.0), (-3, 1.0), (4, math.nan)])
def test_impossible_settings_are_refused(window: int, threshold: float) -> None:
    with pytest.raises(InvalidSettingError, match=r"window|threshold"):
        Gate(window, threshold)
