"""Both interfaces, driven as vLLM drives them, through any order of what may happen to a batch."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from conviction import Gate
from conviction_gate import channel, processor, reports
from conviction_gate.names import MOST_WINDOW
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
    empty = channel.HEADER.pack(channel.MAGIC, channel.VERSION, tokens, 0)
    (folder / name).write_bytes(empty + bytes(4 * tokens))
    return name


def read_channel(path: Path) -> list[float]:
    data = path.read_bytes()
    written = channel.HEADER.unpack_from(data)[3]
    return list(struct.unpack_from(f"<{written}f", data, channel.HEADER_BYTES))


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
        self.joined = 0

    @property
    def over(self) -> bool:
        return bool(self.output) and (
            self.output[-1] == STOP or len(self.output) == len(self.logits)
        )


class Step(NamedTuple):
    """What happens before a step.

    Attributes:
        leave: Traces that are put aside, a bit each.
        reverse: Whether rows are in another order.
        renew: Whether vLLM makes new lists of what it computes again.
        drop: Whether the last tokens of those that are put aside come to nothing.
        again: Whether all are put aside, and resumed in the same step.
    """

    leave: int = 0
    reverse: bool = False
    renew: bool = False
    drop: bool = False
    again: bool = False


class FirstRunner:
    """Runner V1, by vLLM's own batch: rows that move, and requests that leave and come back."""

    def __init__(self, gate: ConfidenceGate | None = None) -> None:
        self.gate = gate or ConfidenceGate(config(), torch.device("cpu"), False)  # noqa: FBT003
        self._batch = InputBatch(
            *(_RUNNING, 64, 64, torch.device("cpu"), VOCABULARY, [16], [8]),
            logitsprocs=LogitsProcessors([self.gate]),
        )
        self._traces: dict[str, Trace] = {}

    def batch(self, wanted: list[Trace], *, reverse: bool = False, again: bool = False) -> None:
        """Have these run; if `again`, those that run are put aside and resumed in this step."""
        for name, trace in list(self._traces.items()):
            if again or trace not in wanted:
                self._batch.remove_request(name)
                del self._traces[name]
        for trace in wanted if not reverse else wanted[::-1]:
            if trace not in self._traces.values():
                self._add(trace)
        self._batch.condense()
        if reverse and len(wanted) > 1:
            self._batch.swap_states(0, len(wanted) - 1)
        self._batch.refresh_metadata()

    def _add(self, trace: Trace) -> None:
        self._traces[str(id(trace))] = trace
        self._batch.add_request(
            CachedRequestState(
                req_id=str(id(trace)),
                prompt_token_ids=[1],
                mm_features=[],
                sampling_params=trace.params,
                generator=None,
                block_ids=([1],),
                num_computed_tokens=0,
                output_token_ids=trace.output,
            )
        )

    @property
    def rows(self) -> list[Trace]:
        return [self._traces[name] for name in self._batch.req_ids]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return self.gate.apply(logits)


class SecondRunner:
    """As runner V2 goes about it: a slot per request, and another order of rows in every step."""

    def __init__(self, gate: ConfidenceGate | None = None) -> None:
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=_RUNNING,
            prompt_len=SimpleNamespace(np=np.zeros(_RUNNING, np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(_RUNNING, np.int32)),
        )
        self.gate = gate or ConfidenceGate(config(), self.states)
        self.slots: dict[int, Trace] = {}
        self.rows: list[Trace] = []
        self.prompt = 5
        self._free = list(range(_RUNNING))

    def batch(self, wanted: list[Trace], *, reverse: bool = False, again: bool = False) -> None:
        """Have these run; if `again`, those that run are put aside and resumed in this step."""
        for slot, trace in sorted(self.slots.items(), key=lambda one: id(one[1])):
            if again or trace not in wanted:
                self._free.append(slot)
                del self.slots[slot]
        for trace in wanted:
            if trace in self.slots.values():
                continue
            slot = self._free.pop()
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
    script=st.lists(
        st.builds(
            Step,
            leave=st.integers(0, 15),
            reverse=st.booleans(),
            renew=st.booleans(),
            drop=st.booleans(),
            again=st.integers(0, 7).map(lambda number: number == 7),
        ),
        max_size=25,
    ),
)
@settings(deadline=None, max_examples=100)
def test_every_trace_is_stopped_and_reported_as_if_it_were_alone(
    runner: Callable[[], Any],
    traces: list[tuple[int, int, float, bool]],
    script: list[Step],
) -> None:
    folder = channel.folder()
    made = [
        Trace(seed, window, threshold, make_channel(folder, 14) if reported else "")
        for seed, window, threshold, reported in traces
    ]
    try:
        if runner is SecondRunner:
            # There, what has no token yet is found again by its id only.
            for number, trace in enumerate(made):
                if trace.window:
                    trace.params.extra_args["conviction_trace"] = str(number)
        _play(runner(), made, script)
        for trace in made:
            _check(trace, folder)
    finally:
        for trace in made:
            if trace.report:
                (folder / trace.report).unlink()


