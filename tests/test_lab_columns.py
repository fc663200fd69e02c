"""A column of the lab is one line of one table, which all outputs read."""

import json
from collections.abc import Iterator
from pathlib import Path

import lab_traces
import pyarrow.parquet as pq
import pytest

from conviction.cli.main import run
from conviction.lab import Plan, study
from conviction.lab.columns import COLUMNS, Column, Measure, decimal, mean, proportion, share

NEW = [
    Column(
        "answers",
        Measure("answers", "i4", lambda outcome: len(outcome.tally.voters)),
        mean,
        "votes",
        "traces that voted, per question",
        decimal,
        page_heading="votes per question",
    ),
    Column(
        "half",
        Measure("half", "?", lambda outcome: outcome.tally.share >= 0.5),
        proportion,
        "half %",
        "verdicts with at least half of the vote",
        share,
    ),
]


@pytest.fixture
def extended() -> Iterator[None]:
    COLUMNS.extend(NEW)
    yield
    del COLUMNS[-len(NEW) :]


@pytest.mark.usefixtures("extended")
def test_a_line_in_the_table_adds_a_column_to_every_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "240")
    pool = lab_traces.on_disk(tmp_path / "pool")
    table, page = tmp_path / "table.parquet", tmp_path / "page.html"
    command = ["lab", str(pool), "--policy", "majority", "--policy", "single", "--processes", "1"]
    assert run([*command, "--out", str(table), "--html", str(page)]) == 0
    heading, majority, single = capsys.readouterr().out.splitlines()
    assert heading.split()[-3:] == ["votes", "half", "%"]
    assert majority.split()[-2] == "12.0"
    assert single.split()[-2:] == ["1.0", "100.0"]
    assert "<th>votes per question</th><th>half %</th>" in page.read_text()
    assert pq.read_table(table).to_pylist()[0]["answers"] == 12
    assert run([*command, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["policies"]
    assert (first["answers"], second["answers"]) == (12, 1)
    assert first["half_low"] <= first["half"] <= first["half_high"]
    assert second["half"] == 1


@pytest.mark.usefixtures("extended")
def test_a_new_column_is_an_attribute_of_a_row() -> None:
    rows = study(lab_traces.in_memory(), Plan(specs=["majority", "single"], repeats=2)).rows
    assert [row.answers for row in rows] == [12, 1]
    assert [row.half.value for row in rows][1] == 1
    with pytest.raises(AttributeError, match="no column 'halves'"):
        _ = rows[0].halves


def test_the_help_explains_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for column in COLUMNS:
        assert column.help in words


def test_names_of_columns_and_of_measures_are_unique() -> None:
    # "x_low" and "x_high" are the ends of the interval of "x".
    names = ["policy", "spec", "budget", "concurrency"]
    for column in COLUMNS:
        names += [column.name, f"{column.name}_low", f"{column.name}_high"]
    assert len(set(names)) == len(names)
    kept = {column.measure for column in COLUMNS}
    assert len({measure.name for measure in kept}) == len(kept)
