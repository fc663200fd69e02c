"""What other programs recorded becomes a pool, or is refused with the place that is wrong."""

import json
import pickle
import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from recorded_answers import STRONG, WEAKER, Model, write

from conviction.answers import is_correct, kind
from conviction.core import FinishReason, Sampling
from conviction.errors import RecordingError
from conviction.recordings import Pool, import_files


def imported(*files: Path, into: Path, answers: str = "number") -> Pool:
    compared = kind(answers)
    try:
        import_files(files, into, answers=compared, grade=is_correct)
    finally:
        compared.close()
    return Pool.open(into)


def saved(folder: Path, value: object, name: str = "run.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def deepconf(**changes: Any) -> dict[str, Any]:
    trace = {
        "stop_reason": "stop",
        "text": "So it is \\boxed{4}.",
        "token_ids": [1, 2, 3],
        "num_tokens": 3,
        "confs": [11.25, 12.5, 13.0],
        "extracted_answer": "4",
        "is_correct": True,
    }
    cut = {**trace, "stop_reason": "length", "text": "So it", "extracted_answer": None}
    stopped = {**trace, "stop_reason": "gconf_threshold", "confs": [3.0]}
    result = {
        "question_id": 7,
        "run_id": "0",
        "question": "2 + 2?",
        "ground_truth": "4",
        "all_traces": [trace, cut, stopped],
        "config": {"model_path": "somebody/model-8b", "window_size": 2048},
    }
    return {**result, **changes}


def test_results_of_the_reference_implementation_become_a_pool(tmp_path: Path) -> None:
    files = [
        saved(tmp_path, deepconf(), "a.json"),
        saved(tmp_path, deepconf(question_id=8, question="3 + 1?"), "b.json"),
    ]
    pool = imported(*files, into=tmp_path / "pool")
    assert (pool.model, pool.top_k, pool.sampling_known) == ("somebody/model-8b", 20, False)
    assert [(q.id, q.text, q.gold, q.traces) for q in pool.questions] == [
        ("7", "2 + 2?", "4", 3),
        ("8", "3 + 1?", "4", 3),
    ]
    traces = pool.traces("7")
    assert traces.finish == (
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.LOW_CONFIDENCE,
    )
    assert traces.correct.tolist() == [True, False, False]
    assert traces.tokens.tolist() == [3, 3, 1]
    np.testing.assert_array_equal(traces.require_confidences()[0], [11.25, 12.5, 13.0])
    assert pool.texts("7")[1] == "So it"


def test_the_same_import_again_adds_nothing(tmp_path: Path) -> None:
    file = saved(tmp_path, deepconf())
    imported(file, into=tmp_path / "pool")
    numbers = kind("number")
    counts = import_files([file], tmp_path / "pool", answers=numbers, grade=is_correct)
    assert counts == (0, 3)
    place = re.escape(str(file))
    with pytest.raises(RecordingError, match=f"question '7' stands twice, first in {place}"):
        imported(file, file, into=tmp_path / "pool")


def token(*logprobs: float) -> dict[str, Any]:
    return {
        "token": "x",
        "logprob": logprobs[0],
        "top_logprobs": [{"token": "x", "logprob": value} for value in logprobs],
    }


def sample(epoch: int, answer: str, tokens: list[Any] | None, **changes: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        "stop_reason": "stop",
    }
    if tokens is not None:
        choice["logprobs"] = {"content": tokens}
    usage = {"input_tokens": 5, "output_tokens": 9}
    values = {
        "id": "first",
        "epoch": epoch,
        "input": [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2?"}],
        "target": "4",
        "output": {"model": "m", "choices": [choice], "usage": usage, "time": 2.5},
    }
    return {**values, **changes}


def log(*samples: dict[str, Any]) -> dict[str, Any]:
    config = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 512}
    return {
        "version": 2,
        "status": "success",
        "eval": {"model": "vllm/some-model", "model_generate_config": config},
        "samples": list(samples),
    }


TOKENS = [token(-1.0, -2.0, -3.0), token(-0.5, -2.5, -3.0)]


def test_an_inspect_log_with_log_probabilities_becomes_a_pool(tmp_path: Path) -> None:
    samples = [sample(2, "\\boxed{5}", TOKENS[:1]), sample(1, "\\boxed{4}", TOKENS)]
    whole = saved(tmp_path, log(*samples), "log.json")
    archive = tmp_path / "log.eval"
    with ZipFile(archive, "w") as file:
        file.writestr("header.json", json.dumps({"eval": log()["eval"], "status": "success"}))
        for one in samples:
            file.writestr(f"samples/first_epoch_{one['epoch']}.json", json.dumps(one))
    for number, path in enumerate((whole, archive)):
        pool = imported(path, into=tmp_path / str(number))
        assert (pool.model, pool.top_k) == ("vllm/some-model", 3)
        assert pool.sampling == Sampling(temperature=0.6, top_p=0.95, max_tokens=512)
        traces = pool.traces("first")
        assert traces.correct.tolist() == [True, False]
        assert [v.tolist() for v in traces.require_confidences()] == [[2.0, 2.0], [2.0]]
        assert traces.prompt_tokens.tolist() == [5, 5]
        assert traces.seconds.tolist() == [2.5, 2.5]
        assert pool.questions[0].text == "2 + 2?"


def test_an_inspect_log_without_log_probabilities_becomes_a_pool_of_answers(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, log(sample(1, "\\boxed{4}", None)))
    pool = imported(path, into=tmp_path / "pool")
    assert not pool.has_confidences
    assert pool.traces("first").tokens.tolist() == [9]


def test_a_token_with_too_few_log_probabilities_is_unknown(tmp_path: Path) -> None:
    path = saved(tmp_path, log(sample(1, "4", [*TOKENS, token(-1.0)])))
    values = imported(path, into=tmp_path / "pool").traces("first").require_confidences()[0]
    assert np.isnan(values).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"anything": 1}, "none of the known shapes; its fields: anything"),
        (deepconf(all_traces=[{"text": "a", "confs": "many"}]), r"\$.all_traces\[0\].confs"),
        (
            deepconf(all_traces=[{"text": "a"}]),
            "trace 0 of question '7' in .*run.json: it has no confidences of single tokens",
        ),
        (
            deepconf(all_traces=[{"text": "a", "confs": [1.0]}, {"text": "a", "confs": [2, -1]}]),
            r"trace 1 of question '7' in .*run.json: its confidence of token 1 is -1.0",
        ),
        (
            deepconf(all_traces=[{"text": "a", "confs": [1e39]}]),
            r"trace 0 of question '7' in .*run.json: its confidence of token 0 is 1e\+39",
        ),
        (
            deepconf(all_traces=[{"text": "a", "confs": [-np.inf]}]),
            r"trace 0 of question '7' in .*run.json: its confidence of token 0 is -inf",
        ),
        (deepconf(all_traces=[]), "run.json: it has no trace"),
        (log(), "run.json: it holds no trace"),
        (log(sample(1, "4", None, output={})), "run.json: it holds no trace"),
        (log(sample(1, "4", None, output=3)), "sample 1 of"),
        (log(sample(1, "4", TOKENS), sample(2, "4", None)), "epoch 2 of"),
        (log(sample(1, "4", TOKENS, target=["4", "5"])), "several targets"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_place(
    tmp_path: Path, value: object, message: str
) -> None:
    path = saved(tmp_path, value)
    with pytest.raises(RecordingError, match=message):
        imported(path, into=tmp_path / "pool")


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "run.pkl"
    path.write_bytes(pickle.dumps(deepconf()))
    with pytest.raises(RecordingError, match="pickles are not read"):
        imported(path, into=tmp_path / "pool")


def test_a_line_of_recorded_answers_that_is_wrong_is_named(tmp_path: Path) -> None:
    good = {"problem_num": 0, "gold_answer": "70", "all_answers": [["70", 800], [None, 3]]}
    path = tmp_path / "answers.jsonl"
    for bad, message in (
        ('{"problem_num": 1}', "line 2 .*all_answers"),
        ('{"problem_num": 1, "all_answers": [["70", -1]]}', "line 2 .*negative"),
        ("{", "line 2 .*no JSON"),
        ('{"problem_num": 1, "all_answers": []}', "line 2 .*it has no answer"),
        (json.dumps(good), "line 2 of .*'0' stands twice, first in line 1 of .*answers.jsonl"),
    ):
        path.write_text(json.dumps(good) + "\n" + bad + "\n", encoding="utf-8")
        with pytest.raises(RecordingError, match=message):
            imported(path, into=tmp_path / "pool")


@pytest.mark.parametrize("content", ["", "\n", "  \n\n\t\n", "\ufeff"])
def test_an_empty_file_is_called_empty(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecordingError, match=r"answers\.jsonl: it is empty"):
        imported(path, into=tmp_path / "pool")


def test_an_infinite_confidence_is_unknown_as_in_a_live_run(tmp_path: Path) -> None:
    path = saved(tmp_path, deepconf(all_traces=[{"text": "4", "confs": [1.0, np.inf, None]}]))
    values = imported(path, into=tmp_path / "pool").traces("7").require_confidences()[0]
    np.testing.assert_array_equal(values, [1.0, np.nan, np.nan])


@pytest.mark.parametrize("model", [STRONG, WEAKER])
def test_recorded_answers_become_a_pool_that_counts_as_its_file_does(
    tmp_path: Path, model: Model
) -> None:
    path = tmp_path / "model-8b.jsonl"
    lines = write(path, model)
    assert any("" in line["answer_counts"] for line in lines)
    pool = imported(path, into=tmp_path / "pool", answers="math")
    counts = (len(pool.questions), pool.has_confidences, pool.model)
    assert counts == (len(lines), False, "model-8b")
    for line in lines:
        traces = pool.traces(str(line["problem_num"]))
        answers = line["all_answers"]
        assert traces.tokens.tolist() == [tokens for _, tokens in answers]
        assert [a.text if a else None for a in traces.answers] == [a or None for a, _ in answers]
        assert traces.question.gold == line["gold_answer"]
        # These answers are whole numbers, so equal strings are the least that is right.
        equal = [answer == line["gold_answer"] for answer, _ in answers]
        assert (traces.correct >= np.array(equal)).all()


# --- Files that are meant to do harm --------------------------------------------------------------

ANSWERS = '{"all_answers": [["4", 5]], "problem_num": "p", "gold_answer": "4"}'


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"all_answers": ' + "[" * 100_000, "nested too deeply|no JSON"),
        ('{"all_answers": [["4", 1' + "0" * 100_000 + "]]}", "a number of 100,001 digits"),
        ('{"all_answers": [["4", 1e999]], "problem_num": 1}', "int|number"),
        ('{"all_answers": [["4", NaN]], "problem_num": 1}', "int|number"),
        ('{"all_answers": [["4", 5]], "problem_num": "\\ud800"}', "half a character"),
        (
            '{"all_answers": [["4", 5]], "problem_num": 1, "question": "\\udfff"}',
            "half a character",
        ),
        ('{"all_answers": {"4": 5}, "problem_num": 1}', "array"),
        ('{"all_answers": [["4", 999999999999999999999]], "problem_num": 1}', "21 digits"),
        ('["all_answers"]', "no JSON object"),
    ],
)
def test_a_hostile_line_is_refused_with_its_number(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{ANSWERS}\n{line}\n", encoding="utf-8")
    with pytest.raises(RecordingError, match=found) as refused:
        Pool.open(path)
    assert f"line 2 of {path}" in str(refused.value)
    assert refused.value.remedy


def test_a_line_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conviction.recordings.importing.base._MOST_CHARACTERS", 1000)
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{ANSWERS}\n{' ' * 2000}\n", encoding="utf-8")
    with pytest.raises(RecordingError, match=f"line 2 of {path}.*longer than 1,000"):
        Pool.open(path)
    path.write_text("{\n" + '"a": 1,\n' * 500, encoding="utf-8")
    with pytest.raises(RecordingError, match=r"longer than 1,000"):
        Pool.open(path)


@pytest.mark.parametrize(
    "member",
    [b"[" * 100_000, b"\xff\xfe", b"{", b"[1]", b'{"id": ' + b"9" * 5_000 + b"}", b'{"eval": 7}'],
)
@pytest.mark.parametrize("name", ["header.json", "samples/1.json"])
def test_a_hostile_member_of_a_log_is_refused(tmp_path: Path, member: bytes, name: str) -> None:
    path = tmp_path / "log.eval"
    with ZipFile(path, "w") as archive:
        if name != "header.json":
            archive.writestr("header.json", '{"eval": {"model": "m"}}')
        archive.writestr(name, member)
    with pytest.raises(RecordingError, match=str(path)) as refused:
        Pool.open(path)
    assert refused.value.remedy


@pytest.mark.parametrize(
    "log",
    [
        '{"eval": {"model": "m"}, "samples": 5}',
        '{"eval": 5, "samples": []}',
        (
            '{"eval": {"model": "m"}, "samples": [{"id": 1, "epoch": 1, "input": "q", '
            '"output": {"choices": [{"message": {"role": "a"}}], "time": NaN}}]}'
        ),
        (
            '{"eval": {"model": "m", "model_generate_config": {"temperature": -1, "max_tokens": 5}}'
            ', "samples": [{"id": 1, "epoch": 1, "input": "q", "output": {}}]}'
        ),
    ],
)
def test_a_hostile_log_is_refused(tmp_path: Path, log: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(log, encoding="utf-8")
    with pytest.raises(RecordingError, match=str(path)):
        Pool.open(path)


def test_a_damaged_archive_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    sample = {"id": 1, "epoch": 1, "input": "q", "target": "4", "output": {"choices": []}}
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("header.json", '{"eval": {"model": "m"}}')
        archive.writestr("samples/1.json", json.dumps(sample))
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(RecordingError):  # even the whole one holds no trace
            Pool.open(path)