def _play(runner: Any, made: list[Trace], script: list[Step]) -> None:
    steps = iter(script)
    running: list[Trace] = []
    while waiting := [trace for trace in made if not trace.over]:
        step = next(steps, Step())
        before = [trace for trace in running if not trace.over]
        left = [trace for place, trace in enumerate(running) if step.leave >> place & 1]
        running = [trace for trace in before if trace not in left]
        put_aside = before if step.again else [trace for trace in before if trace in left]
        if step.drop:
            _drop_a_token(put_aside)
        for trace in waiting:
            if trace not in running and len(running) < _RUNNING and trace not in left:
                running.append(trace)
                put_aside.append(trace)
        for trace in put_aside:
            trace.left = trace.prefill  # All that is known is computed again.
            trace.joined = len(trace.output)
            if step.renew:
                trace.output = list(trace.output)
        runner.batch(list(running), reverse=step.reverse, again=step.again)
        if running:
            _step(runner)


def _step(runner: Any) -> None:
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


def _drop_a_token(traces: list[Trace]) -> None:
    for trace in traces:
        if len(trace.output) > trace.joined:  # Only one that was on its way can be dropped.
            trace.output.pop()


def _logits(trace: Trace) -> np.ndarray:
    # Rows before the end of a prompt hold anything.
    return trace.logits[len(trace.output)] if not trace.left else trace.logits[0][::-1] * 0.1


def _check(trace: Trace, folder: Path) -> None:
    stopped = trace.output[-1] == STOP
    assert (len(trace.output) if stopped else None) == trace.stop
    if trace.report:
        values = read_channel(folder / trace.report)
        assert len(values) == len(trace.output)
        np.testing.assert_allclose(values, trace.confidences[: len(values)], rtol=1e-5)


