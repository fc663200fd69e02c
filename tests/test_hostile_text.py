"""What a model or a server wrote is shown, and commands nothing, by whichever command."""

import json
import os
import re
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import anyio.from_thread
import numpy as np
import pytest
from completion_events import json_answer
from scripted_server import Received, Step, answer, serving

from conviction.backends.builtin import Embedded
from conviction.cli.main import run
from conviction.display import escaped, listed, one_line, quoted, safe
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import AllTracesFailedError, EngineError
from conviction.models import ModelFile
from conviction.prompts import PromptStyle

HOSTILE = (
    "\x1b[31m41\x1b]0;title\x07\x00\x08\x7f\x9b2J \u202egnp.exe\u2066\u2028 \r\nerror: forged "
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HISTORY", "CACHE"):
        monkeypatch.setenv(f"CONVICTION_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("CONVICTION_CONFIG", os.devnull)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hostile_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model answers with commands for the terminal; it also fails with such."""
    faults = [
        EngineError(tried="generate", found=HOSTILE, remedy=HOSTILE),
        ValueError(HOSTILE + "W" * 5000),
    ]
    texts = [f"{HOSTILE} thinks. Answer: {HOSTILE}{number}" for number in (1, 1, 2, 2)]
    scripts = [Script.even(text, tokens=9) for text in texts]
    broken = Script("ab", np.ones(2, np.float32), fault_after=1)
    scripts += [replace(broken, fault=fault) for fault in faults]
    model = ModelFile(Path("model.gguf"), "scripted", PromptStyle.STEP_BY_STEP)
    monkeypatch.setattr(Embedded, "prepare", lambda self, *_: replace(self, file=model))
    monkeypatch.setattr(Embedded, "build", lambda _: ScriptedEngine(scripts))


def check(capsys: Captured) -> tuple[str, str]:
    """What was printed, in which nothing commands anything."""
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not CONTROL.search(text), repr(CONTROL.search(text))
        assert not re.search("W{301}", text)
    return out, err


ASKED = ["think", "How many?", "--policy", "majority", "--budget", "6", "--answer", "text"]


@pytest.mark.usefixtures("hostile_model")
@pytest.mark.parametrize("more", [[], ["--json"], ["--show-traces"], ["-q"]])
def test_think(more: list[str], capsys: Captured) -> None:
    assert run([*ASKED, *more]) in (0, 1)
    out, err = check(capsys)
    if "--json" in more:
        assert "\x1b" in json.loads(out)["traces"][0]["text"]
    assert not re.search(r"^error: forged", err, re.MULTILINE) or "--show-traces" in more


@pytest.mark.usefixtures("hostile_model")
@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["list", "--json"],
        ["search", "many"],
        ["show", "1"],
        ["show", "1", "--traces"],
        ["show", "1", "--json"],
        ["delete", "1"],
        ["check"],
    ],
)
def test_history(command: list[str], capsys: Captured) -> None:
    run([*ASKED, "-q"])
    run(["think", f"Who is {HOSTILE.replace(chr(0), '')}?", "-q", "--answer", "text"])
    capsys.readouterr()
    assert run(["history", *command]) == 0
    check(capsys)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [
        {"id": f"q{n}{HOSTILE}", "question": f"What {HOSTILE} {n}?", "answer": f"{n}"}
        for n in range(3)
    ]
    path = tmp_path / "questions.jsonl"
    text = "".join(json.dumps(row).replace("\\u0000", "") + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("hostile_model")
def test_eval_and_record_and_lab(data: str, capsys: Captured) -> None:
    options = ["--answer", "text"]
    evaluated = ["eval", data, *options, "--policy", "majority", "--budget", "6"]
    for path in ("a.run", "b.run"):
        run([*evaluated, "-o", path, "--record", f"{path}.pool"])
        check(capsys)
    run([*evaluated, "-o", "a.run", "--json"])
    check(capsys)
    for command in (
        ["eval", "results", "a.run"],
        ["eval", "compare", "a.run", "b.run"],
        ["record", data, *options, "-n", "4", "-o", "c.pool"],
        ["lab", "diagnose", "c.pool"],
        ["lab", "compare", "c.pool"],
        ["view", "c.pool", "--html", "page.html", "--answer", "text"],
    ):
        run(command)
        check(capsys)


def hostile_server(received: Received) -> list[Step]:
    if received.path.endswith("/models"):
        return [json_answer({"data": [{"id": HOSTILE + "W" * 5000, "owned_by": HOSTILE}]})]
    said = json.dumps({"error": {"message": HOSTILE + "W" * 5000}}).encode()
    return [answer("400 Bad Request", said)]


@pytest.fixture
def server() -> Generator[str]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(hostile_server)) as script,
    ):
        yield script.url


@pytest.mark.parametrize(
    "command",
    [
        lambda url, _: ["think", "How many?", "--base-url", url],
        lambda url, _: ["doctor", "--base-url", url],
        lambda url, _: ["doctor", "--base-url", url, "--json"],
        lambda url, data: ["eval", data, "--base-url", url, "-o", "a.run"],
        lambda url, data: ["record", data, "--base-url", url, "-o", "a.pool"],
        lambda url, _: ["serve", "--base-url", url, "--port", "0"],
    ],
)
def test_words_of_a_server(
    command: Callable[[str, str], list[str]], server: str, data: str, capsys: Captured
) -> None:
    assert run(command(server, data)) == 1
    out, err = check(capsys)
    assert "400" in out + err


# --- The functions that do it ---------------------------------------------------------------------


def test_text_is_shown_with_its_lines_and_without_its_commands() -> None:
    assert safe("a\tb\nc\x1b[0m\r\x00\x9b\u202e\u2028\ud83d") == "a\tb\nc�[0m������"
    assert one_line(" a\n\n b\x07 ") == "a b�"


def test_json_says_the_same_without_commanding_anything() -> None:
    said = json.dumps(HOSTILE + "\ud83d", ensure_ascii=False)
    assert json.loads(escaped(said)) == HOSTILE + "\ud83d"
    assert not CONTROL.search(escaped(said))


def test_a_servers_words_are_shown_in_their_beginning_without_the_key() -> None:
    assert len(quoted("x" * 10_000)) == 300
    assert quoted(b"a\xff\n b") == "a� b"
    assert "sk-secret" not in quoted("x" * 295 + "sk-secret", "sk-secret")


def test_many_different_causes_do_not_make_an_endless_message() -> None:
    assert listed(["a", "a", "b"]) == "a; b"
    error = AllTracesFailedError(tried="t", causes=[f"c{n}" for n in range(50)], remedy="R.")
    assert error.found == "c0; c1; c2; and 47 more"
    assert len(error.causes) == 50


def test_every_error_of_ours_is_one_line() -> None:
    error = EngineError(tried=f"ask {HOSTILE}", found=HOSTILE, remedy="Mend\nit.")
    assert not CONTROL.search(str(error))
    assert "\n" not in str(error)
    assert error.remedy == "Mend it."
