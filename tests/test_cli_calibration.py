"""`--calibration` and `--abstain-below`, in process, on scripted engines."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import lab_traces
import pytest

from conviction.backends.builtin import Embedded
from conviction.cli import calibration
from conviction.cli.main import run
from conviction.core import Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import RecordingError
from conviction.evaluation.results import QuestionResult
from conviction.evaluation.summary import abstain
from conviction.lab.calibration import FEWEST, calibrate
from conviction.lab.sources import TracesInMemory
from conviction.models import ModelFile
from conviction.policies.majority import Majority
from conviction.prompts import PromptStyle, compose
from conviction.recordings import PoolMeta, PoolWriter, RecordedTrace, prompt_hash
from conviction.verdict import Usage

QUESTIONS = 24
ANSWERS = (41, 41, 56, 41, 41, 3, 41, 41)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedEngine:
    """What takes the place of the embedded engine."""
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))
    scripted = ScriptedEngine([Script.even(f"\\boxed{{{answer}}}") for answer in ANSWERS])
    model = ModelFile(Path("model.gguf"), "scripted", PromptStyle.STEP_BY_STEP)
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: replace(self, file=model))
    monkeypatch.setattr(Embedded, "build", lambda _: scripted)
    return scripted


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of which two in three are easy."""
    memory = TracesInMemory(
        {
            f"question {n}": lab_traces.recorded(n, 8, odds=0.95 if n % 3 else 0.2)
            for n in range(QUESTIONS)
        }
    )
    return lab_traces.on_disk(tmp_path_factory.mktemp("calibration") / "pool", memory)


def think(pool: Path | None, *more: str) -> list[str]:
    known = ["--calibration", str(pool)] if pool else []
    return ["think", "How many?", "--policy", "majority", "--budget", "8", *known, *more]


def test_the_probability_of_being_right_is_told_apart_from_share_and_lead(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(think(pool, "--json")) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["answer"], told["share"], told["abstained"]) == ("41", 0.75, False)
    assert told["lead"] == pytest.approx(1 - 9 / 2**8)
    right = told["right"]
    assert 0 < right["low"] < right["value"] < right["high"] <= 1
    assert (right["pool"], right["questions"]) == ("pool", QUESTIONS)
    assert "6 of 8 votes (75% of the weight)" in err
    assert "asked on and on, it would lead, right or wrong: 96%" in err
    words = f"right with a calibrated probability of {right['value']:.0%} (95% interval "
    assert words in err
    assert "by 24 questions of pool" in err
    assert "rests on 24 questions alone" in err


def test_without_a_calibration_nothing_is_said_of_being_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(think(None, "--json")) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["right"], told["abstained"]) == (None, False)
    assert "calibrat" not in err


def test_an_answer_that_is_not_probable_enough_is_not_printed(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(think(pool, "--abstain-below", "1")) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "Abstained: the answer would have been 41; right with a calibrated probability" in err
    assert "--abstain-below asks for 100%" in err
    assert run(think(pool, "--abstain-below", "1", "--json")) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["abstained"]) == (None, True)
    assert told["tally"][0]["answer"] == "41"
    assert told["right"]["value"] < 1
    assert run(think(pool, "--abstain-below", "1", "--quiet")) == 3
    assert capsys.readouterr() == ("", "")


