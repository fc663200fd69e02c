"""The gate in a real vLLM, in process, with a tiny model of random weights."""

import os
import re
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from conviction import Gate
from conviction_gate import channel

STOP = 5
_PROMPT = {"prompt_token_ids": list(range(40, 70))}


def _start(**settings: Any) -> LLM:
    return LLM(
        f"{os.environ['CONVICTION_TEST_MODELS']}/tiny",
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        max_logprobs=20,
        distributed_executor_backend="uni",
        **settings,
    )


@pytest.fixture(scope="module")
def engine() -> LLM:
    """One with hardly any KV cache: room for two of the traces here."""
    return _start(num_gpu_blocks_override=10, block_size=32)


@pytest.fixture(scope="module")
def in_pieces() -> LLM:
    """One that computes prompts in pieces, whose rows are no tokens."""
    return _start(max_num_batched_tokens=16)


@pytest.fixture
def channels() -> Generator[list[str]]:
    made: list[str] = []
    yield made
    for name in made:
        (channel.folder() / name).unlink()


def _channel(made: list[str], tokens: int = 512) -> str:
    made.append(f"conviction-{os.urandom(16).hex()}")
    empty = channel.HEADER.pack(channel.MAGIC, channel.VERSION, tokens, 0)
    (channel.folder() / made[-1]).write_bytes(empty + bytes(4 * tokens))
    return made[-1]


def _read(name: str) -> np.ndarray:
    data = (channel.folder() / name).read_bytes()
    written = channel.HEADER.unpack_from(data)[3]
    return np.frombuffer(data, np.float32, written, channel.HEADER_BYTES)


def _params(
    seed: int | None, gate: Gate | None = None, report: str = "", **more: Any
) -> SamplingParams:
    arguments: dict[str, Any] = {}
    if gate:
        arguments |= {
            "conviction_window": gate.window,
            "conviction_threshold": gate.threshold,
            "conviction_stop_token": STOP,
        }
    if report:
        arguments["conviction_report"] = report
    settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 120, "ignore_eos": True} | more
    return SamplingParams(
        seed=seed, extra_args=arguments or None, stop_token_ids=[STOP] if gate else None, **settings
    )


def _ask(engine: LLM, params: Sequence[SamplingParams]) -> list[RequestOutput]:
    prompts: Any = [_PROMPT] * len(params)
    return engine.generate(prompts, list(params), use_tqdm=False)


def _shipped(output: RequestOutput) -> np.ndarray:
    """The confidences by the log-probabilities that vLLM itself sends."""
    places: Any = output.outputs[0].logprobs
    best = [sorted((one.logprob for one in place.values()), reverse=True)[:20] for place in places]
    return -np.array(best, np.float64).mean(1)


def test_confidences_are_those_of_vllms_own_log_probabilities(
    engine: LLM, channels: list[str]
) -> None:
    # Temperature and filters change what is drawn, and not how sure the model was.
    asked = [
        _params(1, report=_channel(channels), logprobs=20),
        _params(2, report=_channel(channels), logprobs=20, temperature=0.3, top_p=0.8, top_k=7),
        _params(3, report=_channel(channels), logprobs=20, repetition_penalty=1.3),
    ]
    for output, name in zip(_ask(engine, asked), channels, strict=True):
        values = _read(name)
        assert len(values) == len(output.outputs[0].token_ids)
        np.testing.assert_allclose(values, _shipped(output), atol=1e-4)


def test_pieces_of_a_prompt_are_no_tokens(in_pieces: LLM, channels: list[str]) -> None:
    # Without seeds, which vLLM cannot combine with pieces on the CPU.
    asked = [
        _params(None, report=_channel(channels), logprobs=20, temperature=0.0),
        _params(None, Gate(7, 1e6), _channel(channels), logprobs=20, temperature=0.0),
        _params(None, report=_channel(channels), logprobs=20),
    ]
    for output, name in zip(_ask(in_pieces, asked), channels, strict=True):
        values = _read(name)
        tokens = len(output.outputs[0].token_ids)
        assert tokens == (7 if name == channels[1] else 120)
        assert len(values) == tokens
        np.testing.assert_allclose(values, _shipped(output), atol=1e-4)


