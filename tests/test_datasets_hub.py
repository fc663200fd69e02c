"""Data sets of the hub: the real library `datasets` against an imitated hub on loopback.

The library reads the hub's address once, as it is imported, so it runs in processes of their own.
"""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from completion_events import STOP, event, json_answer, position, stream, usage
from imitated_hub import Repository, imitated_hub
from kept_runs import described
from scripted_server import Received, Step, serving

from conviction.cli.main import run
from conviction.errors import InvalidSettingError
from conviction.evaluation.hub import HubAddress
from conviction.recordings import Pool

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
TOKEN = "hf_sesame"
ROWS = [{"question": f"What is {i} * 10?", "answer": f"We add.\n#### {i * 10}"} for i in range(5)]
CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: test, path: socratic/test-*}
---
"""


def parquet(rows: Sequence[dict[str, Any]], metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def only(**files: bytes) -> Repository:
    return Repository({NEW: {name.replace("_", "."): data for name, data in files.items()}})


PICTURES = {
    "question": {"dtype": "string", "_type": "Value"},
    "answer": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
}
REPOSITORIES = {
    "openai/gsm8k": Repository(
        {
            NEW: {
                "README.md": CARD,
                "main/train-0.parquet": parquet([{"question": "1 + 1?", "answer": "2"}]),
                "main/test-0.parquet": parquet(ROWS),
                "socratic/test-0.parquet": parquet(ROWS),
            }
        }
    ),
    "o/parts": Repository(
        {NEW: {"test-0.parquet": parquet(ROWS[:3]), "test-1.parquet": parquet(ROWS[3:])}}
    ),
    "o/lines": Repository(
        {OLD: {"test.jsonl": lines(ROWS[:2])}, NEW: {"test.jsonl": lines(ROWS)}}, {"v1": OLD}
    ),
    "o/breaks": Repository(
        {OLD: {"test.jsonl": lines(ROWS[:2])}, NEW: {"test.jsonl": lines(ROWS)}},
        unlisted=frozenset({NEW}),
    ),
    "o/pictures": only(
        test_parquet=parquet(
            [{**row, "image": {"bytes": b"none", "path": None}} for row in ROWS],
            {"huggingface": json.dumps({"info": {"features": PICTURES}})},
        )
    ),
    "o/gated": Repository({NEW: {"test.jsonl": lines(ROWS)}}, opened_by="hf_invited"),
    "o/invited": Repository({NEW: {"test.jsonl": lines(ROWS)}}, opened_by=TOKEN),
    "o/program": only(program_py=b"raise SystemExit('it ran')", README_md=b"# none"),
    "o/nothing": only(README_md=b"# none"),
    "o/fields": only(test_jsonl=lines([*ROWS, {"text": "?", "solution": "4"}])),
    "o/twice": only(test_jsonl=lines([*ROWS, ROWS[1]])),
    "o/damaged": only(test_parquet=b"PAR1" + b"\0" * 50),
    "o/gone": Repository({}, gone=True),
    "o/busy": Repository({NEW: {}}, status=503),
    "o/closed": Repository({NEW: {}}, status=403),
}


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    foreign = ("CONVICTION", "HF_", "HUGGING", "XDG_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {
        **ours,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "CONVICTION_CACHE": str(home),
        "CONVICTION_CONFIG": os.devnull,
        **more,
    }


IN_ONE_PROCESS = """
import contextlib, io, json, sys
from dataclasses import asdict
from conviction.cli.main import run
from conviction.evaluation.datasets import load
answers = []
for ask in json.load(sys.stdin):
    if isinstance(ask, dict):
        answers.append(asdict(load(**ask)))
        continue
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = run(ask)
    answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
json.dump(answers, sys.stdout)
"""


def asked(environment: dict[str, str], asks: Sequence[Any]) -> list[dict[str, Any]]:
    """What `load` (for a mapping) or a command (for a list) gives, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input=json.dumps(asks),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "neither bars nor notes of the library are shown"
    return json.loads(done.stdout)