def test_an_answer_that_is_probable_enough_is_printed(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(think(pool, "--abstain-below", "0.5")) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "Abstained" not in err


def test_no_answer_at_all_is_a_failure_and_no_abstention(
    pool: Path, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine._scripts = [Script.even("I do not know")]
    assert run(think(pool, "--abstain-below", "0.5", "--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["abstained"], told["lead"]) == (None, False, None)


def test_a_run_that_was_cut_short_has_no_probability_and_so_no_answer(
    pool: Path, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    quick, slow = Script.even("\\boxed{41}", tokens=2), Script.even("\\boxed{41}", tokens=4000)
    engine._scripts = [quick, slow]
    engine._pace = ScriptedEngine([quick], delay=0.005)._pace
    assert run(think(pool, "--time-limit", "0.6", "--max-tokens", "5000")) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "No calibrated probability of being right: the run was cut short" in err
    assert run(think(pool, "--time-limit", "0.6", "--abstain-below", "0.1")) == 3
    assert "how probable it is to be right cannot be told" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--abstain-below", "0"], "abstain_below must be above 0"),
        (["--abstain-below", "1.01"], "abstain_below must be above 0"),
        (["--abstain-below", "-0.1"], "abstain_below must be above 0"),
        (["--abstain-below", "nan"], "abstain_below must be above 0"),
        (["--budget", "9"], "--budget 8"),
        (["--budget", "64"], "20 of them have 8"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_started(
    pool: Path,
    engine: ScriptedEngine,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["think", "q", "--policy", "majority", "--calibration", str(pool), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in " ".join(err.split())
    assert engine.generated == []


def test_abstaining_needs_a_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(think(None, "--abstain-below", "0.6")) == 2
    assert "--calibration POOL" in capsys.readouterr().err


def test_recordings_that_teach_nothing_are_refused_before_anything_is_started(
    tmp_path: Path, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = lab_traces.in_memory(QUESTIONS, 8)
    answers = lab_traces.on_disk(tmp_path / "answers", memory, top_k=0)
    few = lab_traces.on_disk(tmp_path / "few", lab_traces.in_memory(5, 8))
    ungraded = lab_traces.on_disk(tmp_path / "ungraded", memory, ungraded=memory.question_ids)
    for folder, more, code, message in (
        (answers, ["--policy", "deepconf-low"], 2, "holds answers only"),
        (answers, ["--policy", "settle-regenerate"], 2, "Leave the calibration out"),
        (few, [], 2, "5 questions with right answers, and fewer than 20 tell nothing"),
        (ungraded, [], 1, "24 of 24 questions have no right answer"),
        (tmp_path / "none", [], 2, "there is nothing of that name"),
    ):
        arguments = ["think", "q", "--budget", "8", "--calibration", str(folder), *more]
        assert run(arguments) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert message in " ".join(err.split())
    assert run(["think", "q", "--policy", "settle:budget=8", "--calibration", str(answers)]) == 0
    assert engine.generated


def fails(error: BaseException) -> Callable[..., NoReturn]:
    def work(*_: object, **__: object) -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RecordingError(tried="read it", found="it is torn", remedy="Mend it."), "it is torn"),
        (KeyboardInterrupt(), "it was interrupted"),
    ],
)
def test_a_calibration_that_fails_costs_no_answer(
    pool: Path,
    error: BaseException,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibration, "calibrate", fails(error))
    assert run(think(pool)) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert f"The calibration failed: {words}" in err or words in err
    assert run(think(pool, "--abstain-below", "0.1")) == 3
    assert capsys.readouterr().out == ""


def recorded_like_the_run(folder: Path, *, model: str = "scripted", style: PromptStyle) -> Path:
    """A pool that keeps the words of its questions, asked in a certain way."""
    sampling = Sampling(temperature=0.7, max_tokens=1024)
    with PoolWriter(folder, PoolMeta(model, 20, "math", sampling)) as writer:
        for n in range(QUESTIONS):
            text = "How many?" if not n else f"How many are {n} of them?"
            question = compose(text, kind="math", style=style)
            for number, trace in enumerate(lab_traces.recorded(n, 8)):
                writer.append(
                    RecordedTrace(
                        question_id=question.id,
                        number=number,
                        prompt_hash=prompt_hash(question),
                        question=text,
                        gold=lab_traces.GOLD,
                        finish=trace.finish,
                        tokens=trace.tokens,
                        answer=trace.answer,
                        correct=trace.correct,
                        confidences=trace.confidences,
                    )
                )
    return folder


def test_a_recording_of_the_same_kind_of_run_is_told_from_one_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = recorded_like_the_run(tmp_path / "same", style=PromptStyle.STEP_BY_STEP)
    assert run(think(same)) == 0
    err = capsys.readouterr().err
    assert "was recorded with" not in err
    assert "This question is among those of the calibration" in err
    other = recorded_like_the_run(tmp_path / "other", model="elder", style=PromptStyle.PLAIN)
    arguments = think(other, "--temperature", "0.5", "--max-tokens", "600", "--answer", "number")
    assert run([*arguments, "--json"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["warnings"])
    assert (
        "The calibration was recorded with the model elder (here scripted), answers of the kind "
        "math (here number), temperature 0.7 (here 0.5), max_tokens 1024 (here 600), another "
        "prompt: its probabilities may not hold here."
    ) in notes
    assert "among those" not in notes


def test_a_recording_without_words_or_sampling_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = lab_traces.in_memory(QUESTIONS, 8)
    with PoolWriter(tmp_path / "silent", PoolMeta("scripted", 0, "math")) as writer:
        for name, traces in memory.questions.items():
            for number, trace in enumerate(traces):
                writer.append(
                    RecordedTrace(
                        question_id=name,
                        number=number,
                        prompt_hash="",
                        question="",
                        gold=lab_traces.GOLD,
                        finish=trace.finish,
                        tokens=trace.tokens,
                        answer=trace.answer,
                        correct=trace.correct,
                    )
                )
    assert run(think(tmp_path / "silent")) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "recorded with sampling that it does not tell" in err
    assert "whether they had the prompt of this run cannot be told" in err


def test_the_exit_code_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["think", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 abstained" in text
    assert "--abstain-below" in text


def test_evaluations_promise_no_exit_code_that_they_do_not_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["eval", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--abstain-below" in text
    assert "exit code 3" not in text


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Ten questions with the right answer 41."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"How many in {n}?", "answer": "41"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TraceRequest]:
    """What a server is asked: sure and right on six questions, and at odds on four.

    The first of these four ends after the other three.
    """
    requests: list[TraceRequest] = []

    def script(request: TraceRequest) -> Script:
        requests.append(request)
        number = int(re.findall(r"How many in (\d)", request.messages[-1].content)[0])
        answer = 41 if number < 6 else (41, 42)[request.trace % 2]
        tokens = 4 + request.trace + 100 * (number == 6)
        return Script.even(f"Answer: {answer}", tokens=tokens)

    server = ScriptedEngine(script, concurrency=4)
    monkeypatch.setattr(Embedded, "build", lambda _: server)
    return requests


def test_an_evaluation_counts_what_it_withholds_apart(
    tmp_path: Path,
    pool: Path,
    questions: Path,
    asked: list[TraceRequest],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder = ["-o", str(tmp_path / "run"), "--policy", "majority", "--budget", "8"]
    arguments = ["eval", str(questions), *run_folder, "--calibration", str(pool)]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["calibration"]
    assert (told["told"], told["untold"], told["abstained"], told["answered"]) == (10, 0, 0, 10)
    assert told["observed"]["value"] == 1.0
    assert 0.4 < told["expected"] < 1.0
    traces = len(asked)
    # Everything is there, so that nothing is asked again to withhold some of it.
    assert run([*arguments, "--abstain-below", "0.8"]) == 0
    assert len(asked) == traces
    out, err = capsys.readouterr()
    assert re.search(r"accuracy +100\.0 \[72\.2, 100\.0\] %; 10 of 10 questions right", out)
    assert re.search(r"calibrated +\d\d\.\d % expected right by 24 questions of pool; 100\.0", out)
    assert re.search(r"abstained +4 questions: less probable to be right than 80 %", out)
    assert re.search(r"answered +60\.0 \[31\.3, 83\.2\] %; 6 in all", out)
    assert re.search(r"of these +100\.0 \[61\.0, 100\.0\] % right", out)
    assert "24 questions alone" in err
    assert run([*arguments, "--abstain-below", "0.8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["complete"], told["right"]) == (True, 10)
    assert told["calibration"]["abstained_questions"] == ["7", "8", "9", "10"]
    assert told["calibration"]["coverage"]["value"] == 0.6
    assert run([*arguments[:-2], "--abstain-below", "0.8"]) == 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecordingError(tried="read it", found="it is torn", remedy="Mend it."), 1, "it is torn"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_a_calibration_that_fails_does_not_hide_what_was_measured(
    tmp_path: Path,
    pool: Path,
    questions: Path,
    asked: list[TraceRequest],
    *,
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibration, "calibrate", fails(error))
    arguments = ["eval", str(questions), "-o", str(tmp_path / "run"), "--policy", "majority"]
    assert run([*arguments, "--budget", "8", "--calibration", str(pool)]) == code
    out, err = capsys.readouterr()
    assert "10 of 10 questions right" in out
    assert "calibrated" not in out
    assert words in err
    assert asked


def test_an_evaluation_on_questions_of_its_own_calibration_is_told(
    tmp_path: Path,
    asked: list[TraceRequest],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"How many in {n % 10}{n}?", "answer": "41"} for n in range(FEWEST)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = str(tmp_path / "pool")
    assert run(["record", str(data), "-n", "4", "-o", folder, "-q"]) == 0
    arguments = ["eval", str(data), "-o", str(tmp_path / "run"), "--policy", "majority:budget=4"]
    assert run([*arguments, "--calibration", folder]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "20 of 20 questions are among those of the calibration" in err
    assert "was recorded with" not in err
    assert asked


def result(number: int, share: float | None, *, correct: bool | None, ended: str) -> QuestionResult:
    return QuestionResult(
        id=str(number),
        question="",
        gold=None if correct is None else "1",
        answer=None if share is None else "1",
        correct=correct,
        share=share or 0.0,
        ended=ended,
        tokens=1,
        usage=Usage(),
        traces=1,
        seconds=1.0,
        votes=None,
        error="it is gone" if ended == "failed" else None,
    )


def test_what_has_no_answer_failed_or_cannot_be_told_is_kept_apart() -> None:
    memory = lab_traces.in_memory(40, 12, odds=0.8)
    found = calibrate(memory, Majority(8), pool="made-up")
    results = [
        result(0, 1.0, correct=True, ended="budget"),
        result(1, 1.0, correct=False, ended="budget"),
        result(2, 1.0, correct=None, ended="budget"),
        result(3, 1.0, correct=True, ended="time"),
        result(4, None, correct=False, ended="budget"),
        result(5, None, correct=None, ended="failed"),
    ]
    everything = abstain(results, found, None)
    assert (everything.told, everything.untold, everything.answered) == (3, 1, 4)
    assert everything.abstained == ()
    assert everything.observed.value == 0.5
    some = abstain(results, found, 0.5)
    assert some.abstained == ("3",)
    assert (some.answered, some.coverage.value) == (3, 3 / 5)
    assert some.accuracy.value == 0.5
    none = abstain(results, found, 1.0)
    assert (none.answered, none.abstained) == (0, ("0", "1", "2", "3"))
    assert none.to_dict()["accuracy_of_answered"]["value"] is None
    assert json.dumps(abstain([], found, 0.5).to_dict(), allow_nan=False)
