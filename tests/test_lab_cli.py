"""`conviction lab` and `conviction lab diagnose`, run in process on a small pool."""

import errno
import json
import os
import re
import stat
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import lab_traces
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from conviction.cli import progress as cli_progress
from conviction.cli.main import run
from conviction.recordings import Pool, pack


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_traces.on_disk(tmp_path_factory.mktemp("lab") / "pool")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_traces.on_disk(tmp_path_factory.mktemp("lab") / "answers", top_k=0)


class Page(HTMLParser):
    """What a page holds, and everything that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data

    def check_it_loads_nothing(self) -> None:
        assert self.loads == []
        assert not {"script", "link", "iframe", "img", "object", "image", "use"} & set(self.tags)
        assert not re.search(r"https?://|url\((?!#)|@import", self.source)


def test_the_usual_policies_are_compared_without_being_named(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", str(pool), "--repeats", "4"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "policy",
        "majority@12",
        "single",
        "adaptive-consistency@12",
        "esc@12",
        "settle@12",
        "deepconf-low@12",
        "deepconf-high@12",
        "deepconf-offline@12",
        "best-of-n@12",
        "borda@12",
    ]
    assert "\x1b" not in out
    assert "a model <b>: 6 questions, 12 traces each, 4 draws per question" in err
    assert "6 questions resolve only large differences" in err


def test_json_holds_every_figure_with_its_interval(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lab", str(pool), "--json", "--quiet", "--budget", "8", "--seed", "3"]
    policies = ["--policy", "deepconf-low:warmup=4,window=8", "--policy", "majority"]
    assert run([*command, *policies, "--baseline", "majority", "--concurrency", "2"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["questions"], found["repeats"], found["seed"]) == (6, 64, 3)
    assert found["baseline"] == "majority@8"
    majority, low = found["policies"]
    assert majority["saving"] == 0
    assert low["policy"] == "deepconf-low@8 warmup=4 window=8"
    assert low["spec"] == "deepconf-low:warmup=4,window=8"
    assert (low["budget"], low["concurrency"]) == (8, 2)
    for name in ("accuracy", "difference", "tokens", "saving", "path"):
        assert low[f"{name}_low"] <= low[name] <= low[f"{name}_high"]
    assert low["difference"] == pytest.approx(low["accuracy"] - majority["accuracy"])
    assert 4 <= low["started"] <= 8
    assert run([*command, *policies, "--baseline", "majority", "--concurrency", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_sweep_shows_the_front_and_writes_every_candidate(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "all.parquet", tmp_path / "sweep.html"
    command = ["lab", str(pool), "--sweep", "--repeats", "1", "--processes", "1"]
    specs = ["--policy", "majority", "--policy", "adaptive-consistency"]
    assert run([*command, *specs, "--out", str(table), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    rows = pq.read_table(table).to_pylist()
    # Waves of 16 are majority with a budget of 12.
    assert 5 + 4 < len(rows) <= 5 + 4 * 2 + 2 * 2
    assert {row["concurrency"] for row in rows} == {None, 8, 1}
    usual = [row["concurrency"] for row in rows if row["policy"] == "majority@12"]
    assert usual == [None, 8, 1]
    assert all(row["tokens_in_total"] == pytest.approx(6 * row["tokens"]) for row in rows)
    front = [row["policy"] for row in rows if row["on_front"]]
    assert 0 < len(front) < len(rows)
    assert all(name in out for name in front)
    assert " path" in out.splitlines()[0]
    assert len(out.splitlines()) == 1 + len(front)
    assert "accuracy % on the 3 others" in out
    whole = Page(page)
    whole.check_it_loads_nothing()
    assert f"The front of {len(rows)} policies" in whole.words
    assert "tokens in total" in whole.words


def test_the_report_is_one_file_that_loads_nothing(pool: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run(["lab", str(pool), "--repeats", "2", "--html", str(page), "--quiet"]) == 0
    report = Page(page)
    report.check_it_loads_nothing()
    assert "a model <b>: policies compared on recorded traces" in report.words
    assert report.tags.count("svg") == 3
    assert report.tags.count("tr") == 1 + 10
    for words in ("accuracy, %", "tokens per question", "Bars are 95% intervals", "deepconf-low"):
        assert words in report.words
    # Text takes the page's colour, so that it reads on light and on dark.
    assert 'fill="currentColor"' in report.source
    assert not re.search(r'<text[^>]*fill="(?!currentColor)', report.source)


def test_a_pool_of_answers_runs_what_it_can_and_says_what_it_cannot(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = ["--policy", "majority", "--policy", "deepconf-low"]
    assert run(["lab", str(answers), "--repeats", "2", *policies]) == 0
    out, err = capsys.readouterr()
    assert "majority@12" in out
    assert "deepconf-low" not in out
    assert "left out: deepconf-low@12: it needs token confidences" in err
    assert run(["lab", str(answers), "--policy", "deepconf-low"]) == 2
    assert "this pool holds answers only" in capsys.readouterr().err
    assert run(["lab", "diagnose", str(answers)]) == 2
    assert "this pool holds answers only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "13"], "draw 13 traces of question 'question 0': 12 complete traces"),
        (["--policy", "majorty"], "Did you mean 'majority'"),
        (["--policy", "esc:widow=3"], "Its settings: budget, window"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--repeats", "0"], "repeats must be"),
        (["--processes", "0"], "processes must be"),
        (["--html", "nowhere/report.html"], "its folder does not exist"),
        (["--out", "."], "it is a folder"),
        (["--html", "same", "--out", "same"], "they are the same file"),
        (["--budget", "4.5"], "'4.5' is not a whole number"),
        (["--seed", "1.5"], "'1.5' is not a whole number"),
        (["--budget", "4", "--budget", "0"], "budget must be at least 1"),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    pool: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", str(pool), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["diagnose", "POOL", "--budget", "0"],
        ["diagnose", "POOL", "--budget", "4.5"],
        ["diagnose", "POOL", "--repeats", "0"],
        ["POOL", "--policy", "majorty"],
        ["POOL", "--concurrency", "0"],
        ["POOL", "--html", "nowhere/report.html"],
    ],
)
def test_what_no_recording_could_make_right_is_wrong_use_before_one_is_read(
    tmp_path: Path, arguments: list[str]
) -> None:
    missing = str(tmp_path / "empty")
    Path(missing).touch()
    assert run(["lab", missing]) == 1
    assert run(["lab", *(missing if one == "POOL" else one for one in arguments)]) == 2


def test_a_pool_behind_the_policies_is_told_to_come_first(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", "--policy", "majority", "settle", str(pool)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"use '{pool}' as a policy: it is a file or folder" in said
    assert "conviction lab POOL --policy" in said


@pytest.mark.parametrize("command", [["lab"], ["lab", "diagnose"]])
def test_negative_seeds_are_taken(
    pool: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    for _ in range(2):
        assert run([*command, str(pool), "--seed", "-5", "--repeats", "1", "--json"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


COMMANDS = [["lab", "--policy", "majority"], ["lab", "diagnose"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_on_a_full_disk_is_written_whole_or_not_at_all(
    pool: Path,
    tmp_path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    page = folder / "page.html"
    page.write_text("before")

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("conviction.files.os.fsync", full)
    assert run([*command, str(pool), "--repeats", "1", "--html", str(page)]) == 1
    out, err = capsys.readouterr()
    assert f"write {page}: No space left on device" in " ".join(err.split())
    assert [one.name for one in folder.iterdir()] == ["page.html"]
    assert page.read_text() == "before"
    # What was found is not lost with it.
    assert "majority" in out


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_what_is_no_file_is_not_replaced(
    pool: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link, circle = tmp_path / "pipe", tmp_path / "link", tmp_path / "circle"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    circle.symlink_to(circle)
    for path in (pipe, link, circle):
        assert run(["lab", str(pool), "--policy", "majority", option, str(path)]) == 2
        assert f"write {path}" in " ".join(capsys.readouterr().err.split())
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_a_link_stays_and_what_it_points_to_is_written(
    pool: Path, tmp_path: Path, option: str
) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for _ in range(2):
        arguments = ["--repeats", "1", "--policy", "majority", option, str(link)]
        assert run(["lab", str(pool), *arguments]) == 0
        assert link.is_symlink()
        assert target.stat().st_size > 100


def test_a_recording_is_not_replaced_by_what_was_found_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = lab_traces.on_disk(tmp_path / "pool")
    (tmp_path / "old").mkdir()
    part = tmp_path / "old" / "part-000000.parquet"
    pack(Pool.open(pool), part)
    for recording, target in ((pool, pool), (part, part), (part.parent, part)):
        before = target.read_bytes()
        command = ["lab", str(recording), "--repeats", "1", "--policy", "majority"]
        assert run([*command, "--out", str(target)]) == 2
        assert "it is the recording" in " ".join(capsys.readouterr().err.split())
        assert target.read_bytes() == before


def test_help_shows_no_default_that_is_not_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "--help"]) == 0
    out = capsys.readouterr().out
    assert "default: (" not in out
    assert "all (inf) if not given" in " ".join(out.replace("│", " ").split())


def test_a_pool_of_mixed_k_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, k in enumerate((20, 5)):
        pool = lab_traces.on_disk(tmp_path / f"of {k}", top_k=k)
        pack(Pool.open(pool), mixed / f"part-00000{number}.parquet")
    assert run(["lab", str(mixed)]) == 1
    assert "k 5 against 20" in capsys.readouterr().err.replace("20 against 5", "5 against 20")


ANSWERS = """
{"problem_num": 1, "gold_answer": "4", "all_answers": [["4", 10], ["4.0", 20], ["5", 30]]}
{"problem_num": 2, "gold_answer": "7", "all_answers": [["7", 15], ["6", 25], ["7", 35]]}
"""


@pytest.mark.parametrize("command", [["lab"], ["lab", "diagnose"]])
def test_recorded_answers_are_read_as_they_are_without_pyarrow(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file, pool = tmp_path / "answers.jsonl", tmp_path / "pool"
    file.write_text(ANSWERS.strip(), encoding="utf-8")
    arguments = ["--repeats", "4", "--answer", "number", "--json"]
    code = run([*command, str(file), *arguments])
    direct = capsys.readouterr()
    importing = ["record", "--import", str(file), "-o", str(pool), "--answer", "number"]
    assert run([*importing, "-m", "answers"]) == 0
    capsys.readouterr()
    assert run([*command, str(pool), *arguments]) == code
    imported = capsys.readouterr()
    assert direct.out == imported.out
    assert direct.out if command == ["lab"] else "confidence" in direct.err + direct.out


def test_a_missing_pool_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["lab"], ["lab", "diagnose"], ["view"]):
        assert run([*command, str(tmp_path / "nowhere")]) == 2
        assert "nothing of that name" in " ".join(capsys.readouterr().err.split())


def test_parquet_without_pyarrow_says_what_to_install(
    pool: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack(Pool.open(pool), tmp_path / "pool.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(["lab", str(tmp_path / "pool.parquet")]) == 2
    assert 'pip install "conviction[lab]"' in " ".join(capsys.readouterr().err.split())
    export = ["record", "-o", str(pool), "--export", str(tmp_path / "other.parquet")]
    assert run(export) == 2
    assert 'pip install "conviction[lab]"' in " ".join(capsys.readouterr().err.split())


def test_a_narrow_terminal_loses_columns_and_says_so(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conviction.cli.lab.table_console", lambda: Console(width=70))
    assert run(["lab", str(pool), "--repeats", "1", "--policy", "majority"]) == 0
    out, err = capsys.readouterr()
    assert "tokens" in out
    assert "cancelled" not in out
    assert "Too narrow for" in err
    assert "cancelled" in err


def test_the_diagnosis_fits_a_narrow_terminal_and_is_told_with_its_remarks(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conviction.cli.lab.table_console", lambda: Console(width=76))
    assert run(["lab", "diagnose", str(pool), "--repeats", "1"]) == 0
    out, err = capsys.readouterr()
    rows = [line for line in out.splitlines() if line.startswith(("lowest-group", "tail"))]
    assert len(rows) == 2 + 2 * 3
    assert all(line.count("[") == line.count("]") for line in out.splitlines())
    assert "Too narrow for worse %" in err
    assert "note: Each draw takes all 12 recorded traces" in err
    assert "note: 6 questions resolve only large differences" in err
    told = " ".join(out.split())
    assert "On all questions, to describe" in told
    assert "On 3 questions; the windows rank best on the 3 others." in told


def test_the_diagnosis_ends_with_a_plain_sentence(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", "diagnose", str(pool), "--repeats", "2"]) == 0
    out = capsys.readouterr().out
    assert "AUROC among votes" in out
    assert "share of the vote" in out
    assert out.splitlines()[-1].startswith(("Use majority", "Confidence helps here"))


def test_the_diagnosis_is_also_json_and_a_page(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "diagnosis.html"
    command = ["lab", "diagnose", str(pool), "--repeats", "2", "--json", "--html", str(path)]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["metric"] for one in found["rankings"]} == {
        "mean",
        "bottom-10",
        "lowest-group",
        "tail",
        "head",
    }
    assert sum(found["choice"]["questions"]) == found["questions"] == 6
    page = Page(path)
    page.check_it_loads_nothing()
    assert found["advice"] in page.words
    assert page.tags.count("svg") == 2


def test_progress_shows_on_a_terminal_once_it_takes_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(force_terminal=True, width=100, stderr=True)
    with cli_progress.question_bar(console, "replaying") as show:
        show(1, 2)
    assert "replaying" not in capsys.readouterr().err
    monkeypatch.setattr(cli_progress, "_PATIENCE_SECONDS", 0.0)
    shown = ""
    with cli_progress.question_bar(console, "replaying") as show:
        show(1, 2)
        deadline = time.monotonic() + 10
        while "1/2" not in shown and time.monotonic() < deadline:
            time.sleep(0.01)
            shown += capsys.readouterr().err
    assert "replaying" in shown