def evaluating(*arguments: str) -> list[str]:
    # Nobody listens there, so whoever gets as far as that gets another error.
    return ["eval", *arguments, "-o", "never", "--base-url", "http://127.0.0.1:9/v1"]


def read(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["id"], one["text"], one["gold"]) for one in found["questions"]]


EXPECTED = [(str(i + 1), f"What is {i} * 10?", str(i * 10)) for i in range(5)]
MAIN = {"data": "hf://openai/gsm8k", "subset": "main", "split": "test"}
NAMED = ["--subset", "main", "--split", "test"]
ORIGIN = f"hf://openai/gsm8k@{NEW} --subset main --split test"

READ: dict[str, dict[str, Any]] = {
    "kept": MAIN,
    "streamed": {**MAIN, "limit": 9},
    "parts": {"data": "hf://o/parts", "limit": 2},
    "pictures": {"data": "hf://datasets/o/pictures"},
    "invited": {"data": "hf://o/invited"},
    "without duplicates": {"data": "hf://o/twice", "drop_duplicates": True},
    "without gold": {"data": "hf://o/lines", "gold": False, "limit": 1},
    "tag": {"data": "hf://o/lines@v1"},
    "commit": {"data": f"hf://o/lines@{OLD}"},
    "branch": {"data": "hf://o/lines@main"},
    "newest": {"data": "hf://o/lines"},
    "before it breaks": {"data": f"hf://o/breaks@{OLD}"},
}
"""What `load` is asked for."""

FAILURES: dict[str, tuple[list[str], int, str, str]] = {
    "no address": (["hf://gsm8k"], 2, "no address of a data set", "hf://OWNER/NAME@REVISION"),
    "none of that name": (["hf://o/none"], 2, "has no such data set, or it is private", "HF_TOKEN"),
    "no name at all": (["hf://o/a..b"], 2, "no data set can have this name", "hf://OWNER/NAME"),
    "no revision": (["hf://o/lines@v9"], 2, "no such revision", "/datasets/o/lines/commits"),
    "gated": (["hf://o/gated"], 2, "it is gated", "/datasets/o/gated, and log in with `hf auth"),
    "closed": (["hf://o/closed"], 2, "does not let us (status 403)", "hf auth login"),
    "program": (["hf://o/program"], 2, "program.py, and programs", "refs%2Fconvert%2Fparquet"),
    "nothing": (["hf://o/nothing"], 2, "no file that can be read", "/datasets/o/nothing/tree"),
    "subsets": (["hf://openai/gsm8k"], 2, "several subsets: main, socratic", "--subset"),
    "no subset": (
        ["hf://openai/gsm8k", "--subset", "mane"],
        2,
        "no subset 'mane'; it has main, socratic",
        "--subset",
    ),
    "splits": (
        ["hf://openai/gsm8k", "--subset", "main"],
        2,
        "several splits: train, test",
        "--split",
    ),
    "no split": (
        ["hf://openai/gsm8k", "--subset", "main", "--split", "dev"],
        2,
        "no split 'dev'; it has train, test",
        "--split",
    ),
    "no question": (
        ["hf://o/lines", "--question-field", "Q"],
        2,
        "'Q' has no value there. Its fields: question, answer",
        "--question-field",
    ),
    "no answer": (["hf://o/lines", "--answer-field", "A"], 2, "row 1 of hf://o/lines", "--no-gold"),
    "not in each row": (["hf://o/fields"], 2, "row 6 of hf://o/fields", "--question-field"),
    "twice": (["hf://o/twice"], 2, "row 6 of hf://o/twice (default, test): it asks", "--drop-dup"),
    "damaged": (["hf://o/damaged"], 1, "it cannot be read (", "download a file of it"),
    "damaged, streamed": (["hf://o/damaged", "--limit", "1"], 1, "it cannot be read (", "download"),
    # The library would quietly take the copy of the older version that it kept before.
    "breaks": (["hf://o/breaks"], 1, "the hub broke off", "Try again"),
    "gone": (["hf://o/gone"], 1, "the hub cannot be reached (", "HF_HUB_OFFLINE=1"),
    "busy": (["hf://o/busy"], 1, "answered with status 503", "download a file of it"),
}
"""What the command is given, its exit code, and what it says was found and can be done."""


