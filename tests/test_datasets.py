"""Data sets are read as they come, and refused with file and line where they cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conviction.answers import is_correct, kind
from conviction.core import Answer
from conviction.errors import InvalidSettingError
from conviction.evaluation.datasets import DatasetQuestion, Fields
from conviction.evaluation.datasets import load as load_dataset


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, fields: Fields | None = None, **how: Any) -> tuple[DatasetQuestion, ...]:
    found = load_dataset(path, fields, **how)
    assert found.origin is None
    return found.questions


def facts(questions: tuple[DatasetQuestion, ...]) -> list[tuple[str, str, str | None]]:
    return [(question.id, question.text, question.gold) for question in questions]


TWO = [("q1", "2 + 2?", "4"), ("q2", "What, then?", "it")]


def test_jsonl_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    jsonl = written(
        tmp_path,
        "a.jsonl",
        '\ufeff{"id": "q1", "question": "2 + 2?", "answer": 4.0}\n\n'
        '{"id": "q2", "question": "What, then?", "answer": "it"}\n',
    )
    csv = written(tmp_path, "a.csv", 'id,question,answer\nq1,2 + 2?,4\nq2,"What, then?",it\n')
    parquet = tmp_path / "a.parquet"
    ids, questions, answers = zip(*TWO, strict=True)
    pq.write_table(pa.table({"id": ids, "question": questions, "answer": answers}), parquet)
    for path in (jsonl, csv, parquet):
        assert facts(load(path)) == TWO
    assert [q.place for q in load(jsonl)] == [f"line {line} of {jsonl}" for line in (1, 3)]
    assert load(csv)[1].place == f"line 3 of {csv}"
    assert load(parquet)[1].place == f"row 2 of {parquet}"


def test_fields_can_be_named_and_a_row_without_id_gets_its_number(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.jsonl",
        '{"Q": "one?", "A": 1, "question": "no"}\n{"Q": "two?", "A": 2, "question": "no"}\n',
    )
    found = load(path, Fields(question="Q", answer="A"))
    assert facts(found) == [("1", "one?", "1"), ("2", "two?", "2")]
    assert facts(load(path, Fields(question="Q", answer="A"), limit=1)) == [("1", "one?", "1")]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ('"We add. 2 + 2 = <<2+2=4>>4\\n#### 1,234"', "1,234"),
        ('" 4 "', "4"),
        ("7.5", "7.5"),
        ("12345678901234567890", "12345678901234567890"),
        ("true", "true"),
    ],
)
def test_gold_answers_are_read_as_they_are_written(tmp_path: Path, answer: str, gold: str) -> None:
    path = written(tmp_path, "a.jsonl", f'{{"question": "?", "answer": {answer}}}\n')
    assert load(path)[0].gold == gold


FIRST = '{"question": "2 + 2?", "answer": 4, "id": 1}\n'


@pytest.mark.parametrize(
    ("second", "found", "remedy"),
    [
        ("{broken", "no JSON", "one JSON object a line"),
        ("[1]", "no JSON object", "one JSON object a line"),
        ('{"question": "3?", "id": 2}', "no answer", "--no-gold"),
        ('{"question": "3?", "answer": null, "id": 2}', "no answer", "--answer-field"),
        ('{"question": "3?", "answer": "", "id": 2}', "no gold answer", "--no-gold"),
        ('{"question": "3?", "answer": [1, 2], "id": 2}', "no gold answer", "--no-gold"),
        ('{"question": "3?", "answer": 1e999, "id": 2}', "no gold answer", "--no-gold"),
        ('{"question": "3?", "answer": NaN, "id": 2}', "NaN, which is no value", "Correct the row"),
        ('{"question": "3?", "answer": -Infinity, "id": 2}', "-Infinity, which", "Correct the row"),
        (
            *(f'{{"question": "3?", "answer": -{"9" * 5000}, "id": 2}}', "number of 5,000 digits"),
            "Correct the row",
        ),
        ("[" * 100_000, "nested too deeply", "Leave the row out"),
        ('{"question": "3?", "answer": "\\ud800", "id": 2}', "half a character", "Correct the row"),
        ('{"question": "3?", "answer": 3, "id": "\\udfff"}', "half a character", "Correct the row"),
        ('{"text": "3?", "answer": 3, "id": 2}', "text, answer, id", "--question-field"),
        ('{"question": " ", "answer": 3, "id": 2}', "holds no question", "Correct the row"),
        ('{"question": 3, "answer": 3, "id": 2}', "holds no question", "Correct the row"),
        ('{"question": "3?", "answer": 3, "id": 1}', "its id '1' is that of line 1", "--id-field"),
        ('{"question": "2 + 2?", "answer": 4, "id": 2}', "asks what line 1", "--drop-duplicates"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_a_remedy(
    tmp_path: Path, second: str, found: str, remedy: str
) -> None:
    path = written(tmp_path, "a.jsonl", FIRST + second + "\n")
    with pytest.raises(InvalidSettingError) as refused:
        load(path)
    assert f"line 2 of {path}" in refused.value.tried
    assert found in refused.value.found
    assert remedy in refused.value.remedy


def test_a_field_that_was_named_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", FIRST)
    for fields, option in (
        (Fields(question="Q"), "--question-field"),
        (Fields(answer="A"), "--answer-field"),
        (Fields(id="I"), "--id-field"),
    ):
        with pytest.raises(InvalidSettingError, match=option):
            load(path, fields)


def test_questions_without_gold_answers_are_read_if_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", FIRST + '{"question": "3?", "id": 2}\n')
    assert [question.gold for question in load(path, gold=False)] == [None, None]


def test_duplicates_are_left_out_if_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", FIRST * 2 + '{"question": "3?", "answer": 3, "id": 2}\n')
    assert [question.id for question in load(path, drop_duplicates=True)] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.jsonl", "", "holds no question"),
        ("a.csv", "question,answer\n", "holds no question"),
        ("a.csv", "question,answer\n1,2,3\n", "line 2 of"),
        ("a.csv", 'question,answer\n"1,2\n', "no CSV"),
        ("a.txt", "2 + 2?", ".jsonl, .csv or .parquet"),
        ("a.parquet", "PAR1", "no whole Parquet file"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    tmp_path: Path, name: str, text: str, found: str
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(InvalidSettingError) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert found in str(refused.value)


@pytest.mark.parametrize("choice", [{"subset": "main"}, {"split": "test"}])
def test_a_file_has_no_subsets_and_no_splits(tmp_path: Path, choice: dict[str, str]) -> None:
    path = written(tmp_path, "a.jsonl", FIRST)
    with pytest.raises(InvalidSettingError, match="hf://OWNER/NAME"):
        load(path, **choice)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="No such file"):
        load(tmp_path / "none.jsonl")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "\xff"}')
    with pytest.raises(InvalidSettingError, match="not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("name", "first", "row"),
    [
        ("a.jsonl", b"\xef\xbb\xbf", b'{"question": "%d?", "answer": 1}'),
        ("a.csv", b"\xef\xbb\xbfquestion,answer\r\n", b"%d?,1"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_bad_byte_is_told_with_its_line_however_late_it_comes(
    tmp_path: Path, name: str, first: bytes, row: bytes, end: bytes
) -> None:
    path = tmp_path / name
    rows = [row % number + end for number in range(3000)]
    path.write_bytes(first + b"".join(rows))
    whole = load(path)
    assert len(whole) == 3000
    line = int(whole[2500].place.split()[1])
    assert line == 2501 + first.count(b"\n")
    rows[2500] = rows[2500].replace(b"2500?", b"25\xff0?")
    path.write_bytes(first + b"".join(rows))
    with pytest.raises(InvalidSettingError) as refused:
        load(path)
    assert refused.value.tried == f"read line {line} of {path}"
    place = rows[2500].index(b"\xff") + 1
    assert f"not UTF-8: byte {place} of the line" in refused.value.found


def test_a_parquet_file_that_says_not_a_number_has_no_gold_answer_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["1?", "2?"], "answer": [1.0, float("nan")]}), path)
    with pytest.raises(InvalidSettingError, match=r"row 2 of .*no gold answer"):
        load(path)


SHAPES: dict[str, tuple[int, Callable[[int], dict[str, object]], str]] = {
    "GSM8K": (
        660,
        lambda n: {
            "question": f"A café sells {n} pears at $2 each. What does it take in?",
            "answer": f"It takes in {n} * 2 = $<<{n}*2={2 * n}>>{2 * n}.\n#### {2 * n:,}",
        },
        "1,318",
    ),
    "MATH": (
        250,
        lambda n: {
            "problem": rf"Write $\left( {n}, \frac{{\pi}}{{2}} \right)$ down.",
            "solution": rf"It is $\boxed{{\left( {n}, \frac{{\pi}}{{2}} \right)}}.$",
            "answer": rf"\left( {n}, \frac{{\pi}}{{2}} \right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": f"test/precalculus/{n}.json",
        },
        r"\left( 249, \frac{\pi}{2} \right)",
    ),
    "contest": (30, lambda n: {"question": f"Find ${n}^2$.\n", "answer": f"{n**2:03}"}, "841"),
}
"""Known data sets' columns and ways to write: how many questions, one, and the last's answer."""


@pytest.mark.parametrize("name", SHAPES)
def test_files_in_the_shape_of_known_data_sets_are_read_as_they_are(
    tmp_path: Path, name: str
) -> None:
    count, row, gold = SHAPES[name]
    lines = [json.dumps(row(number), ensure_ascii=False) for number in range(count)]
    questions = load(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert len(questions) == count
    assert questions[-1].gold == gold
    assert all(question.gold for question in questions)


def test_a_data_set_that_asks_the_same_twice_is_refused_until_told_what_to_do(
    tmp_path: Path,
) -> None:
    rows = [{"input": f"What is {n % 531} + 1?", "target": n % 531 + 1.0} for n in range(561)]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidSettingError, match="--drop-duplicates"):
        load(path)
    questions = load(path, drop_duplicates=True)
    assert [question.gold for question in questions] == [str(n + 1) for n in range(531)]


@pytest.mark.parametrize(
    ("name", "answer", "gold", "right"),
    [
        ("math", r"\frac{1}{2}", "0.5", True),
        ("math", "0.4", "0.5", False),
        ("number", "$1,234", "1234", True),
        ("number", "50%", "50", True),
        ("number", "50%", "0.5", False),
        ("choice", "(c)", "C", True),
        ("choice", "(c)", "D", False),
    ],
)
def test_answers_are_graded_by_what_they_mean(
    name: str, answer: str, gold: str, *, right: bool
) -> None:
    compared = kind(name)
    try:
        assert is_correct(compared, answer, gold) is right
        assert is_correct(compared, Answer(answer, "any key"), gold) is right
    finally:
        compared.close()


def test_no_answer_is_wrong_and_without_gold_none_is_right() -> None:
    numbers = kind("number")
    assert not is_correct(numbers, None, "4")
    assert not is_correct(numbers, "4", None)
