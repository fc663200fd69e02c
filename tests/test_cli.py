"""The command line, run in process; the embedded engine's place is taken by a scripted one."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from cyclopts import App

import conviction
from conviction.backends.builtin import Embedded
from conviction.cli.main import COMMANDS, build, run
from conviction.cli.terminal import WHOLE
from conviction.core import FinishReason
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import ContextOverflowError
from conviction.models import ModelFile
from conviction.policies import policy_names
from conviction.prompts import PromptStyle

ANSWERS = (41, 41, 56, 41, 41, 41, 3, 41)


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    random = np.random.default_rng(0)
    scripts = [
        Script(
            f"Let us see. \\boxed{{{answer}}}",
            random.gamma(9.0, 1.2 if answer == 41 else 0.6, 60).astype(np.float32),
        )
        for answer in ANSWERS
    ]
    scripted = ScriptedEngine(scripts, concurrency=4)
    model = ModelFile(Path("model.gguf"), "scripted", PromptStyle.STEP_BY_STEP)
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: replace(self, file=model))
    monkeypatch.setattr(Embedded, "build", lambda _: scripted)
    return scripted


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_the_answer_alone_goes_to_stdout_and_the_rest_to_stderr(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["think", "How many sheep?", "--policy", "majority", "--budget", "8"]) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "trace 0: done, 60 tokens, answer 41" in err
    assert "6 of 8 votes (75% of the weight)" in err
    assert "8 of 8 traces started (8 finished); 480 tokens; no tokens saved" in err
    assert engine.running == 0


def test_early_stopping_is_shown_with_its_threshold_and_an_estimated_saving(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["think", "How many?", "--policy", "deepconf-low", "--budget", "16"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "stopped: low confidence" in err
    assert "threshold" in err
    assert "(estimate)" in err
    assert f"{sum(engine.generated):,} tokens" in err


@pytest.mark.usefixtures("engine")
def test_quiet_leaves_stderr_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["think", "How many?", "-q"]) == 0
    assert capsys.readouterr() == ("41\n", "")


def test_json_prints_one_document_that_accounts_for_every_token(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["think", "How many?", "--json", "--seed", "7"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["answer"] == "41"
    assert verdict["seed"] == 7
    assert verdict["usage"]["generated"] == sum(engine.generated)
    assert len(verdict["traces"]) == len(engine.generated)
    assert verdict["schema_version"] == 1


@pytest.mark.usefixtures("engine")
def test_traces_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["think", "How many?", "--show-traces", "--policy", "single"]) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "trace 0 · stop · 60 tokens" in err
    assert "Let us see. \\boxed{41}" in err


def test_no_answer_is_a_failure_with_a_reason(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine._scripts = [Script.even("I do not know")]
    assert run(["think", "How many?", "--policy", "majority", "--budget", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 2 traces ended without an answer of kind 'math'" in err


def test_quiet_still_says_in_one_line_why_there_is_no_answer(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine._scripts = [Script.even("I do not know")]
    assert run(["think", "How many?", "--policy", "majority", "--budget", "2", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "No answer: 2 of 2 traces ended without an answer of kind 'math'" in err


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_run_without_a_token_fails_with_its_cause(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str], quiet: list[str]
) -> None:
    engine._pace = lambda _: anyio.sleep(30)
    assert run(["think", "How many?", "--time-limit", "0.1", *quiet]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: think with" in err
    assert "not one token had come by the time limit" in err


def test_ctrl_c_before_the_first_token_exits_with_130(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    async def pace(_: TraceRequest) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep(30)

    engine._pace = pace
    assert run(["think", "How many?", "--policy", "majority", "--budget", "1"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "not one token had come by the end of the run (interrupted)" in err


def test_ctrl_c_shows_the_votes_so_far_and_exits_with_130(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    async def pace(request: TraceRequest) -> None:
        await anyio.lowlevel.checkpoint()
        # The first four traces end; then somebody presses Ctrl-C, which arrives twice.
        if request.trace == 4 and engine.generated[4] == 10:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        if request.trace >= 4 and max(engine.generated[4:]) >= 10:
            await anyio.sleep(30)

    engine._pace = pace
    assert run(["think", "How many?", "--policy", "majority", "--budget", "8"]) == 130
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "Ended by interrupted" in err
    assert "3 of 4 votes" in err, err
    assert engine.running == 0


def test_a_prompt_that_fits_no_context_is_refused_once(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = ContextOverflowError(tried="generate", found="too long", remedy="Shorten it.")
    engine._scripts = [Script("", np.full(1, 5, np.float32), fault=fault)]
    assert run(["think", "How many?", "-q"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: generate: too long.\nShorten it.\n")
    assert len(engine.generated) <= 4


def test_json_says_the_same_as_the_model_but_holds_no_control_characters(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x9b2J \u202e \x1b[2J 답 \\boxed{7}"
    engine._scripts = [Script.even(text)]
    assert run(["think", "How many?", "--json", "--policy", "single"]) == 0
    out = capsys.readouterr().out
    assert not set("\x9b\u202e\x1b") & set(out)
    assert "답" in out
    assert json.loads(out)["traces"][0]["text"] == text


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_a_closed_stream_gives_no_traceback(
    name: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, None)
    assert run(["think", *(["q"] if name == "stdout" else []), "--policy", "single"]) == (
        0 if name == "stdout" else 2
    )
    assert engine.running == 0


@pytest.mark.usefixtures("engine")
def test_an_answer_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.stdout, "write", full)
    assert run(["think", "q", "--policy", "single"]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_a_settings_file_that_is_a_folder_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path))
    assert run(["think", "q"]) == 2
    assert "it is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("nested", ["a = " + "[" * 100_000, "a = " + "{b = " * 100_000])
def test_a_settings_file_that_is_nested_too_deeply_is_an_error(
    nested: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(nested)
    assert run(["think", "q"]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_truncated_traces_do_not_vote_and_the_reader_is_told(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine._scripts = [
        Script("\\boxed{1}", np.full(9, 5, np.float32), FinishReason.LENGTH),
        Script("\\boxed{2}", np.full(9, 5, np.float32)),
    ]
    assert run(["think", "How many?", "--policy", "majority", "--budget", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == "2\n"
    assert "1 of 2 traces reached 1024 tokens and did not vote" in err


@pytest.mark.parametrize("via", ["-", "file", "pipe", "file -"])
def test_a_question_comes_from_stdin_or_a_file_as_well(
    via: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    engine._pace = lambda request: _note(asked, request.messages[-1].content)
    pipe_in(monkeypatch, "몇 마리입니까?\n".encode())
    file = tmp_path / "question.txt"
    file.write_text("몇 마리입니까?\n", encoding="utf-8-sig")
    arguments = {"-": ["-"], "pipe": [], "file": ["--file", str(file)], "file -": ["-f", "-"]}
    assert run(["think", *arguments[via], "--policy", "single"]) == 0
    assert asked[0].startswith("몇 마리입니까?\n\n")
    assert "\\boxed{값}" in asked[0]


async def _note(asked: list[str], text: str) -> None:
    asked.append(text)


NOTHING_STARTED = [
    (["think", "q", "--policy", "majorty"], "Did you mean 'majority'?"),
    (["think", "q", "--answer", "maths"], "Did you mean 'math'?"),
    (["think", "q", "--model", "qwen-0.5"], "Did you mean 'qwen-0.5b'?"),
    (["think", "q", "--budget", "0"], "budget must be at least 1"),
    (["think", "q", "--budget", "-3"], "budget must be at least 1"),
    (["think", "q", "--budget", "many"], "many"),
    (["think", "q", "--budget", "2.6"], "'2.6' is not a whole number"),
    (["think", "q", "--policy", "deepconf-low", "--window", "9.5"], "'9.5' is not a whole number"),
    (["think", "q", "--max-tokens", "99.5"], "'99.5' is not a whole number"),
    (["think", "q", "--seed", "0.5"], "'0.5' is not a whole number"),
    (["think", "q", "--restarts", "1.5"], "'1.5' is not a whole number"),
    (["think", "q", "--policy", "deepconf-low", "--window", "0"], "window must be at least 1"),
    (
        ["think", "q", "--policy", "deepconf-high", "--warmup", "9", "--budget", "8"],
        "warm-up is larger than the budget",
    ),
    (["think", "q", "--temperature", "-0.1"], "temperature must be"),
    (["think", "q", "--temperature", "nan"], "temperature must be"),
    (["think", "q", "--max-tokens", "0"], "max_tokens must be at least 1"),
    (["think", "q", "--top-p", "1.5"], "top_p must be"),
    (["think", "q", "--policy", "deepconf-offline", "--keep", "0"], "keep must be"),
    (["think", "q", "--time-limit", "-1"], "time_limit must be"),
    (["think", "q", "--policy", "majority", "--window", "8"], "Its settings: budget."),
    (["think", "q", "--consensus", "0.9"], "take the policy deepconf-high or deepconf-low."),
    (["think", "q", "--policy", "deepconf-offline", "--metric", "tial"], "tial"),
    (["think", "q", "--policy", "majority:window=8"], "Its settings: budget."),
    (["think", "q", "--policy", "esc:window=1"], "window must be at least 2"),
    (["think", "q", "--policy", "esc:window"], "'window' is no setting"),
    (["think", "q", "--policy", "deepconf-low:keep=0.1/0.9"], "2 values of keep"),
    (["think", ""], "it is empty"),
    (["think", "  \n "], "it is empty"),
    (["think", "\udcff 2+2"], "not UTF-8"),
    (["think", "q", "--prompt-style", "bogus"], "bogus"),
    (["think", "q", "--file", "question.txt"], "one on the command line and one in --file"),
    (["think", "--file", "no-such-file.txt"], "No such file"),
    (["think", "q", "--bugdet", "3"], "--bugdet"),
    (["thnik", "q"], "thnik"),
]


@pytest.mark.parametrize(("arguments", "message"), NOTHING_STARTED)
def test_wrong_use_is_refused_with_code_2_before_anything_is_fetched_or_started(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "NUL bytes"),
        (b"caf\xe9 au lait", "not UTF-8"),
        (b"x" * 4_000_001, "longer than"),
        (b"x" * 1_000_001, "1,000,001 characters"),
    ],
)
def test_what_is_no_question_on_stdin_is_refused(
    data: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe_in(monkeypatch, data)
    assert run(["think", "-"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("engine")
def test_flags_beat_the_environment_which_beats_the_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def budget(*flags: str) -> int:
        assert run(["think", "q", "--json", "-q", "--policy", "majority", *flags]) == 0
        return json.loads(capsys.readouterr().out)["budget"]

    assert budget() == 16
    (tmp_path / "config.toml").write_text("[think]\nbudget = 3\n")
    assert budget() == 3
    monkeypatch.setenv("CONVICTION_THINK_BUDGET", "5")
    assert budget() == 5
    assert budget("--budget", "7") == 7


@pytest.mark.usefixtures("engine")
def test_a_settings_file_with_a_mistake_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("[think]\nbugdet = 3\n")
    assert run(["think", "q"]) == 2
    assert "bugdet" in capsys.readouterr().err


def test_a_broken_model_file_is_named_and_nothing_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0")
    assert run(["think", "q", "--model", str(broken)]) == 1
    err = capsys.readouterr().err
    assert "broken.gguf" in err
    assert "Traceback" not in err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["think", "--help"], ["models", "--help"], ["doctor", "--help"]):
        assert run(arguments) == 0
        assert "Usage" in capsys.readouterr().out
    run(["think", "--help"])
    text = capsys.readouterr().out
    for flag in ("--policy", "--budget", "--window", "--answer", "--show-traces", "--json"):
        assert flag in text


def test_the_doctor_reports_what_works_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["doctor", "--json"]) == 0
    findings = {finding["what"].strip(): finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["embedded engine"]["ok"] is True
    assert findings["model cache"]["found"] == str(tmp_path / "cache" / "models")
    assert findings["SmolLM2-135M-Instruct"]["found"] == "not fetched"


def test_the_doctor_fails_where_the_cache_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "file"))
    assert run(["doctor"]) == 1
    assert "CONVICTION_CACHE" in capsys.readouterr().out


def test_the_list_of_policies_tells_settings_and_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["policies"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in policy_names())
    assert run(["policies", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(entries) == set(policy_names())
    assert entries["esc"]["settings"] == {"budget": 16, "window": 4}
    assert entries["deepconf-low"]["needs_confidence"] is True
    assert entries["majority"]["needs_confidence"] is False


def commands(app: App) -> Iterator[App]:
    """All commands of the command line that do something."""
    for name in app:
        if not name.startswith("-"):
            command = app[name]
            if command.default_command is not None:
                yield command
            yield from commands(command)


def test_no_option_for_whole_numbers_rounds_others() -> None:
    whole = [
        argument
        for command in commands(build())
        for argument in command.assemble_argument_collection()
        if int in (argument.hint, *get_args(argument.hint))
    ]
    assert len(whole) > 40
    assert [one.name for one in whole if one.parameter.converter is not WHOLE.converter] == []


def test_what_the_package_offers_is_imported_when_it_is_used() -> None:
    heavy = "{'numpy', 'pydantic', 'aiohttp', 'httpx2'} & set(sys.modules)"
    code = f"import sys, conviction, conviction.cli.main; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [name for name in conviction.__all__ if getattr(conviction, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'thinkk'"):
        conviction.thinkk  # noqa: B018


def test_every_command_is_where_the_list_says() -> None:
    assert {name for name in build() if not name.startswith("-")} == set(COMMANDS)
    for name in COMMANDS:
        assert build()[name].help


POOL = Path(__file__).parents[1] / "examples" / "singleop-qwen2.5-coder-0.5b.parquet"


def test_an_option_that_may_be_repeated_takes_several_values_in_one_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lab = ["lab", str(POOL), "--repeats", "1", "--json", "--processes", "1"]
    assert run([*lab, "--policy", "single", "majority", "--budget", "2", "4"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert run([*lab, "--policy=single", "--policy=majority", "--budget=2", "--budget=4"]) == 0
    assert json.loads(capsys.readouterr().out) == several
    assert len(several["policies"]) == 3


@pytest.mark.parametrize(
    ("arguments", "left_over"),
    [
        (["lab", str(POOL), "other", "--policy", "majority"], "other"),
        (["lab", str(POOL), "--seed", "1", "2"], "2"),
        (["think", "What is 6 * 7?", "really"], "really"),
    ],
)
def test_an_argument_too_many_is_named(
    arguments: list[str], left_over: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert f"unexpected argument: {left_over}" in error
    assert f"Try conviction {arguments[0]} --help." in error
