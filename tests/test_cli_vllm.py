"""The command line with vLLM inside this program; a stand-in takes vLLM's place."""

import json
import os
from pathlib import Path

import pytest
from fake_vllm import FakeVLLM

from conviction.cli.main import run
from conviction.engines import vllm_gate as channels

WORDS = ("I ", "think ", "that ", "it ", "is ", "so. ", "Answer: ", "41 ")


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeVLLM:
    for name in ("VLLM_LOGGING_STREAM", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # Put back after the test, whatever it does.
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(channels, "channel_folder", lambda: tmp_path)
    fake = FakeVLLM(words=WORDS, folder=tmp_path, seeded_text=False)
    fake.install(monkeypatch)
    return fake


def think(*arguments: str) -> int:
    return run(
        ["think", "17 + 24?", "-m", "vllm:owner/model", "--max-tokens", "50", "-q", *arguments]
    )


def test_a_question_is_answered_and_vllm_is_ended(
    vllm: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    assert think("--answer", "number") == 0
    assert capsys.readouterr().out == "41\n"
    assert vllm.stopped


def test_standard_output_is_for_the_answer_and_vllm_tells_its_troubles_elsewhere() -> None:
    think("--answer", "number")
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"


def test_settings_reach_vllm(vllm: FakeVLLM) -> None:
    think("--vllm", "max_num_seqs=3", "--vllm", "max-model-len=150")
    assert vllm.started is not None
    assert (vllm.started.max_num_seqs, vllm.started.max_model_len) == (3, 150)


def test_a_policy_that_needs_confidence_has_it(
    vllm: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    assert think("--policy", "deepconf-low", "--budget", "6", "--answer", "number", "--json") == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["threshold"] is not None
    assert verdict["top_k"] == 20
    assert all(params.logprobs is None for _, params in vllm.asked)


def test_a_prompt_with_its_template_is_sent_as_it_is(vllm: FakeVLLM) -> None:
    assert think("--templated", "--answer", "number") == 0
    words = {token: word for word, token in vllm.tokenizer.words.items()}
    assert [words[token] for token in vllm.asked[-1][0]] == ["<s>", "17", "+", "24?"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "vllm:"], "no model is named"),
        (["-m", "vllm:owner/model", "--concurrency", "3"], "there is no server"),
        (["-m", "vllm:owner/model", "--vllm", "max_num_seqs"], "not of the form NAME=VALUE"),
        (["-m", "vllm:owner/model", "--vllm", "max_num_seq=1"], "max_num_seqs"),
        (["--vllm", "max_num_seqs=1"], "does not run inside this program"),
    ],
)
def test_wrong_use_is_refused_before_vllm_starts(
    vllm: FakeVLLM, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["think", "17 + 24?", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert vllm.started is None


def test_the_doctor_tells_what_vllm_does(
    vllm: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "-m", "vllm:owner/model", "--json"]) == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["gate"]["value"] is True
    assert found["context"]["value"] == 200
    assert found["seeds"]["ok"] is None  # Alike for all seeds, as this model writes one text.
    assert vllm.stopped


def test_the_doctor_tells_why_vllm_does_not_start(
    vllm: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.start_error = RuntimeError("no such device")
    assert run(["doctor", "-m", "vllm:owner/model", "--json"]) == 1
    [_, engine] = json.loads(capsys.readouterr().out)
    assert "no such device" in engine["found"]
    assert engine["remedy"]
