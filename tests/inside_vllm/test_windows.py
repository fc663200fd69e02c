"""The windows on the device stop at the token at which a gate stops a recording."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conviction import Gate
from conviction_gate.arguments import Arguments
from conviction_gate.confidence import plain_confidences
from conviction_gate.windows import Windows

_CPU = torch.device("cpu")

confidences = st.lists(
    st.one_of(st.floats(0, 30, width=32), st.just(float("nan")), st.just(float("inf"))),
    max_size=60,
)
gates = st.tuples(st.integers(1, 12), st.floats(0, 25))


def _gated(window: int, threshold: float, least: int = 0) -> Arguments:
    return Arguments(window=window, threshold=threshold, least_tokens=least)


def _expected(window: int, threshold: float, values: list[float]) -> int | None:
    return Gate(window, threshold).stop_position(np.array(values, np.float32))


@given(st.lists(st.tuples(gates, confidences), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_every_trace_of_a_batch_stops_where_its_gate_says(
    traces: list[tuple[tuple[int, float], list[float]]],
) -> None:
    windows = Windows(8, _CPU, room=1)
    stops: dict[int, int] = {}
    slots = [7 - place for place in range(len(traces))]
    for slot, (gate, _) in zip(slots, traces, strict=True):
        windows.begin(slot, _gated(*gate), 0)
        windows.flush()  # One by one, so that rings are widened while others run.
    for token in range(60):
        running = [
            place
            for place, (_, values) in enumerate(traces)
            if token < len(values) and place not in stops
        ]
        if not running:
            break
        low = windows.step(
            torch.tensor([slots[place] for place in running]),
            torch.tensor([traces[place][1][token] for place in running]),
        )
        for place, stopped in zip(running, low.tolist(), strict=True):
            if stopped:
                stops[place] = token + 1
    for place, (gate, values) in enumerate(traces):
        assert stops.get(place) == _expected(*gate, values)


@given(gates, confidences, st.data())
@settings(deadline=None, max_examples=150)
def test_tokens_that_did_not_count_change_nothing(
    gate: tuple[int, float], values: list[float], data: st.DataObject
) -> None:
    windows = Windows(1, _CPU, room=1)
    windows.begin(0, _gated(*gate), 0)
    windows.flush()
    slot, stop = torch.tensor([0]), None
    for number, value in enumerate(values):
        for false in data.draw(st.lists(st.floats(0, 30, width=32), max_size=2)):
            windows.step(slot, torch.tensor([false]))
            windows.take_back([0])
        if windows.step(slot, torch.tensor([value])).item():
            stop = number + 1
            break
    assert stop == _expected(*gate, values)


@given(gates, confidences, st.integers(0, 60), st.integers(0, 1))
@settings(deadline=None, max_examples=100)
def test_a_trace_that_was_put_aside_goes_on_as_if_nothing_had_happened(
    gate: tuple[int, float], values: list[float], cut: int, dropped: int
) -> None:
    before = values[:cut]
    if _expected(*gate, before) is not None:
        return
    windows, slot, stop = Windows(2, _CPU, room=1), torch.tensor([0]), None
    windows.begin(0, _gated(*gate), 0)
    windows.flush()
    # vLLM may have computed a token more, which nobody gets.
    for value in [*before, *[0.5] * dropped]:
        windows.step(slot, torch.tensor([value]))
    windows.begin(1, _gated(3, 0.0), 0)
    windows.resume(0, len(before))
    windows.flush()
    for number, value in enumerate(values[cut:], len(before)):
        if windows.step(slot, torch.tensor([value])).item():
            stop = number + 1
            break
    assert stop == _expected(*gate, values)


@given(gates, confidences, confidences, st.integers(2, 60))
@settings(deadline=None, max_examples=100)
def test_a_window_that_cannot_be_told_begins_anew(
    gate: tuple[int, float], before: list[float], after: list[float], dropped: int
) -> None:
    windows, slot, stop = Windows(1, _CPU, room=1), torch.tensor([0]), None
    windows.begin(0, _gated(*gate), 0)
    windows.flush()
    for value in [*before, *[1.0] * dropped]:
        windows.step(slot, torch.tensor([value]))
    windows.resume(0, len(before))
    windows.flush()
    for number, value in enumerate(after):
        if windows.step(slot, torch.tensor([value])).item():
            stop = number + 1
            break
    assert stop == _expected(*gate, after)


@given(gates, confidences, st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_nothing_is_stopped_before_its_least_tokens(
    gate: tuple[int, float], values: list[float], least: int
) -> None:
    windows = Windows(1, _CPU, room=1)
    windows.begin(0, _gated(*gate, least=least), 0)
    windows.flush()
    for number, value in enumerate(values):
        stopped = windows.step(torch.tensor([0]), torch.tensor([value])).item()
        assert not stopped or number >= least


@given(st.integers(1, 40), st.integers(1, 60) | st.integers(64, 12_000), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=100)
def test_confidence_is_the_mean_of_the_largest_log_probabilities(
    most: int, vocabulary: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 5, (3, vocabulary)).astype(np.float32)
    logits[1] = logits[1].round()  # Many are as large.
    logits[2].sort()
    ks = random.integers(1, most + 1, 3)
    found = plain_confidences(torch.from_numpy(logits), torch.from_numpy(ks), int(ks.max()))
    for row, k, value in zip(logits.astype(np.float64), ks, found.tolist(), strict=True):
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        wanted = -np.sort(logprobs)[::-1][: min(k, vocabulary)].mean()
        assert abs(value - wanted) < 1e-4
