"""An answer kind of another package: one class, one entry point, and every list has it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conviction
from conviction.answers import KINDS, AnswerKind, kind, kinds, kinds_help
from conviction.cli.progress import summary
from conviction.core import Answer
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.prompts import PromptStyle, compose

MODULE = """
from conviction.answers import AnswerKind, PromptEnding


class ColourAnswers(AnswerKind):
    name = "colour"
    help = "a colour by its name"

    ending = PromptEnding("End with the colour in a box.")
    korean_ending = PromptEnding("색을 쓰세요.")

    def canonical(self, answer: str) -> str:
        return answer.strip().casefold().replace("grey", "gray") or "none"

    def shown(self, answer: str) -> str:
        return answer.strip().capitalize()
"""
USE = """
import conviction
from conviction.answers import kinds, kinds_help
from conviction.cli.main import run
from conviction.engines.scripted import Script, ScriptedEngine

asked = []

def play(request):
    asked.append(request.messages[-1].content)
    return Script.even(r"It is \\boxed{ grey}.")

print(",".join(kinds()))
print(kinds_help())
verdict = conviction.think(
    "Of what colour is it?", engine=ScriptedEngine(play), policy="majority", budget=2,
    answers="colour",
)
print(verdict.answer, verdict.tally.leader.count, asked[0].splitlines()[-1])
run(["think", "--help"])
"""


def package(folder: Path, module: str) -> dict[str, str]:
    """Environment variables with which a package that brings the kind counts as installed."""
    said = folder / "colours-1.0.dist-info"
    said.mkdir()
    (folder / "colours.py").write_text(module, encoding="utf-8")
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    points = "[conviction.answers]\ncolour = colours:ColourAnswers\n"
    (said / "entry_points.txt").write_text(points)
    return {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "PYTHONUTF8": "1"}


def said(folder: Path, module: str, program: str) -> list[str]:
    made = subprocess.run(
        [sys.executable, "-c", program],
        env=package(folder, module),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=100,
    )
    return made.stdout.splitlines()


def test_a_kind_of_another_package_is_asked_for_compared_shown_and_listed(tmp_path: Path) -> None:
    names, words, verdict, *usage = said(tmp_path, MODULE, USE)
    assert names == "choice,colour,json,math,number,text"
    assert "colour: a colour by its name; json:" in words
    assert verdict == "Grey 2 End with the colour in a box."
    assert "colour: a colour by its name" in "\n".join(usage)


def test_a_kind_that_cannot_be_imported_does_not_take_the_lists_down(tmp_path: Path) -> None:
    broken = "import a_library_that_is_not_there\n"
    names, words = said(
        tmp_path, broken, "from conviction.answers import *; print(','.join(kinds())); "
        "print(kinds_help())"
    )  # fmt: skip
    assert "colour" in names.split(",")
    assert "colour: cannot be imported; json:" in words


class Shout(AnswerKind):
    """What a kind needs at least."""

    name = "shout"

    def canonical(self, answer: str) -> str:
        return answer.upper()


def test_a_name_and_a_canonical_form_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS.builtin, "shout", f"{__name__}:Shout")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _module())
    assert "shout" in kinds()
    assert "shout" in kinds_help()
    made = kind("shout")
    assert made.extract("So.\nAnswer: hey") == "hey"
    asked = compose("What?", kind="shout", style=PromptStyle.WORKED_EXAMPLES)
    assert asked == compose("What?", kind="math", style=PromptStyle.WORKED_EXAMPLES)
    verdict = conviction.think(
        "What?", engine=ScriptedEngine([Script.even("Answer: hey")]), policy="single", answers=made
    )
    assert verdict.answer == "hey"
    assert verdict.traces[0].answer == Answer("hey", "HEY")


class Letters(Shout):
    """Of "B) [Mars]" only the letter is shown."""

    def canonical(self, answer: str) -> str:
        return answer.strip()[:1].upper() or "none"

    def shown(self, answer: str) -> str:
        return self.canonical(answer)


def test_what_is_shown_and_what_was_written_both_stand_in_the_verdict() -> None:
    scripts = [Script.even(f"Answer: {text}") for text in ("B) [Mars]", "b", "C) Io")]
    verdict = conviction.think(
        "What?", engine=ScriptedEngine(scripts), policy="majority", budget=3, answers=Letters()
    )
    assert (verdict.answer, verdict.written) == ("B", "B) [Mars]")
    assert [trace.answer and trace.answer.written for trace in verdict.traces] == [
        "B) [Mars]",
        "b",
        "C) Io",
    ]
    told = verdict.to_dict()
    assert (told["answer"], told["answer_written"]) == ("B", "B) [Mars]")
    assert summary(verdict).startswith("B) [Mars]: 2 of 3 votes (67% of the weight); ")
    # A withheld answer is not told in other words.
    assert verdict.abstaining(0.9).to_dict()["answer_written"] is None


def _module() -> object:
    return type("module", (), {"Shout": Shout})


def test_no_module_outside_of_answers_lists_the_kinds() -> None:
    root = Path(conviction.__file__).parent
    names = set(kinds())
    found = [
        path
        for path in root.rglob("*.py")
        if root / "answers" not in path.parents
        and _lists(ast.parse(path.read_text("utf-8")), names)
    ]
    assert found == []


def _lists(module: ast.Module, names: set[str]) -> bool:
    """Whether a text, or the texts within one list, tuple or mapping, name most of `names`."""
    for node in ast.walk(module):
        words: set[str] = set()
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            words = {part.value for part in parts if isinstance(part, ast.Constant)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names in a row, as in "math, number or text".
            for row in re.findall(r'"?\w+"?(?:(?:, | or |, or )"?\w+"?)+', node.value):
                words |= set(re.findall(r"\w+", row))
        if len(words & names) >= 4:
            return True
    return False


def test_the_search_for_lists_finds_them() -> None:
    names = set(kinds())
    assert _lists(ast.parse('x = {"math": 1, "text": 2, "json": 3, "choice": 4}'), names)
    assert _lists(ast.parse("'Kind: math, number, choice, text or json.'"), names)
    assert not _lists(ast.parse("'A number of texts. The math is a choice, or JSON.'"), names)
