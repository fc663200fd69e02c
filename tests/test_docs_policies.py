"""The pages on policies: what they tell to type works, and their figures are those measured."""

import csv
import re
from pathlib import Path

import pytest

from conviction.lab.candidates import parse
from conviction.policies.base import DEFAULT_BUDGET

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "which-policy.md").read_text(encoding="utf-8")
TABLES = (DOCS / "results" / "recorded-answers.md").read_text(encoding="utf-8")


def means() -> list[dict[str, str]]:
    with (DOCS / "results" / "recorded-answers.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_page_names_policies_as_the_command_takes_them() -> None:
    named = re.findall(r"`--policy ([^` ]+)", PAGE)
    assert len(named) >= 5
    for spec in named:
        assert len(parse([spec.strip('"')], budgets=[64])) == 1


def test_the_figures_behind_the_picture_are_those_of_the_tables() -> None:
    tables = re.split(r"^## Budget ", TABLES, flags=re.MULTILINE)[1:]
    told = {
        (cells[0], int(table.split("\n", 1)[0])): cells[1:]
        for table in tables
        for line in table.splitlines()
        if len(cells := line.strip("| ").split(" | ")) == 6
    }
    assert len(means()) == 36
    for row in means():
        points, *others = told[row["policy"], int(row["budget"])]
        shown = 0.0 if points == "none" else float(points.split()[0])
        assert shown == pytest.approx(float(row["difference"]), abs=0.0051)
        exact = [float(row[name]) for name in ("tokens", "path_4", "path_16", "path_64")]
        assert [float(one) for one in others] == pytest.approx(exact, abs=0.0051)


def test_what_it_says_of_the_default_budget_is_in_the_tables() -> None:
    told = {row["policy"]: row for row in means() if int(row["budget"]) == DEFAULT_BUDGET}
    settle, majority = (told[name] for name in ("settle", "majority"))
    tokens, time = (float(settle[of]) / float(majority[of]) for of in ("tokens", "path_64"))
    assert f"{DEFAULT_BUDGET} traces are the most" in PAGE
    assert f"{tokens:.2f} of the tokens and {time:.2f} of the time" in PAGE
    assert abs(float(settle["difference"]) - float(majority["difference"])) < 0.05


@pytest.mark.parametrize("label", ["settle", "settle-lean", "Beta .90, 32 traces", "majority"])
def test_the_picture_shows_the_policies(label: str) -> None:
    picture = (DOCS / "which-policy.svg").read_text(encoding="utf-8")
    assert f">{label}</text>" in picture
