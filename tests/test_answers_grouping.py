"""Answers fall into classes, cheaply and the same way each time."""

import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.answers import AnswerKind, Grouping, kind
from conviction.core import Answer


class Scripted(AnswerKind):
    """Lower case is canonical; letters with equal distance from "m" are equivalent."""

    name: ClassVar[str] = "scripted"

    def __init__(self) -> None:
        self.read: list[str] = []
        self.compared: list[tuple[str, str]] = []

    def extract(self, text: str) -> str | None:
        return text

    def canonical(self, answer: str) -> str:
        self.read.append(answer)
        return answer.lower()

    def decided(self, first: str, second: str) -> bool:
        return "z" in (first, second)

    def equivalent(self, first: str, second: str) -> bool:
        self.compared.append((first, second))
        return abs(ord(first) - ord("m")) == abs(ord(second) - ord("m"))


def test_the_first_answer_of_a_class_represents_it() -> None:
    grouping = Grouping(Scripted())
    found = [grouping.classify(answer) for answer in ("L", "n", "l", "k", "O")]
    assert [answer.key for answer in found] == ["l", "l", "l", "k", "k"]
    assert [answer.text for answer in found] == ["L", "n", "l", "k", "O"]


def test_nothing_is_read_or_compared_twice() -> None:
    answers = Scripted()
    grouping = Grouping(answers)
    for answer in ("a", "b", "a", "b", "c", "c") * 10:
        grouping.classify(answer)
    assert answers.read == ["a", "b", "c"]
    assert answers.compared == [("a", "b"), ("a", "c"), ("b", "c")]


def test_decided_pairs_are_not_compared() -> None:
    answers = Scripted()
    grouping = Grouping(answers)
    for answer in ("z", "a", "b"):
        grouping.classify(answer)
    assert answers.compared == [("a", "b")]


def test_once_the_time_is_used_up_open_pairs_count_as_different_and_the_reader_is_told() -> None:
    answers = Scripted()
    grouping = Grouping(answers, budget_seconds=0.0)
    assert grouping.classify("l").key != grouping.classify("n").key
    assert answers.compared == []
    assert grouping.classify("L").key == "l"
    assert len(grouping.limits) == 1
    assert "1 answer was not compared with every other" in grouping.limits[0]


def test_the_budget_is_cpu_time_so_that_a_busy_machine_changes_no_class() -> None:
    class Waiting(Scripted):
        def equivalent(self, first: str, second: str) -> bool:
            time.sleep(0.002)
            return super().equivalent(first, second)

    answers = Waiting()
    grouping = Grouping(answers, budget_seconds=0.02)
    for answer in "abcdefgh":
        grouping.classify(answer)
    # 28 waits take 56 ms, but hardly any work.
    assert len(answers.compared) == 28
    assert grouping.limits == ()


def test_pairs_that_could_not_be_compared_count_as_different_and_the_reader_is_told() -> None:
    class Failing(Scripted):
        def equivalent(self, first: str, second: str) -> bool | None:
            return None if "x" in (first, second) else super().equivalent(first, second)

    grouping = Grouping(Failing())
    assert [grouping.classify(answer).key for answer in "lnx"] == ["l", "l", "x"]
    assert grouping.limits == ("1 pair of answers could not be compared, and count as different.",)
    grouping.classify("k")
    assert grouping.limits == ("2 pairs of answers could not be compared, and count as different.",)


def test_without_trouble_there_is_nothing_to_tell() -> None:
    grouping = Grouping(Scripted())
    grouping.classify("l")
    grouping.classify("n")
    assert grouping.limits == ()


@given(st.lists(st.sampled_from(["0.5", "1/2", "50%", "50", "x", "7", r"\frac12", "east", "East"])))
def test_the_same_answers_in_the_same_order_fall_into_the_same_classes(order: list[str]) -> None:
    first, second = Grouping(kind("math")), Grouping(kind("math"))
    assert [first.classify(a) for a in order] == [second.classify(a) for a in order]


@given(st.lists(st.fractions(max_denominator=50), max_size=30))
def test_exact_numbers_fall_into_as_many_classes_as_there_are_numbers(
    values: list[object],
) -> None:
    for name in ("math", "number"):
        grouping = Grouping(kind(name))
        keys = [grouping.classify(str(value)).key for value in values]
        assert len(set(keys)) == len(set(values))


def test_everything_imports_without_mpmath(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("mpmath")]:
        monkeypatch.delitem(sys.modules, module)
    source = Path(__file__).parents[1] / "src" / "conviction" / "answers"
    importing = [
        path.name for path in source.rglob("*.py") if "import mpmath" in path.read_text("utf-8")
    ]
    assert importing == []
    for name in ("math", "number", "choice", "text", "json"):
        kind(name).canonical("1/2")
    assert "mpmath" not in sys.modules


def test_what_canonical_forms_decide_is_classified_without_waiting() -> None:
    grouping = Grouping(kind("math"))
    assert grouping.classify_at_once("0.5") == Answer("0.5", "1/2")
    assert grouping.classify_at_once("7") is not None
    assert grouping.classify_at_once("\\sin(2x)") is not None
    assert grouping.classify_at_once("2\\sin(x)\\cos(x)") is not None
    # What cannot be calculated may be equal to anything.
    assert grouping.classify_at_once("9^{9^{9^9}}") is None
