"""Every row of the tables in docs/answers.md is true, and its example runs."""

import re
from pathlib import Path

import pytest

from conviction.answers import compared, kind, kinds

pytest.importorskip("mpmath", reason="mpmath (extra `math`) is not installed")

DOC = (Path(__file__).parents[1] / "docs" / "answers.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without the marks of code."""
    section = DOC.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [line.strip("|").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return [[cell.strip().strip("`") for cell in row] for row in found[2:]]


def test_every_kind_has_rows() -> None:
    assert {row[0] for row in rows("What counts as equal")} == set(kinds())


@pytest.mark.parametrize(("name", "text", "expected"), rows("What is found"))
def test_what_the_page_says_is_found_is_found(name: str, text: str, expected: str) -> None:
    chosen = kind(name)
    found = chosen.extract(text)
    if expected == "nothing":
        assert found is None
    else:
        assert found is not None
        assert compared(chosen, found, expected)


@pytest.mark.parametrize(("name", "one", "other", "votes", "why"), rows("What counts as equal"))
def test_what_the_page_says_is_equal_or_different_is(
    name: str, one: str, other: str, votes: str, why: str
) -> None:
    del why
    assert votes in {"equal", "different"}
    chosen = kind(name)
    assert bool(compared(chosen, one, other)) is (votes == "equal")
    assert bool(compared(chosen, other, one)) is (votes == "equal")


def test_the_example_runs() -> None:
    program = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)[0]
    exec(compile(program, "docs/answers.md", "exec"), {"__name__": "example"})  # noqa: S102
