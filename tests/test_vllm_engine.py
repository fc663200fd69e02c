"""vLLM in process: what is asked of it, what becomes of its outputs, and how its errors read."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from fake_vllm import EngineDeadError, EngineGenerateError, FakeVLLM

from conviction.core import FinishReason, Message, Sampling
from conviction.engines import vllm_gate as channels
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.vllm import VLLMEngine
from conviction.errors import (
    ContextOverflowError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    InvalidSettingError,
    MissingExtraError,
    NotAChatModelError,
    StreamError,
)
from conviction.gate import Gate
from conviction_gate.names import REPORT, STOP_TOKEN, THRESHOLD, TRACE, WINDOW, K, stop_token

pytestmark = pytest.mark.anyio

GATE = Gate(window=3, threshold=7.1)
STOPPED_AFTER = 8
"""10, 9.5, 9, … : the mean of the sixth to the eighth is the first below 7.1."""
CONFIDENCES = [10.0 - place / 2 for place in range(12)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(channels, "channel_folder", lambda: tmp_path)
    monkeypatch.setattr(channels, "PATIENCE", 0.05)
    return tmp_path


@pytest.fixture
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    @asynccontextmanager
    async def start(**manners: Any) -> AsyncGenerator[tuple[VLLMEngine, FakeVLLM]]:
        fake = FakeVLLM(**{"folder": folder, **manners})
        fake.install(monkeypatch)
        with anyio.fail_after(10):
            async with VLLMEngine("owner/model") as engine:
                await engine.capabilities()
                fake.asked.clear()
                fake.generated = 0
                yield engine, fake
                assert fake.running == 0
                assert channels_in(folder) == 0
        assert fake.stopped

    return start


def channels_in(folder: Path) -> int:
    return len(list(folder.glob("conviction-*")))


def trace(**more: Any) -> TraceRequest:
    request = TraceRequest(
        (Message("user", "Why so ?"),), Sampling(max_tokens=100), seed=3, top_k=20
    )
    return replace(request, **more)


async def collect(engine: VLLMEngine, request: TraceRequest) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


def confidences(chunks: Sequence[Chunk]) -> list[float]:
    return np.concatenate([chunk.confidences for chunk in chunks]).tolist()


# --- What it can do -------------------------------------------------------------------------------


async def test_with_the_plugin_it_gates_and_gives_more_than_vllm_sends(running: Any) -> None:
    async with running() as (engine, fake):
        can = await engine.capabilities()
        assert fake.asked == []  # Asked once.
    assert (can.gates, can.top_k, can.continues) == (True, 64, True)
    assert (can.concurrency, can.context, can.seeds) == (7, 200, True)
    assert can.notes == ()


async def test_without_the_plugin_it_gives_what_vllm_allows(running: Any) -> None:
    async with running(gate=False, max_logprobs=5) as (engine, _):
        can = await engine.capabilities()
    assert (can.gates, can.top_k, can.notes) == (False, 5, ())


async def test_seeds_that_do_not_count_are_told(running: Any) -> None:
    async with running(varies=True) as (engine, _):
        assert not (await engine.capabilities()).seeds


async def test_a_gate_that_is_refused_leaves_stopping_to_the_client_and_tells_why(
    running: Any,
) -> None:
    refusal = ValueError("conviction_window: speculative decoding is on")
    async with running(refusal=refusal) as (engine, fake):
        can = await engine.capabilities()
        assert not can.gates
        assert "speculative decoding is on" in can.notes[0]
        await collect(engine, trace(gate=GATE))
        assert fake.asked[-1][1].extra_args is None


async def test_prefix_caching_is_on_and_settings_reach_vllm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVLLM(folder=folder)
    fake.install(monkeypatch)
    async with VLLMEngine("owner/model", options={"max_num_seqs": 3}):
        pass
    assert fake.started is not None
    assert (fake.started.model, fake.started.max_num_seqs) == ("owner/model", 3)
    assert fake.started.enable_prefix_caching


# --- Traces ---------------------------------------------------------------------------------------


async def test_confidences_come_by_the_channel_and_no_log_probabilities_are_asked_for(
    running: Any,
) -> None:
    async with running() as (engine, fake):
        chunks = await collect(engine, trace())
    [(_, params)] = fake.asked
    assert params.logprobs is None
    assert set(params.extra_args) == {REPORT, K}
    assert confidences(chunks) == CONFIDENCES
    assert [chunk.confidences.size for chunk in chunks] == [3, 3, 3, 3]
    assert chunks[-1].finish is FinishReason.STOP
    assert all(chunk.logprobs is None for chunk in chunks)


async def test_log_probabilities_give_the_same_confidences(running: Any) -> None:
    async with running(gate=False) as (engine, fake):
        chunks = await collect(engine, trace())
    [(_, params)] = fake.asked
    assert params.logprobs == 20
    assert params.extra_args is None
    assert confidences(chunks) == CONFIDENCES


@pytest.mark.parametrize("gate", [True, False])
async def test_log_probabilities_of_generated_tokens_come_when_wanted(
    running: Any, *, gate: bool
) -> None:
    async with running(gate=gate) as (engine, fake):
        chunks = await collect(engine, trace(logprobs=True))
    [(_, params)] = fake.asked
    assert params.logprobs == (0 if gate else 20)
    values = np.concatenate([c.logprobs for c in chunks if c.logprobs is not None])
    assert values.tolist() == [-50.0 - place for place in range(12)]
    assert confidences(chunks) == CONFIDENCES


async def test_a_gate_stops_inside_and_its_token_leaves_no_text(running: Any) -> None:
    async with running() as (engine, fake):
        chunks = await collect(engine, trace(gate=GATE))
    [(_, params)] = fake.asked
    token = params.extra_args[STOP_TOKEN]
    assert params.stop_token_ids == [token]
    assert token == 5  # <spare>: neither an end nor in the template
    assert (params.extra_args[WINDOW], params.extra_args[THRESHOLD]) == (3, 7.1)
    assert chunks[-1].finish is FinishReason.LOW_CONFIDENCE
    assert confidences(chunks) == CONFIDENCES[:STOPPED_AFTER]
    assert GATE.stop_position(np.array(CONFIDENCES, np.float32)) == STOPPED_AFTER
    assert "".join(chunk.text for chunk in chunks).count("w") == STOPPED_AFTER - 1


async def test_a_trace_that_needs_nothing_is_asked_for_nothing(running: Any) -> None:
    async with running() as (engine, fake):
        chunks = await collect(engine, trace(top_k=0))
    [(_, params)] = fake.asked
    assert (params.logprobs, params.extra_args, params.stop_token_ids) == (None, None, None)
    assert np.isnan(confidences(chunks)).all()
    assert len(confidences(chunks)) == 12


async def test_where_no_channel_can_be_made_log_probabilities_stand_in(
    running: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as (engine, fake):
        monkeypatch.setattr(channels, "channel_folder", lambda: folder / "none")
        chunks = await collect(engine, trace(gate=GATE))
    [(_, params)] = fake.asked
    assert params.logprobs == 20
    assert {WINDOW, TRACE} <= set(params.extra_args)
    assert "No channel" in chunks[0].notes[0]
    assert confidences(chunks) == CONFIDENCES[:STOPPED_AFTER]


async def test_filters_that_are_off_are_spelled_out_and_those_that_are_on_sent(
    running: Any,
) -> None:
    async with running() as (engine, fake):
        await collect(engine, trace())
        sampling = Sampling(temperature=0.3, top_p=0.9, top_k=40, min_p=0.05, max_tokens=5)
        await collect(engine, trace(sampling=sampling))
    off, on = (params for _, params in fake.asked)
    assert (off.temperature, off.top_p, off.top_k, off.min_p) == (0.7, 1.0, 0, 0.0)
    assert (on.temperature, on.top_p, on.top_k, on.min_p) == (0.3, 0.9, 40, 0.05)
    assert (on.seed, on.max_tokens, on.output_kind) == (3, 5, "delta")


async def test_counts_of_the_prompt_and_its_cached_part_are_told(running: Any) -> None:
    async with running() as (engine, fake):
        last = (await collect(engine, trace()))[-1]
    assert last.prompt_tokens == len(fake.asked[0][0])
    assert last.cached_tokens == last.prompt_tokens - 1


# --- Prompts --------------------------------------------------------------------------------------


async def test_prompts_have_the_models_template_and_are_made_once_per_question(
    running: Any,
) -> None:
    async with running() as (engine, fake):
        before = fake.tokenizer.split
        for _ in range(3):
            await collect(engine, trace())
        assert fake.tokenizer.split == before + 1
    words = {token: word for word, token in fake.tokenizer.words.items()}
    assert [words[token] for token in fake.asked[0][0]] == (
        ["<s>", "<user>", "Why", "so", "?", "<assistant>"]
    )


async def test_a_beginning_is_gone_on_with_and_counts_as_prompt(running: Any) -> None:
    async with running() as (engine, fake):
        await collect(engine, trace(prefix="It is"))
    words = {token: word for word, token in fake.tokenizer.words.items()}
    said = " ".join(words[token] for token in fake.asked[0][0])
    assert said == "<s> <user> Why so ? <assistant> It is"


@pytest.mark.parametrize(("text", "begins"), [("Why ?", "<s> Why ?"), ("<s> Why", "<s> Why")])
async def test_a_prompt_with_its_template_gets_one_mark_of_the_beginning(
    running: Any, text: str, begins: str
) -> None:
    async with running() as (engine, fake):
        await collect(engine, trace(messages=(Message("user", text),), templated=True))
    words = {token: word for word, token in fake.tokenizer.words.items()}
    assert " ".join(words[token] for token in fake.asked[0][0]) == begins


async def test_a_model_without_a_template_is_an_error_that_says_so(running: Any) -> None:
    async with running() as (engine, fake):
        fake.tokenizer.chat_template = None
        with pytest.raises(EngineError, match="no chat template"):
            await collect(engine, trace(messages=(Message("user", "another"),)))
        assert fake.asked == []


async def test_what_does_not_fit_the_context_is_refused_before_anything_runs(
    running: Any,
) -> None:
    async with running() as (engine, fake):
        with pytest.raises(ContextOverflowError, match="the context has 200"):
            await collect(engine, trace(sampling=Sampling(max_tokens=195)))
        assert fake.asked == []
        await collect(engine, trace(sampling=Sampling(max_tokens=194)))


# --- Ends -----------------------------------------------------------------------------------------


async def test_closing_aborts_at_once(running: Any) -> None:
    async with running(words=tuple("w" * 190)) as (engine, fake):
        stream = engine.stream(trace(sampling=Sampling(max_tokens=190)))
        await anext(stream)
        assert fake.running == 1
        await stream.aclose()
        assert (fake.running, fake.aborted) == (0, 1)
        generated = fake.generated
        await anyio.sleep(0.05)
        assert fake.generated == generated < 30


async def test_cancelling_again_and_again_still_aborts(running: Any) -> None:
    async with running(words=tuple("w" * 190)) as (engine, fake):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(collect, engine, trace(sampling=Sampling(max_tokens=190)))
            while fake.running < 5:  # noqa: ASYNC110  # it tells nobody
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        assert (fake.running, fake.aborted) == (0, 5)


async def test_a_trace_that_ends_is_not_aborted(running: Any) -> None:
    async with running() as (engine, fake):
        await collect(engine, trace())
        assert fake.aborted == 0


async def test_a_dead_core_is_an_error_that_ends_all_and_says_what_to_do(running: Any) -> None:
    async with running() as (engine, fake):
        fake.dead = True
        for call in (collect(engine, trace()), engine.check()):
            with pytest.raises(EngineUnavailableError, match="its core has died") as caught:
                await call
            assert "gpu_memory_utilization" in caught.value.remedy


async def test_a_core_that_dies_in_the_middle_is_noticed(running: Any) -> None:
    async with running() as (engine, fake):
        fake.error = EngineDeadError("gone")
        stream = engine.stream(trace())
        assert confidences([await anext(stream)]) == CONFIDENCES[:3]
        with pytest.raises(EngineUnavailableError):
            await anext(stream)


async def test_a_trace_that_breaks_may_be_begun_again(running: Any) -> None:
    async with running() as (engine, fake):
        fake.error = EngineGenerateError("odd")
        with pytest.raises(StreamError):
            await collect(engine, trace())


async def test_what_vllm_refuses_is_told_in_its_words(running: Any) -> None:
    async with running() as (engine, fake):
        fake.refusal = ValueError("conviction_k is out of its range")
        with pytest.raises(EngineError, match="conviction_k is out of its range") as caught:
            await collect(engine, trace(gate=GATE))
        assert not isinstance(caught.value, StreamError)


async def test_an_engine_that_is_not_started_says_so() -> None:
    engine = VLLMEngine("owner/model")
    for call in (engine.capabilities(), engine.check(), collect(engine, trace())):
        with pytest.raises(EngineUnavailableError, match="not started"):
            await call


# --- Starting -------------------------------------------------------------------------------------


async def test_without_vllm_the_error_names_the_command() -> None:
    with pytest.raises(MissingExtraError, match="pip install vllm conviction"):
        async with VLLMEngine("owner/model"):
            pass


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (None, "there is no such folder"),
        ("folder", "it has no config.json"),
        ("file", "it is a file"),
    ],
)
async def test_what_is_no_folder_of_a_model_is_refused_before_vllm_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str | None, found: str
) -> None:
    fake = FakeVLLM()
    fake.install(monkeypatch)
    model = tmp_path / "model"
    if made == "folder":
        model.mkdir()
    elif made == "file":
        model.write_bytes(b"GGUF")
    with pytest.raises(NotAChatModelError, match=found):
        async with VLLMEngine(model):
            pass
    assert fake.started is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_model_length": 5}, "max_model_len"), ({"model": "x"}, "the model has its own place")],
)
async def test_settings_that_vllm_does_not_have_are_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], words: str
) -> None:
    FakeVLLM().install(monkeypatch)
    with pytest.raises(InvalidSettingError, match=words):
        async with VLLMEngine("owner/model", options=options):
            pass


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("Engine core initialization failed. See root cause above."), "wrote above"),
        (ValueError("No available memory for the KV cache blocks"), "The memory does not suffice"),
    ],
)
async def test_a_start_that_fails_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    FakeVLLM(start_error=error).install(monkeypatch)
    with pytest.raises(EngineStartError) as caught:
        async with VLLMEngine("owner/model"):
            pass
    assert str(error) in caught.value.found
    assert remedy in caught.value.remedy


async def test_an_engine_that_started_for_somebody_who_left_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVLLM(folder=folder)
    fake.install(monkeypatch)
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with VLLMEngine("owner/model"):
            pytest.fail("it was cancelled before")
    assert fake.started is None or fake.stopped


# --- The token that stands for a gate -------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # The vocabulary is filled up to a round size, as Qwen's: the last place has no token.
        ({"logits": 151_936, "tokens": 151_669, "special": {151_645: "<|im_end|>"}}, 151_935),
        # Reserved tokens, as Llama's.
        (
            {
                "logits": 128_256,
                "tokens": 128_256,
                "special": {
                    128_009: "<|eot_id|>",
                    128_011: "<|reserved_special_token_3|>",
                    128_255: "<|reserved_special_token_247|>",
                },
                "ends": [128_009],
            },
            128_255,
        ),
        # Neither: any special token that is no end and not in the template, as SmolLM's.
        (
            {
                "logits": 49_152,
                "tokens": 49_152,
                "special": {1: "<|im_start|>", 2: "<|im_end|>", 16: "<empty_output>"},
                "ends": [1, 2],
                "template": "<|im_start|>",
            },
            16,
        ),
        # Nothing to spare.
        ({"logits": 10, "tokens": 10, "special": {2: "</s>"}, "ends": [2]}, None),
        # A tokenizer with more tokens than the model has logits.
        ({"logits": 10, "tokens": 12, "special": {11: "<unused>", 5: "<x>"}}, 5),
    ],
)
def test_the_stop_token_is_one_that_the_model_never_writes(
    shape: dict[str, Any], expected: int | None
) -> None:
    assert stop_token(**{"ends": [], **shape}) == expected


async def test_a_model_without_a_token_to_spare_has_no_gate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVLLM(folder=folder, vocabulary=3)
    fake.install(monkeypatch)
    async with VLLMEngine("owner/model") as engine:
        can = await engine.capabilities()
        chunks = await collect(engine, trace(gate=GATE))
    assert not can.gates
    assert "no token to spare" in can.notes[0]
    assert chunks[-1].finish is FinishReason.STOP
