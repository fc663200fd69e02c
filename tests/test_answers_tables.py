"""Tables of answers: which are equal, and what is found in the ends of traces.

`wrong_pairs.tsv` and `wrong_texts.tsv` list the rows that come out wrong today. A change that
breaks another row fails here; one that mends a row takes it off the list.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conviction.answers import AnswerKind, Grouping, kind, kinds

pytest.importorskip("mpmath", reason="mpmath (extra `math`) is not installed")

TABLES = Path(__file__).parent / "data" / "answers"
MOST_WRONG = {"pairs": 0, "texts": 0}
"""How many rows may be wrong. Lower it with every row that is mended; never raise it."""

Row = tuple[str, ...]


def rows(name: str) -> list[Row]:
    _, *lines = (TABLES / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


@pytest.fixture(scope="module")
def by_name() -> Iterator[Mapping[str, AnswerKind]]:
    found = {name: kind(name) for name in kinds()}
    yield found
    for one in found.values():
        one.close()


def equal(of_kind: AnswerKind, first: str, second: str) -> bool:
    grouping = Grouping(of_kind, budget_seconds=100.0)
    return grouping.classify(first).key == grouping.classify(second).key


def test_every_pair_is_equal_or_different_as_expected_but_for_those_listed(
    by_name: Mapping[str, AnswerKind],
) -> None:
    table = rows("pairs")
    wrong = [
        (name, first, second)
        for name, first, second, expected in table
        if equal(by_name[name], first, second) is not (expected == "equal")
    ]
    assert len(table) == 225
    assert wrong == rows("wrong_pairs")
    assert len(wrong) <= MOST_WRONG["pairs"]


def test_the_expected_answer_is_found_in_every_text_but_for_those_listed(
    by_name: Mapping[str, AnswerKind],
) -> None:
    def right(name: str, text: str, expected: str) -> bool:
        found = by_name[name].extract(json.loads(text))
        if found is None or expected == "-":
            return found is None and expected == "-"
        return equal(by_name[name], found, expected)

    table = rows("texts")
    wrong = [(name, text) for name, text, expected in table if not right(name, text, expected)]
    assert len(table) == 168
    assert wrong == rows("wrong_texts")
    assert len(wrong) <= MOST_WRONG["texts"]