@dataclass
class Online:
    """What came of everything above, asked in one process.

    Attributes:
        answers: By name.
        home: Where the library keeps its copies.
        fetched: The files that were read of the hub.
    """

    answers: dict[str, dict[str, Any]]
    home: Path
    fetched: set[str]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Online:
    home = tmp_path_factory.mktemp("online")
    commands = [evaluating(*arguments) for arguments, *_ in FAILURES.values()]
    with imitated_hub(REPOSITORIES) as hub:
        answers = asked(environment(hub.url, home), [*READ.values(), *commands])
        names = [*READ, *FAILURES]
        return Online(dict(zip(names, answers, strict=True)), home, hub.fetched())


def test_a_split_is_read_as_a_file_is(online: Online) -> None:
    kept = online.answers["kept"]
    assert read(kept) == EXPECTED
    assert kept["origin"] == ORIGIN
    assert kept["questions"][4]["place"] == "row 5 of hf://openai/gsm8k (main, test)"
    assert read(online.answers["without duplicates"]) == EXPECTED
    assert read(online.answers["without gold"]) == [("1", "What is 0 * 10?", None)]


def test_who_is_let_in_reads_a_gated_one(online: Online) -> None:
    assert read(online.answers["invited"]) == EXPECTED


def test_pictures_beside_the_questions_are_not_looked_at(online: Online) -> None:
    assert read(online.answers["pictures"]) == EXPECTED


def test_a_limit_reads_the_same_fetches_no_more_than_it_needs_and_keeps_no_copy(
    online: Online,
) -> None:
    assert online.answers["streamed"] == online.answers["kept"]
    assert read(online.answers["parts"]) == EXPECTED[:2]
    assert "test-0.parquet" in online.fetched
    assert "test-1.parquet" not in online.fetched
    assert (online.home / "datasets" / "openai___gsm8k").exists()
    assert not (online.home / "datasets" / "o___parts").exists()


def test_a_revision_is_read_as_it_was_and_named_by_its_commit(online: Online) -> None:
    assert read(online.answers["tag"]) == EXPECTED[:2]
    assert online.answers["tag"]["origin"] == f"hf://o/lines@{OLD} --subset default --split test"
    assert online.answers["commit"] == online.answers["tag"]
    assert read(online.answers["newest"]) == EXPECTED
    assert online.answers["branch"] == online.answers["newest"]


@pytest.mark.parametrize("case", FAILURES)
def test_what_keeps_a_data_set_from_being_read_is_told(online: Online, case: str) -> None:
    arguments, code, found, remedy = FAILURES[case]
    answer = online.answers[case]
    assert answer["code"] == code
    assert answer["out"] == ""
    told, advice = answer["err"].strip().splitlines()
    assert told.startswith("error: read ")
    assert arguments[0] in told
    assert found in told
    assert remedy in advice
    assert TOKEN not in answer["err"]


def test_what_was_kept_is_read_without_the_hub(online: Online) -> None:
    offline = environment("http://127.0.0.1:9", online.home, HF_HUB_OFFLINE="1")
    whole, some, named, other, never = asked(
        offline,
        [
            MAIN,
            {**MAIN, "limit": 2},
            {**MAIN, "data": f"hf://openai/gsm8k@{NEW}"},
            evaluating("hf://openai/gsm8k@v2", *NAMED),
            evaluating("hf://openai/gsm8k", "--subset", "socratic"),
        ],
    )
    assert online.answers["kept"] == whole == named
    assert read(some) == EXPECTED[:2]
    assert some["origin"] == ORIGIN
    assert other["code"] == never["code"] == 2
    assert f"the copy on disk is of commit {NEW}" in other["err"]
    assert "no copy of its subset 'socratic' is on disk" in never["err"]
    assert "without --limit" in never["err"]


