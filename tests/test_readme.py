"""The README does what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conviction.policies import policy_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def python(code: str, *, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_the_policy_of_ones_own_runs_as_printed() -> None:
    (example,) = [block for block in blocks("python") if "FirstPair" in block]
    result = python(example, seconds=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("5 a pair Usage(voted=")


def test_it_tells_of_every_policy() -> None:
    assert [name for name in policy_names() if f"`{name}`" not in README] == []


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_library_example_runs_as_printed() -> None:
    (example,) = [block for block in blocks("python") if "verdict.share:.0%" in block]
    result = python(example, seconds=590)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"100 \d+% \d+\n", result.stdout)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_first_command_answers_its_question() -> None:
    first = blocks("sh")[0].strip()
    install, _, think = first.partition(" && ")
    assert install == 'python -m pip install ".[local,math]"'
    program, *arguments = shlex.split(think)
    assert program == "conviction"
    result = subprocess.run(
        [sys.executable, "-m", "conviction", *arguments],
        capture_output=True,
        text=True,
        timeout=890,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "41\n"
    assert "traces started" in result.stderr
    assert "votes" in result.stderr


def test_the_second_command_installs_for_development_and_runs_every_test() -> None:
    install, _, test = blocks("sh")[1].strip().partition(" && ")
    assert install == 'python -m pip install -e ".[dev]"'
    assert test == "pytest -n 2 --dist worksteal"


def test_every_conviction_command_in_the_readme_is_understood() -> None:
    commands = re.findall(r"^conviction (models|doctor)(?: .*)?$", README, re.MULTILINE)
    assert set(commands) == {"models", "doctor"}


@pytest.mark.parametrize(
    "begins", ["conviction lab examples/", "conviction lab diagnose examples/"]
)
def test_the_first_commands_of_the_lab_run_as_printed(begins: str) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith(begins)]
    _, *arguments = shlex.split(line, comments=True)
    # Fewer draws than a reader would take, set outside of the line that is printed.
    draws = {"CONVICTION_LAB_REPEATS": "1", "CONVICTION_LAB_DIAGNOSE_REPEATS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "conviction", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
        env=os.environ | draws,
    )
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "majority@16" in said or "Use majority" in said


@pytest.mark.parametrize("language", ["sh", "console", "python"])
def test_the_korean_readme_says_the_same_commands(language: str) -> None:
    def said(text: str) -> set[str]:
        lines = "".join(blocks(language, text)).splitlines()
        return {line.partition("  # ")[0].rstrip() for line in lines if line}

    assert said(KOREAN)
    assert said(KOREAN) <= said(README)


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_what_the_readmes_link_to_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []
