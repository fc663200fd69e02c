"""The history of verdicts: kept by `think`, listed, searched, shown, opened and deleted."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import conviction
from conviction import history
from conviction.backends.builtin import Embedded
from conviction.cli.main import run
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import InvalidSettingError, RecordingError
from conviction.history import History, history_path
from conviction.models import ModelFile
from conviction.prompts import PromptStyle
from conviction.verdict import Verdict


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "kept" / "history.db"
    monkeypatch.setenv("CONVICTION_HISTORY", str(place))
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    return place


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    scripts = [
        Script(f"Let us see. \\boxed{{{answer}}}", np.full(20, 9.0, np.float32))
        for answer in (41, 41, 56, 41)
    ]
    scripted = ScriptedEngine(scripts, concurrency=4)
    model = ModelFile(Path("model.gguf"), "scripted", PromptStyle.STEP_BY_STEP)
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: replace(self, file=model))
    monkeypatch.setattr(Embedded, "build", lambda _: scripted)
    return scripted


def verdict(answer: str = "7", text: str = "") -> Verdict:
    engine = ScriptedEngine([Script.even(f"{text}Answer: {answer}")])
    return conviction.think(
        "How many?", engine=engine, policy="majority", budget=2, answers="number"
    )


@pytest.mark.usefixtures("engine")
def test_think_keeps_its_verdict_which_is_listed_shown_searched_and_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kept: Path
) -> None:
    assert run(["think", "--quiet", "--json", "How many sheep?", "--budget", "4"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert run(["think", "--quiet", "Wie viele Schafe?", "--budget", "4"]) == 0
    capsys.readouterr()

    assert run(["history", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in listed] == [2, 1]
    assert [one["question"] for one in listed] == ["Wie viele Schafe?", "How many sheep?"]
    assert run(["history", "show", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**said, "question": "How many sheep?"}
    assert run(["history", "show", "1", "--traces"]) == 0
    shown = capsys.readouterr().out
    assert "How many sheep?" in shown
    assert "3 votes  41" in shown
    assert "Let us see." in shown
    assert run(["history", "search", "SCHAFE", "--json"]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == [2]
    assert run(["history", "search", "goats"]) == 1
    page = tmp_path / "run.html"
    assert run(["history", "open", "2", "--html", str(page)]) == 0
    assert "Wie viele Schafe?" in page.read_text(encoding="utf-8")
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("off", ["flag", "file", "environment"])
def test_nothing_is_kept_where_that_is_turned_off(
    off: str, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off == "file":
        (tmp_path / "config.toml").write_text("[think]\nhistory = false\n")
    if off == "environment":
        monkeypatch.setenv("CONVICTION_THINK_HISTORY", "false")
    flags = ["--no-history"] if off == "flag" else []
    assert run(["think", "--quiet", "How many?", "--budget", "2", *flags]) == 0
    assert not kept.exists()


@pytest.mark.usefixtures("engine")
def test_a_history_that_cannot_be_written_costs_nothing_but_a_note(
    capsys: pytest.CaptureFixture[str], kept: Path
) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"not a database, not at all" * 10)
    assert run(["think", "How many?", "--budget", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == "41\n"
    assert "The history was not written." in err
    assert str(kept) in "".join(err.split())


def test_deleted_verdicts_are_gone_and_numbers_are_never_given_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    past = History()
    numbers = [past.add(verdict(), question=f"Question {n}?") for n in range(3)]
    assert numbers == [1, 2, 3]
    assert run(["history", "delete", "3", "1", "8"]) == 1
    assert "Deleted 2 of 3." in capsys.readouterr().err
    assert [entry.id for entry in past.entries()] == [2]
    assert past.add(verdict(), question="Another?") == 4
    assert run(["history", "delete", "--all"]) == 0
    assert past.entries() == []
    assert run(["history", "delete"]) == 2
    assert run(["history", "delete", "2", "--all"]) == 2
    with pytest.raises(InvalidSettingError, match="verdict 2"):
        past.verdict(2)


def test_the_oldest_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 2)
    past = History()
    for number in range(4):
        past.add(verdict(), question=str(number))
    assert [entry.question for entry in past.entries()] == ["3", "2"]
    assert past.verdict(4)["question"] == "3"
    with pytest.raises(InvalidSettingError):
        past.verdict(2)


def test_text_that_no_encoding_holds_is_kept_as_far_as_it_can_be() -> None:
    past = History()
    number = past.add(verdict(text="half \ud800 a character "), question="half \ud800?")
    assert past.entries()[0].question == "half ??"
    assert "half \ud800 a" in past.verdict(number)["traces"][0]["text"]


def test_several_programs_keep_their_verdicts_at_once(kept: Path) -> None:
    code = (
        "import conviction; from conviction.history import History\n"
        "from conviction.engines.scripted import Script, ScriptedEngine\n"
        "engine = ScriptedEngine([Script.even('Answer: 7')])\n"
        "one = conviction.think('?', engine=engine, policy='single', answers='number')\n"
        "for _ in range(8): History().add(one, question='?')"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    try:
        assert [process.wait(60) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
    assert [entry.id for entry in History().entries()] == list(range(24, 0, -1))
    assert History().check() == ()
    assert [path.name for path in kept.parent.iterdir()] == ["history.db"]


def test_a_damaged_verdict_is_told_and_never_shown(
    capsys: pytest.CaptureFixture[str], kept: Path
) -> None:
    past = History()
    for answer in ("7", "8"):
        past.add(verdict(answer), question="How many?")
    with sqlite3.connect(kept) as file:
        file.execute("UPDATE verdicts SET answer = '9' WHERE id = 1")
    file.close()
    assert run(["history"]) == 1
    out, err = capsys.readouterr()
    assert "9" not in out
    assert "row 1 of table verdicts is damaged" in " ".join(err.split())
    assert run(["history", "check"]) == 1
    with pytest.raises(RecordingError, match="row 1"):
        past.entries()
    assert past.verdict(2)["answer"] == "8"


def test_the_history_lies_in_the_users_folder_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CONVICTION_HISTORY")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert history_path().name == "history.db"
    assert "conviction" in history_path().parts


def test_a_file_in_which_nothing_was_written_yet_counts_as_none(
    capsys: pytest.CaptureFixture[str], kept: Path
) -> None:
    kept.parent.mkdir()
    kept.touch()
    assert run(["history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert History().add(verdict(), question="How many?") == 1


def test_a_user_that_does_not_exist_is_no_crash(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVICTION_HISTORY", "~nosuchuser/history.db")
    assert run(["history"]) == 0
    assert "No verdicts are kept here." in capsys.readouterr().err


def test_a_verdict_whose_details_are_lost_is_told_and_not_taken_for_none(kept: Path) -> None:
    past = History()
    for _ in range(2):
        past.add(verdict(), question="?")
    with closing(sqlite3.connect(kept)) as file:
        file.execute("DELETE FROM details WHERE id = 1")
        file.commit()
    with pytest.raises(RecordingError, match="a row of its table details is missing"):
        past.verdict(1)
    assert past.verdict(2)
    with pytest.raises(InvalidSettingError, match="none of that number"):
        past.verdict(3)
