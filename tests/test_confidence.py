import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conviction.confidence import (
    GroupWindow,
    Metric,
    confidence_gain,
    cumulative,
    group_confidences,
    measure,
    measure_pool,
    token_confidence,
    token_confidences,
)

confidence_values = st.one_of(
    st.floats(0.0, 60.0, width=32), st.sampled_from([math.nan, math.inf, -math.inf])
)
traces = hnp.arrays(np.float32, st.integers(0, 150), elements=confidence_values)
windows = st.integers(1, 40)


def chunked(data: st.DataObject, values: np.ndarray) -> list[np.ndarray]:
    cuts = data.draw(st.lists(st.integers(0, values.size), max_size=8))
    return np.split(values, sorted(cuts))


def by_hand(metric: Metric, values: list[float], window: int) -> float:
    """The definitions of METHOD.md, written as slowly and plainly as possible."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return math.nan

    def mean(xs: list[float]) -> float:
        return math.fsum(xs) / len(xs)

    if len(values) < window:
        groups = [mean(values)]
    else:
        groups = [mean(values[i : i + window]) for i in range(len(values) - window + 1)]
    return {
        Metric.MEAN: lambda: mean(values),
        Metric.TAIL: lambda: mean(values[-window:]),
        Metric.HEAD: lambda: mean(values[: max(1, int(len(values) * 0.1))]),
        Metric.LOWEST_GROUP: lambda: min(groups),
        Metric.BOTTOM_10: lambda: mean(sorted(groups)[: max(1, int(len(groups) * 0.1))]),
    }[metric]()


@given(traces, windows, st.sampled_from(Metric))
def test_each_metric_follows_its_definition(
    values: np.ndarray, window: int, metric: Metric
) -> None:
    expected = by_hand(metric, values.tolist(), window)
    assert measure(metric, values, window) == pytest.approx(
        expected, rel=1e-9, abs=1e-9, nan_ok=True
    )


@given(traces)
def test_the_gain_is_the_last_tenth_less_the_first(values: np.ndarray) -> None:
    known = [value for value in values.tolist() if math.isfinite(value)]
    tenth = max(len(known) // 10, 1)
    ends = [math.fsum(part) / tenth for part in (known[-tenth:], known[:tenth])]
    expected = ends[0] - ends[1] if known else math.nan
    assert confidence_gain(values) == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@given(st.lists(traces, max_size=6), windows, st.sampled_from(Metric))
def test_a_pool_is_measured_like_its_traces_one_by_one(
    pool: list[np.ndarray], window: int, metric: Metric
) -> None:
    offsets = np.cumsum([0, *(trace.size for trace in pool)])
    flat = np.concatenate([np.empty(0, np.float32), *pool])
    together = measure_pool(metric, flat, offsets, window)
    alone = [measure(metric, trace, window) for trace in pool]
    assert together == pytest.approx(alone, rel=1e-9, abs=1e-9, nan_ok=True)


def test_a_pool_larger_than_a_block_is_measured_like_its_traces_one_by_one() -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(0, 9000, 60)
    lengths[7] = 200_000
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    flat = random.gamma(4.0, 3.0, offsets[-1]).astype(np.float32)
    for metric in Metric:
        together = measure_pool(metric, flat, offsets, 64)
        alone = [measure(metric, flat[a:b], 64) for a, b in pairwise(offsets)]
        assert together == pytest.approx(alone, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("groups", [1, 9, 255, 256, 257, 1000])
def test_the_lowest_tenth_of_few_and_of_many_groups_follows_its_definition(groups: int) -> None:
    values = np.random.default_rng(groups).gamma(4.0, 3.0, groups + 15).astype(np.float32)
    expected = by_hand(Metric.BOTTOM_10, values.tolist(), 16)
    assert measure(Metric.BOTTOM_10, values, 16) == pytest.approx(expected, rel=1e-9)


@given(st.data(), traces, windows)
def test_streaming_equals_vectorised_bit_for_bit(
    data: st.DataObject, values: np.ndarray, window: int
) -> None:
    stream = GroupWindow(window)
    lowest = [stream.push(chunk) for chunk in chunked(data, values)]
    groups = group_confidences(values, window)
    known = values[np.isfinite(values)]
    assert stream.count == known.size
    if known.size == 0:
        assert math.isnan(stream.current)
        assert math.isnan(stream.lowest)
        assert math.isnan(stream.mean)
        return
    assert stream.lowest == groups.min() == measure(Metric.LOWEST_GROUP, values, window)
    assert stream.current == groups[-1] == measure(Metric.TAIL, values, window)
    assert stream.mean == cumulative(known)[-1] / known.size == measure(Metric.MEAN, values, window)
    if known.size >= window:
        assert min(lowest) == groups.min()
    else:
        assert set(lowest) <= {math.inf}


@given(st.integers(1, 30), st.lists(st.floats(0, 60, width=32), min_size=60, max_size=400))
def test_long_chunks_and_single_tokens_stream_alike(window: int, values: list[float]) -> None:
    array = np.array(values, np.float32)
    one_by_one, at_once = GroupWindow(window), GroupWindow(window)
    lowest = min(one_by_one.push(array[i : i + 1]) for i in range(array.size))
    assert at_once.push(array) == lowest
    assert at_once.push(array[:3]) == one_by_one.push(array[:3])
    assert (at_once.current, at_once.lowest) == (one_by_one.current, one_by_one.lowest)


def test_only_the_k_largest_count_not_the_sampled_token_beside_them() -> None:
    best = [-0.1, -2.5, -4.0]
    assert token_confidence([*best, -17.0], 3) == token_confidence(best, 3) == pytest.approx(2.2)


@pytest.mark.parametrize("unusable", [-math.inf, math.nan, -9999.0, math.inf])
def test_too_few_usable_values_make_a_confidence_unknown_rather_than_wrong(
    unusable: float,
) -> None:
    assert math.isnan(token_confidence([-0.5, unusable], 2))
    assert token_confidence([-0.5, unusable, -1.5], 2) == 1.0
    assert math.isnan(token_confidence([], 1))


def test_uniform_distributions_give_the_least_confidence() -> None:
    assert token_confidence([-math.log(20)] * 20, 20) == pytest.approx(math.log(20))


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 20), st.integers(1, 12)),
        elements=st.one_of(
            st.floats(-50, 0, width=32), st.sampled_from([math.nan, -math.inf, -9999.0])
        ),
    ),
    st.data(),
)
def test_confidences_of_many_tokens_equal_those_of_each(
    logprobs: np.ndarray, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, logprobs.shape[1]))
    each = [token_confidence(row, k) for row in logprobs.tolist()]
    assert token_confidences(logprobs, k) == pytest.approx(each, rel=1e-5, abs=1e-5, nan_ok=True)


def test_a_trace_shorter_than_the_window_has_one_group_of_all_it_has() -> None:
    assert group_confidences(np.array([4.0, 8.0]), 2048).tolist() == [6.0]


def test_a_trace_without_known_tokens_has_no_groups_and_no_confidence() -> None:
    assert group_confidences(np.array([math.nan]), 4).size == 0
    assert all(math.isnan(measure(metric, np.array([math.nan]), 4)) for metric in Metric)


@given(
    st.integers(1, 40),
    st.floats(-1, 60),
    st.lists(st.floats(0, 60, width=32), max_size=120),
    st.lists(st.floats(0, 60, width=32), max_size=80),
)
def test_no_group_falls_below_a_threshold_within_the_safe_tokens(
    window: int, threshold: float, before: list[float], after: list[float]
) -> None:
    stream = GroupWindow(window)
    stream.push(np.array(before, np.float32))
    safe = stream.safe_tokens(threshold)
    assert 0 <= safe <= window
    assert not stream.push(np.array(after[:safe], np.float32)) < threshold


@given(
    st.integers(1, 40),
    st.floats(0.1, 60),
    st.lists(st.floats(0, 60, width=32), max_size=120),
)
def test_one_more_than_the_safe_tokens_can_fall_below(
    window: int, threshold: float, before: list[float]
) -> None:
    stream = GroupWindow(window)
    stream.push(np.array(before, np.float32))
    safe = stream.safe_tokens(threshold)
    lowest = stream.push(np.zeros(safe + 1, np.float32))
    if len(before) >= window:
        assert lowest < threshold
    else:
        assert stream.count == window  # nothing is claimed beyond the first full group


@given(st.data(), st.integers(1, 700), st.integers(0, 2**32))
def test_long_streams_of_any_chunks_equal_one_array(
    data: st.DataObject, window: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.gamma(4.0, 3.0, data.draw(st.integers(0, 5000))).astype(np.float32)
    values[random.random(values.size) < 0.02] = math.nan
    stream, at = GroupWindow(window), 0
    while at < values.size:
        size = data.draw(st.sampled_from([1, 7, 48, 49, 300, 2000]))
        stream.push(values[at : at + size])
        at += size
    groups = group_confidences(values, window)
    assert stream.count == np.isfinite(values).sum()
    if groups.size:
        assert stream.lowest == groups.min()
        assert stream.current == groups[-1]