def test_a_hub_that_nobody_answers_for_is_told(tmp_path: Path) -> None:
    nobody = environment("http://127.0.0.1:9", tmp_path)
    (answer,) = asked(nobody, [evaluating("hf://openai/gsm8k", *NAMED)])
    assert answer["code"] == 1
    assert "read hf://openai/gsm8k: the hub cannot be reached (" in answer["err"]
    assert "Connection refused" in answer["err"]
    assert "download a file of it" in answer["err"]


def multiplied(received: Received) -> list[Step]:
    """A server that knows what N * 10 is."""
    if received.path.endswith("/models"):
        return [json_answer({"data": [{"id": "told", "max_model_len": 4096}]})]
    if received.path.endswith("/metrics"):
        return [json_answer({}, "404 Not Found")]
    found = re.search(r"What is (\d+) \* 10", json.dumps(received.body))
    said = f"Answer: {int(found[1]) * 10 if found else 0}"
    most = received.body.get("top_logprobs") or int(received.body.get("logprobs") or 0)
    places = [position(*[-1.0 - k / 10 for k in range(most)])] * 4
    if received.body["stream"]:
        return [stream(event(said, *places), STOP, usage(9, len(places)))]
    choice: dict[str, Any] = {"message": {"content": said}, "text": said}
    return [json_answer({"choices": [{**choice, "logprobs": {"content": places}}]})]


@pytest.mark.anyio
async def test_a_run_and_its_pools_say_which_commit_they_asked(
    online: Online, tmp_path: Path
) -> None:
    run_folder, live, pool = (tmp_path / name for name in ("run", "live", "pool"))
    offline = environment("http://127.0.0.1:9", online.home, HF_HUB_OFFLINE="1")
    async with serving(multiplied) as server:
        base = ["hf://openai/gsm8k", *NAMED, "--base-url", server.url, "--limit", "3", "-o"]
        record = ["--record", str(live), "--policy", "majority", "--budget", "2", "--json"]
        asks = [
            ["eval", *base, str(run_folder), *record],
            ["record", *base, str(pool), "-n", "1", "--quiet"],
        ]
        evaluated, recorded = await anyio.to_thread.run_sync(asked, offline, asks)
    assert evaluated["code"] == recorded["code"] == 0, evaluated["err"] + recorded["err"]
    assert json.loads(evaluated["out"])["accuracy"]["value"] == 1.0
    assert f"3 questions of {ORIGIN}" in " ".join(evaluated["err"].split())
    assert (recorded["out"], recorded["err"]) == ("", "")
    assert described(run_folder)["data"]["path"] == ORIGIN
    for folder in (live, pool):
        assert Pool.open(folder).meta.source.endswith(f"; questions of {ORIGIN}")


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        (None, "the package datasets is not installed"),
        (SimpleNamespace(), "the package datasets is not installed"),
        (SimpleNamespace(__version__="3.6.0"), "version 3.6.0 of the package datasets is too old"),
    ],
    ids=["nothing", "a folder of that name", "an old one"],
)
@pytest.mark.parametrize("command", ["eval", "record"])
def test_without_the_library_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    command: str,
    installed: object,
    found: str,
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    monkeypatch.setitem(sys.modules, "datasets", installed)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace())
    assert run([command, "hf://openai/gsm8k", "-o", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"read a data set of the Hugging Face hub: {found}." in captured.err
    assert 'pip install "conviction[datasets]"' in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("hf://openai/gsm8k", "openai/gsm8k", None),
        ("hf://datasets/openai/gsm8k", "openai/gsm8k", None),
        ("hf://openai/gsm8k@refs/pr/5", "openai/gsm8k", "refs/pr/5"),
        ("hf://H4.x/MATH-500_v@v1.0", "H4.x/MATH-500_v", "v1.0"),
    ],
)
def test_addresses_name_a_data_set_and_perhaps_a_revision(
    text: str, name: str, revision: str | None
) -> None:
    assert HubAddress.parse(text) == HubAddress(name, revision)


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://json",
        "hf://o/",
        "hf://o/n@",
        "hf://o/n/test.parquet",
        "hf://o/n m",
        "hf://../n/m",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettingError, match="hf://OWNER/NAME@REVISION"):
        HubAddress.parse(text)
