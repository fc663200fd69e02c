"""What a request says to the gate is read, or refused with the argument's name."""

from types import SimpleNamespace
from typing import Any

import pytest

from conviction_gate.arguments import Arguments, check, read
from conviction_gate.names import MOST_WINDOW, stop_token

STOP = 9
GATE = {"conviction_window": 8, "conviction_threshold": 1.5, "conviction_stop_token": STOP}
CHANNEL = f"conviction-{'0a' * 16}"


def params(arguments: dict[str, Any] | None, **more: Any) -> Any:
    settings = {"stop_token_ids": [STOP], "min_tokens": 0, "structured_outputs": None, "n": 1}
    settings |= more
    return SimpleNamespace(extra_args=arguments, **settings)


def test_a_request_without_arguments_of_ours_is_none_of_our_business() -> None:
    assert read(params(None)) is None
    assert read(params({"others": 1})) is None


def test_arguments_are_read() -> None:
    assert read(params(GATE, min_tokens=3)) == Arguments(
        window=8, threshold=1.5, stop_token=STOP, least_tokens=3
    )
    reported = read(params({"conviction_report": CHANNEL, "conviction_k": 5}))
    assert reported == Arguments(k=5, report=CHANNEL, trace=CHANNEL)
    # JSON has one kind of number.
    assert read(params(GATE | {"conviction_window": 8.0})) == read(params(GATE))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"conviction_window": 0}, "conviction_window"),
        ({"conviction_window": MOST_WINDOW + 1}, "conviction_window"),
        ({"conviction_window": 2.5}, "conviction_window"),
        ({"conviction_window": True}, "conviction_window"),
        ({"conviction_window": "8"}, "conviction_window"),
        ({"conviction_window": [8]}, "conviction_window"),
        ({"conviction_threshold": float("nan")}, "conviction_threshold"),
        ({"conviction_threshold": float("inf")}, "conviction_threshold"),
        ({"conviction_threshold": "low"}, "conviction_threshold"),
        ({"conviction_k": 0}, "conviction_k"),
        ({"conviction_k": 1001}, "conviction_k"),
        ({"conviction_stop_token": 10}, "stop_token_ids"),
        ({"conviction_stop_token": -1}, "conviction_stop_token"),
        ({"conviction_report": "../../etc/passwd"}, "conviction_report"),
        ({"conviction_report": 7}, "conviction_report"),
        ({"conviction_trace": "x" * 129}, "conviction_trace"),
        ({"conviction_treshold": 1.0}, "conviction_treshold"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check(params(GATE | changes))


@pytest.mark.parametrize("missing", sorted(GATE))
def test_what_is_missing_is_named(missing: str) -> None:
    rest = {name: value for name, value in GATE.items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        check(params(rest))


@pytest.mark.parametrize("name", ["conviction_report", "conviction_trace"])
def test_what_names_one_trace_cannot_name_several(name: str) -> None:
    check(params(GATE, n=4))
    with pytest.raises(ValueError, match=f"{name} is for one trace, and n is 4"):
        check(params(GATE | {name: CHANNEL}, n=4))


class Admitting:
    """As the part of vLLM that admits requests: what the gate must know stands there."""

    def __init__(
        self, speculative: object = None, ends: object = 2, *, sharded: bool = False
    ) -> None:
        model = SimpleNamespace(
            get_vocab_size=lambda: 100,
            try_get_generation_config=lambda: {"eos_token_id": ends},
            hf_config=SimpleNamespace(eos_token_id=2),
        )
        self.vllm_config = SimpleNamespace(
            speculative_config=speculative,
            model_config=model,
            parallel_config=SimpleNamespace(enable_batch_sharded_sampling=sharded),
        )
        self.tokenizer = Tokenizer()

    def admit(self, given: Any) -> None:
        check(given)


class Tokenizer:
    eos_token_id, bos_token_id = 2, 1
    all_special_ids = (1, 2, 3, 4)
    all_special_tokens = ("<s>", "</s>", "<|im_start|>", "<|reserved_0|>")
    chat_template = "<|im_start|>"

    def get_vocab(self) -> dict[str, int]:
        # Ids may have holes: how many there are says nothing.
        return {"a": 99, **dict(zip(self.all_special_tokens, self.all_special_ids, strict=True))}


def test_speculative_decoding_is_refused_with_its_reason() -> None:
    Admitting().admit(params(GATE))
    Admitting(speculative=object()).admit(params(None))
    with pytest.raises(ValueError, match="speculative decoding"):
        Admitting(speculative=object()).admit(params(GATE))
    with pytest.raises(ValueError, match="batch-sharded sampling"):
        Admitting(sharded=True).admit(params(GATE))


def test_a_missing_stop_token_is_answered_with_a_fitting_one() -> None:
    rest = {name: value for name, value in GATE.items() if name != "conviction_stop_token"}
    with pytest.raises(ValueError, match="conviction_stop_token=4,"):
        Admitting(ends=[2, 3]).admit(params(rest))


@pytest.mark.parametrize(
    ("tokens", "special", "wanted"),
    [
        (90, {3: "<pad>"}, 99),
        (100, {3: "<a>", 7: "<|reserved_1|>", 8: "<b>"}, 7),
        (100, {2: "<|reserved_end|>", 5: "<a>"}, 5),
        (100, {5: "<|im_start|>"}, None),
        (100, {}, None),
    ],
)
def test_what_ends_a_trace_is_nothing_that_a_model_writes(
    tokens: int, special: dict[int, str], wanted: int | None
) -> None:
    found = stop_token(
        logits=100, tokens=tokens, special=special, ends={2}, template="<|im_start|>"
    )
    assert found == wanted