def test_traces_are_stopped_where_their_gates_say_and_others_go_on_as_they_would(
    engine: LLM, channels: list[str]
) -> None:
    plain = _ask(engine, [_params(seed, logprobs=20) for seed in range(8)])
    lows = [_shipped(output) for output in plain]
    gates = [
        Gate(16, float(np.convolve(low, np.ones(16) / 16, "valid").min()) + 0.05 * (seed % 3 - 0.5))
        for seed, low in enumerate(lows)
    ]
    names = {seed: _channel(channels) for seed in (2, 3)}
    asked = [
        _params(seed, gates[seed] if seed % 4 else None, names.get(seed, "")) for seed in range(8)
    ]
    stopped = 0
    for seed, (output, before) in enumerate(zip(_ask(engine, asked), plain, strict=True)):
        trace, tokens = output.outputs[0], list(before.outputs[0].token_ids)
        place = gates[seed].stop_position(lows[seed].astype(np.float32)) if seed % 4 else None
        if place is None:
            assert list(trace.token_ids) == tokens
            assert (trace.finish_reason, trace.stop_reason) == ("length", None)
            continue
        stopped += 1
        assert list(trace.token_ids) == [*tokens[: place - 1], STOP]
        assert (trace.finish_reason, trace.stop_reason) == ("stop", STOP)
        assert before.outputs[0].text.startswith(trace.text)
        if seed in names:
            values = _read(names[seed])
            assert len(values) == place
            np.testing.assert_allclose(values, lows[seed][:place], atol=1e-4)
    assert 2 <= stopped < 6


