"""Both interfaces, driven as vLLM drives them, through any order of what may happen to a batch."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from conviction import Gate
from conviction_gate import channel
from conviction_gate.processor import ConfidenceGate

VOCABULARY, STOP, K = 32, 31, 4
_RUNNING = 4


def config(**changes: Any) -> Any:
    settings = {
        "speculative_config": None,
        "parallel_config": SimpleNamespace(tensor_parallel_size=1),
        "scheduler_config": SimpleNamespace(max_num_seqs=_RUNNING),
    }
    return SimpleNamespace(**settings | changes)


def params(window: int, threshold: float, report: str = "", **more: Any) -> SamplingParams:
    arguments: dict[str, Any] = {"conviction_k": K}
    if window:
        arguments |= {
            "conviction_window": window,
            "conviction_threshold": threshold,
            "conviction_stop_token": STOP,
        }
    if report:
        arguments["conviction_report"] = report
    return SamplingParams(extra_args=arguments, stop_token_ids=[STOP], **more)


def make_channel(folder: Path, tokens: int) -> str:
    name = f"conviction-{os.urandom(16).hex()}"
    empty = channel.HEADER.pack(channel.MAGIC, channel.VERSION, tokens, 0, 0, 0, 0)
    (folder / name).write_bytes(empty + bytes(4 * tokens))
    return name


def read_channel(path: Path) -> tuple[tuple[int, ...], list[float]]:
    data = path.read_bytes()
    counts = channel.HEADER.unpack_from(data)[3:]
    return counts, list(struct.unpack_from(f"<{counts[0]}f", data, channel.HEADER_BYTES))


def confidence(row: np.ndarray) -> float:
    values = row.astype(np.float64)
    logsumexp = values.max() + np.log(np.exp(values - values.max()).sum())
    return float(logsumexp - np.sort(values)[-K:].mean())


class Trace:
    """A trace of logits that are drawn beforehand, and what should come of it."""

    def __init__(self, seed: int, window: int, threshold: float, report: str) -> None:
        random = np.random.default_rng(seed)
        tokens = int(random.integers(1, 14))
        self.logits = (random.normal(0, 1, (tokens, VOCABULARY)) * random.uniform(0.2, 4)).astype(
            np.float32
        )
        if seed % 3 == 0:
            self.logits[random.integers(tokens), 3] = np.nan
        self.params = params(window, threshold, report) if window or report else SamplingParams()
        self.prefill = int(random.integers(0, 3))
        self.output: list[int] = []
        self.confidences = np.array([confidence(row) for row in self.logits], np.float32)
        self.stop = Gate(window, threshold).stop_position(self.confidences) if window else None
        self.window, self.report = window, report
        self.left = self.prefill

    @property
    def over(self) -> bool:
        return bool(self.output) and (
            self.output[-1] == STOP or len(self.output) == len(self.logits)
        )


class FirstRunner:
    """As runner V1 goes about it: rows that move, and requests that leave and come back."""

    def __init__(self) -> None:
        self.gate = ConfidenceGate(config(), torch.device("cpu"), False)  # noqa: FBT003
        self.rows: list[Trace] = []

    def batch(self, wanted: list[Trace], *, reverse: bool) -> None:
        removed = [row for row, trace in enumerate(self.rows) if trace not in wanted]
        places: dict[int, Trace] = {
            row: trace for row, trace in enumerate(self.rows) if trace in wanted
        }
        added: list[Any] = []
        moved: list[Any] = []
        empty = sorted(removed)
        for trace in wanted:
            if trace in places.values():
                continue
            row = empty.pop(0) if empty else len(places)
            if row in removed:
                removed.remove(row)
            places[row] = trace
            added.append((row, trace.params, [1], trace.output))
        while empty:  # The last rows move into the gaps.
            last = max(places, default=-1)
            gap = empty.pop(0)
            if gap < last:
                places[gap] = places.pop(last)
                moved.append((last, gap, MoveDirectionality.UNIDIRECTIONAL))
        self.rows = [places[row] for row in range(len(places))]
        if reverse and len(self.rows) > 1:
            self.rows[0], self.rows[-1] = self.rows[-1], self.rows[0]
            moved.append((0, len(self.rows) - 1, MoveDirectionality.SWAP))
        any_change = removed or added or moved
        change = BatchUpdate(len(self.rows), removed, added, moved) if any_change else None
        self.gate.update_state(change)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return self.gate.apply(logits)


class SecondRunner:
    """As runner V2 goes about it: a slot per request, and another order of rows in every step."""

    def __init__(self) -> None:
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=_RUNNING,
            prompt_len=SimpleNamespace(np=np.zeros(_RUNNING, np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(_RUNNING, np.int32)),
        )
        self.gate = ConfidenceGate(config(), self.states)
        self.slots: dict[int, Trace] = {}
        self.rows: list[Trace] = []
        self.prompt = 5

    def batch(self, wanted: list[Trace], *, reverse: bool) -> None:
        self.slots = {slot: trace for slot, trace in self.slots.items() if trace in wanted}
        for trace in wanted:
            if trace in self.slots.values():
                continue
            slot = next(s for s in range(_RUNNING) if s not in self.slots)
            self.slots[slot] = trace
            self.states.prompt_len.np[slot] = self.prompt
            self.states.prefill_len.np[slot] = self.prompt + len(trace.output)
            self.gate.add_request(slot, trace.params)
        self.gate.apply_staged_writes()
        self.rows = wanted[::-1] if reverse else list(wanted)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        slots = np.array(
            [next(s for s, t in self.slots.items() if t is trace) for trace in self.rows]
        )
        lengths = np.array(
            [self.prompt + len(t.output) - (1 if t.left else 0) for t in self.rows], np.int32
        )
        context = SimpleNamespace(idx_mapping_np=slots, seq_lens_upper_bound_np=lengths)
        return self.gate.apply(logits, context)


@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
@given(
    traces=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 4), st.floats(0.0, 12.0), st.booleans()),
        min_size=1,
        max_size=7,
    ),
    script=st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.booleans()), max_size=25),
)
@settings(deadline=None, max_examples=100)
def test_every_trace_is_stopped_and_reported_as_if_it_were_alone(
    runner: Callable[[], Any],
    traces: list[tuple[int, int, float, bool]],
    script: list[tuple[int, bool, bool]],
) -> None:
    folder = channel.folder()
    made = [
        Trace(seed, window, threshold, make_channel(folder, 14) if reported else "")
        for seed, window, threshold, reported in traces
    ]
    try:
        _play(runner(), made, script)
        for trace in made:
            _check(trace, folder)
    finally:
        for trace in made:
            if trace.report:
                (folder / trace.report).unlink()


def _play(runner: Any, made: list[Trace], script: list[tuple[int, bool, bool]]) -> None:
    steps = iter(script)
    # Only what has a report can find its window again in another slot of runner V2.
    portable = isinstance(runner, FirstRunner)
    running: list[Trace] = []
    while waiting := [trace for trace in made if not trace.over]:
        leave, reverse, new_list = next(steps, (0, False, False))
        kept = [
            trace
            for place, trace in enumerate(running)
            if not trace.over
            and (not leave >> place & 1 or not (portable or trace.report or not trace.window))
        ]
        for trace in waiting:
            if trace not in kept and len(kept) < _RUNNING and (trace not in running or not leave):
                kept.append(trace)
                trace.left = trace.prefill  # All that is known is computed again.
                if new_list:
                    trace.output = list(trace.output)
        running = kept
        runner.batch(list(running), reverse=reverse)
        if not running:
            continue
        rows = runner.rows
        logits = torch.tensor(np.array([_logits(trace) for trace in rows]), dtype=torch.float32)
        before = logits.clone()
        after = runner.apply(logits)
        for row, trace in enumerate(rows):
            if trace.left:
                trace.left -= 1
                continue
            place = len(trace.output)
            if after[row, STOP] > 1e20:
                assert trace.window
                trace.output.append(STOP)
            else:
                assert not trace.window or after[row, STOP] == -np.inf
                trace.output.append(1)
            same = torch.equal(after[row, :STOP].nan_to_num(7), before[row, :STOP].nan_to_num(7))
            assert same, place


def _logits(trace: Trace) -> np.ndarray:
    # Rows before the end of a prompt hold anything.
    return trace.logits[len(trace.output)] if not trace.left else trace.logits[0][::-1] * 0.1


def _check(trace: Trace, folder: Path) -> None:
    stopped = trace.output[-1] == STOP
    assert (len(trace.output) if stopped else None) == trace.stop
    if trace.report:
        (written, unknown, stop, lost), values = read_channel(folder / trace.report)
        assert written == len(trace.output)
        assert stop == (trace.stop or 0)
        assert lost == 0
        wanted = trace.confidences[:written]
        assert unknown == np.count_nonzero(~np.isfinite(wanted))
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_traces_beyond_what_is_held_lose_their_window_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = FirstRunner()
    first = Trace(1, 3, 0.5, "")
    first.output.append(1)
    runner.batch([first], reverse=False)
    assert "its window begins anew with 0 of 3" in caplog.text or "0 of 1" in caplog.text


def test_under_speculative_decoding_all_others_are_served_as_ever() -> None:
    gate = ConfidenceGate(config(speculative_config=object()), torch.device("cpu"), False)  # noqa: FBT003
    gate.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [1], [])], []))
    logits = torch.full((1, VOCABULARY), 2.0)
    assert gate.apply(logits) is logits
    assert (logits == 2.0).all()
    assert not gate.add_request(0, SamplingParams())


def test_a_batch_that_concerns_no_gate_is_left_alone() -> None:
    runner = FirstRunner()
    runner.batch([Trace(5, 0, 0.0, "")], reverse=False)
    logits = torch.full((1, VOCABULARY), float("nan"))
    assert runner.apply(logits) is logits
    assert logits.isnan().all()