@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
def test_a_window_that_is_not_held_any_more_begins_anew_with_a_warning(
    runner: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    played = runner()
    away = Trace(1, 3, 0.5, "")
    played.batch([away])
    away.output.append(1)
    for seed in range(2 * _RUNNING):  # As many again as there is room for.
        played.batch([])
        played.batch([Trace(seed, 3, 0.5, "")])
    assert "begins anew" not in caplog.text
    played.batch([])
    played.batch([away])
    assert "at token 1, and its window begins anew" in caplog.text


@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
def test_memory_stays_the_same_however_many_traces_come_and_go(runner: Callable[[], Any]) -> None:
    played = runner()
    inside = played.gate._first or played.gate._second
    holding = inside._holding
    played.batch([Trace(1, MOST_WINDOW, 0.5, "")])
    most = holding.windows.bytes
    assert most == 16 * (MOST_WINDOW + 1) * _RUNNING
    for seed in range(60):
        traces = [Trace(seed + place, 1 + seed, 0.5, "") for place in range(_RUNNING)]
        played.batch(traces)
        played.apply(torch.zeros(_RUNNING, VOCABULARY))
    assert holding.windows.bytes == most
    assert len(holding._absent) + len(holding._free) == _RUNNING


@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
def test_channels_of_traces_that_are_not_computed_are_closed(
    runner: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "folder", lambda: tmp_path)
    played = runner()
    first, second = (Trace(seed, 3, 0.0, make_channel(tmp_path, 14)) for seed in (1, 2))
    first.left = second.left = 0
    played.batch([first, second])
    played.apply(torch.zeros(2, VOCABULARY))
    assert _opened(tmp_path) == {first.report, second.report}
    for trace in (first, second):
        trace.output.append(1)
    played.batch([first])
    played.apply(torch.zeros(1, VOCABULARY))
    assert _opened(tmp_path) == {first.report}
    # vLLM goes through its rows once more where none is left.
    played.batch([])
    played.batch([])
    assert _opened(tmp_path) == set()


def _opened(folder: Path) -> set[str]:
    files = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {file.name for file in files if file.parent == folder}


@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
def test_a_trace_without_an_id_is_found_by_its_parameters(runner: Callable[[], Any]) -> None:
    played, trace, other = runner(), Trace(1, 3, 1e6, ""), Trace(1, 3, 1e6, "")
    trace.left = other.left = 0
    for running in ([trace, other], [trace, other], [other], [other, trace]):
        played.batch(running)
        stopped = dict(zip(played.rows, _stopped(played), strict=True))
        for one in running:
            one.output.append(1)
    assert stopped == {trace: True, other: True}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("runner", [FirstRunner, SecondRunner])
def test_traces_that_share_their_parameters_have_a_window_each(
    runner: Callable[[], Any], *, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As with n, where vLLM runs in one process."""
    played = runner()
    traces = [Trace(1, 3, 1e6, "") for _ in range(3)]
    for trace in traces:
        trace.params, trace.left = traces[0].params, 0
    for running in (traces, traces, traces) if at_once else (traces[:1], traces[:2], traces):
        played.batch(running)
        after = _stopped(played)
        for trace in running:
            trace.output.append(1)
    assert after == ([True] * 3 if at_once else [True, False, False])
    # Whose window is whose cannot be told after a preemption, so it begins anew.
    played.batch(traces[1:])
    _stopped(played)
    played.batch(traces)
    assert not dict(zip(played.rows, _stopped(played), strict=True))[traces[0]]
    assert "begins anew" in caplog.text


def _stopped(played: Any) -> list[bool]:
    logits = torch.zeros(len(played.rows), VOCABULARY)
    return (played.apply(logits)[:, STOP] > 1e20).tolist()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_a_model_in_parts_the_first_reports_and_all_stop(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "get_tensor_model_parallel_rank", lambda: rank)
    parts = SimpleNamespace(tensor_parallel_size=2)
    runner = FirstRunner(ConfidenceGate(config(parallel_config=parts), torch.device("cpu"), False))  # noqa: FBT003
    name = make_channel(channel.folder(), 4)
    try:
        runner.batch([Trace(1, 1, 1e6, name)])
        assert runner.apply(torch.zeros(1, VOCABULARY))[0, STOP] > 1e20
        assert len(read_channel(channel.folder() / name)) == (rank == 0)
    finally:
        (channel.folder() / name).unlink()


def test_what_a_gpu_brings_later_is_written_in_order_and_waited_for_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Event()

    def copied(values: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        late = torch.full_like(values, -1.0)

        def wait() -> None:
            assert there.wait(10)
            late.copy_(values)

        return late, wait

    monkeypatch.setattr(channel, "folder", lambda: tmp_path)
    monkeypatch.setattr(reports, "_copied", copied)
    name = make_channel(tmp_path, 9)
    brought = reports.Reports(torch.device("cuda"))
    report = reports.Report(name)
    brought.put([(report, 1, 0)], torch.tensor([1.0, 2.0]))
    brought.take_back(report, 0)
    brought.put([(report, 0, 0)], torch.tensor([3.0]))
    brought.close(report)  # A preemption.
    brought.put([(report, 0, 1)], torch.tensor([4.0]))
    brought.close(report)
    done = Event()
    brought._do(done.set)
    assert read_channel(tmp_path / name) == []
    there.set()
    assert done.wait(10)
    assert read_channel(tmp_path / name) == [3.0, 4.0]
    assert _opened(tmp_path) == set()


def test_under_speculative_decoding_all_others_are_served_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = ConfidenceGate(config(speculative_config=object()), torch.device("cpu"), False)  # noqa: FBT003
    gate.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [1], [])], []))
    logits = torch.full((1, VOCABULARY), 2.0)
    assert gate.apply(logits) is logits
    assert (logits == 2.0).all()
    assert not gate.add_request(0, SamplingParams())
    assert not caplog.text
    # One that came through admission is told of, once.
    gate.update_state(BatchUpdate(1, [], [(0, params(3, 1.0), [1], [])], []))
    assert not gate.add_request(0, params(3, 1.0))
    assert caplog.text.count("asks for the gate, and there is none") == 1


def test_a_batch_that_concerns_no_gate_is_left_alone() -> None:
    runner = FirstRunner()
    runner.batch([Trace(5, 0, 0.0, "")])
    logits = torch.full((1, VOCABULARY), float("nan"))
    assert runner.apply(logits) is logits
    assert logits.isnan().all()