def test_a_window_survives_preemption(
    engine: LLM, channels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten blocks hold two traces of 150 tokens: of eight, most lose their place again."""
    gates = [Gate(60, 0.0 if seed % 2 else 1e6) for seed in range(8)]
    # A window is found again with a channel and without.
    names = {seed: _channel(channels) for seed in (0, 1, 4, 5)}
    asked = [_params(seed, gate, names.get(seed, "")) for seed, gate in enumerate(gates)]
    before = _preemptions(engine)
    outputs = _ask(engine, asked)
    assert _preemptions(engine) > before
    for seed, (output, gate) in enumerate(zip(outputs, gates, strict=True)):
        tokens = len(output.outputs[0].token_ids)
        assert tokens == (120 if gate.threshold == 0.0 else 60)
        if seed in names:
            values = _read(names[seed])
            assert len(values) == tokens
            assert (values > 0).all()
    assert "begins anew" not in caplog.text


def _preemptions(engine: LLM) -> int:
    core: Any = engine.llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    if not hasattr(scheduler, "_preempted"):
        scheduler._preempted = 0
        preempt = scheduler._preempt_request

        def counting(*arguments: Any, **named: Any) -> Any:
            scheduler._preempted += 1
            return preempt(*arguments, **named)

        scheduler._preempt_request = counting
    return scheduler._preempted


def test_least_tokens_are_written_first(engine: LLM) -> None:
    trace = _ask(engine, [_params(1, Gate(4, 1e6), min_tokens=30)])[0].outputs[0]
    assert (len(trace.token_ids), trace.stop_reason) == (31, STOP)


def test_a_structured_answer_is_measured_and_no_gate_may_end_it(
    engine: LLM, channels: list[str]
) -> None:
    # The mask leaves more than k tokens, so confidences are known, and a gate would fire.
    pattern = "[a-zA-Z ]{80,90}"
    only = StructuredOutputsParams(regex=pattern)
    with pytest.raises(VLLMValidationError, match="structured outputs"):
        _ask(engine, [_params(1, Gate(4, 1e6), structured_outputs=only)])
    name = _channel(channels)
    asked = [_params(1, report=name, structured_outputs=only, ignore_eos=False)]
    trace = _ask(engine, asked)[0].outputs[0]
    assert re.fullmatch(pattern, trace.text)
    values = _read(name)
    assert len(values) == len(trace.token_ids)
    assert np.isfinite(values).any()


def test_a_greedy_trace_and_every_filter_end_with_the_forced_token(engine: LLM) -> None:
    asked = [
        _params(1, Gate(3, 1e6), temperature=0.0),
        _params(1, Gate(3, 1e6), top_k=1),
        _params(1, Gate(3, 1e6), top_p=0.01, min_p=0.5),
        _params(1, Gate(3, 1e6), frequency_penalty=2.0, repetition_penalty=2.0),
        _params(1, Gate(3, 1e6), temperature=0.02),
        _params(1, Gate(3, 1e6), temperature=2.0),
    ]
    for output in _ask(engine, asked):
        assert [len(output.outputs[0].token_ids), output.outputs[0].stop_reason] == [3, STOP]


def test_what_stands_for_a_stop_is_never_drawn_by_chance(engine: LLM) -> None:
    drawn = _ask(engine, [_params(1, logit_bias={STOP: 100.0}, temperature=0.0, max_tokens=3)])
    assert list(drawn[0].outputs[0].token_ids) == [STOP] * 3
    gated = _ask(engine, [_params(1, Gate(50, 0.0), logit_bias={STOP: 100.0}, temperature=0.0)])
    assert STOP not in gated[0].outputs[0].token_ids


def test_logits_that_are_no_numbers_are_told_of_and_stop_nothing(
    engine: LLM, channels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = engine.llm_engine.engine_core
    runner = core.engine_core.model_executor.driver_worker.worker.model_runner
    compute = runner.model.compute_logits
    calls = 0

    def spoiled(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        logits = compute(*arguments, **named)
        calls += 1
        if calls > 4:
            logits[:, 7] = float("nan")
        return logits

    runner.model.compute_logits = spoiled
    try:
        name = _channel(channels)
        trace = _ask(engine, [_params(1, Gate(8, 1e6), name, max_tokens=20)])[0].outputs[0]
    finally:
        runner.model.compute_logits = compute
    assert (len(trace.token_ids), trace.finish_reason) == (20, "length")
    values = _read(name)
    assert len(values) == 20
    assert np.count_nonzero(np.isnan(values)) >= 15
    assert caplog.text.count("has logits that are no numbers") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"conviction_window": 8}, "conviction_threshold"),
        ({"conviction_threshold": 8.0}, "conviction_window"),
        ({"conviction_window": 8, "conviction_threshold": 1.0}, "conviction_stop_token=16"),
        (
            {"conviction_window": 0, "conviction_threshold": 1.0, "conviction_stop_token": STOP},
            "conviction_window must be a whole number",
        ),
        ({"conviction_windows": 8}, "conviction_windows is none"),
    ],
)
def test_wrong_arguments_are_refused_at_admission(
    engine: LLM, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(VLLMValidationError, match=re.escape(named)):
        _ask(engine, [SamplingParams(extra_args=arguments, stop_token_ids=[STOP])])
    # And the engine goes on.
    assert len(_ask(engine, [_params(1, max_tokens=2)])[0].outputs[0].token_ids) == 2


def test_a_channel_that_is_gone_or_full_costs_only_the_report(
    engine: LLM, channels: list[str]
) -> None:
    small = _channel(channels, tokens=10)
    asked = [
        _params(1, Gate(4, 0.0), small, max_tokens=15),
        _params(2, Gate(4, 1e6), f"conviction-{'0' * 32}"),
    ]
    full, gone = (output.outputs[0] for output in _ask(engine, asked))
    assert len(full.token_ids) == 15
    assert len(_read(small)) == 10
    assert gone.stop_reason == STOP
