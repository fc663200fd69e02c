"""`conviction answers` and `conviction vote`: what is found in texts, and how they vote."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conviction.answers import KINDS, AnswerKind, broken_rules, kind, kinds
from conviction.answers.grouping import COMPARED, DECIDED, FAILED, SAME
from conviction.cli.main import run


class Near(AnswerKind):
    """Whole numbers; neighbours are equal, which is not transitive, and 13 cannot be compared."""

    name = "near"
    help = "numbers that are near"

    def canonical(self, answer: str) -> str:
        return answer.strip()

    def decided(self, first: str, second: str) -> bool:
        del first, second
        return False

    def equivalent(self, first: str, second: str) -> bool | None:
        if "13" in (first, second):
            return None
        return abs(int(first) - int(second)) <= 1


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS.builtin, "near", f"{__name__}:Near")
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(Near=Near))


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["answers", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_texts_are_read_as_in_a_vote_and_a_bare_answer_counts_as_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = findings(capsys, r"So it is \boxed{\frac12}.", "0.5", "east", "I do\nnot know")
    assert [one["source"] for one in found["texts"]] == ["found", "itself", "itself", "none"]
    assert [one["canonical"] for one in found["texts"]] == ["1/2", "1/2", "east", None]
    assert [one["group"] for one in found["texts"]] == [1, 1, 2, None]
    assert (found["texts"][1]["joins"], found["texts"][1]["why"]) == (1, SAME)
    assert found["differences"] == [{"first": 1, "second": 3, "why": DECIDED}]
    assert found["notes"] == []


def test_what_is_printed_says_whether_texts_are_one_vote_and_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["answers", "0.5", r"\boxed{1/2}"]) == 0
    shown = capsys.readouterr().out
    assert "One vote: 1 and 2." in shown
    assert "1 and 2 are equal: same canonical form" in shown
    assert run(["answers", "0.5", "50"]) == 0
    shown = capsys.readouterr().out
    assert "2 different votes: 1; 2." in shown
    assert "1 and 2 are different: their canonical forms differ" in shown


def test_pairs_that_cannot_be_compared_are_told_from_those_that_differ(
    near: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del near
    found = findings(capsys, "1", "13", "7", "--answer", "near")
    assert [one["group"] for one in found["texts"]] == [1, 2, 3]
    assert [one["why"] for one in found["differences"]] == [
        FAILED,
        COMPARED,
        FAILED,
    ]


def test_a_kind_that_breaks_the_rules_of_equality_is_told(
    near: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del near
    notes = findings(capsys, "1", "2", "3", "--answer", "near")["notes"]
    assert notes == ["'1' equals '2' and '2' equals '3', but '1' does not equal '3'."]


def test_the_check_for_authors_finds_every_broken_rule() -> None:
    class OneWay(Near):
        def equivalent(self, first: str, second: str) -> bool | None:
            return first < second

        def shown(self, answer: str) -> str:
            return answer + "0"

    found = broken_rules(OneWay(), ["2", "1"])
    assert "'1' equals '2', but not the other way round." in found
    assert len(found) == 1  # "10" and "1" count as equal: "1" < "10"
    assert broken_rules(kind("math"), ["1/2", "0.5", "x+1", "1+x", "(1,2)", "[1,2]"]) == []


def test_without_a_text_the_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["answers"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{name} +\S", shown, re.MULTILINE) for name in kinds())
    listed = findings(capsys)
    assert [one["name"] for one in listed] == list(kinds())


def test_texts_come_from_files_and_standard_input_and_cannot_command_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("The answer is \\boxed{7}\n")
    piped = SimpleNamespace(buffer=io.BytesIO(b"\x1b[31mred"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", piped)
    assert run(["answers", "--file", str(tmp_path / "text"), "-"]) == 0
    shown = capsys.readouterr().out
    assert "answer     7" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "arguments", [["answers", "1", "--answer", "maths"], ["answers", "-f", "missing"]]
)
def test_wrong_use_has_its_exit_code(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().out == ""


def votes(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[Any]:
    assert run(["vote", *arguments, "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def lines(path: Path, *values: object) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "So \\boxed{3}"},
         "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": None}, "finish_reason": "length"},
    ],
}  # fmt: skip
SHAPES: dict[str, tuple[list[object], list[tuple[str, str | None, int]]]] = {
    "texts": (
        [{"id": "a", "texts": ["\\boxed{1}", "\\boxed{2}", "\\boxed{1.0}"]}],
        [("a", "1", 3)],
    ),
    "one text a line": (
        [{"question": "q", "text": "\\boxed{1}"}, {"question": "q", "response": "\\boxed{1}"},
         {"question": "p", "output": "\\boxed{2}"}],
        [("q", "1", 2), ("p", "2", 1)],
    ),
    "texts alone": (["\\boxed{1}", "\\boxed{2}", "\\boxed{2}"], [("1", "2", 3)]),
    "one text a line of no question": (
        [{"text": "\\boxed{1}"}, {"text": "none"}], [("1", "1", 2)]
    ),
    "a list": ([["\\boxed{5}", "\\boxed{4}", "\\boxed{5}"]], [("1", "5", 3)]),
    "a list of questions": (
        [[{"id": 0, "samples": ["\\boxed{5}"]}, {"id": 1, "samples": ["\\boxed{6}"]}]],
        [("0", "5", 1), ("1", "6", 1)],
    ),
    "chats": ([CHAT], [("chatcmpl-1", "3", 2)]),
    "a batch": (
        [{"id": "batch_1", "custom_id": "q1", "response": {"status_code": 200, "body": CHAT}}],
        [("q1", "3", 2)],
    ),
    "vLLM": (
        [{"request_id": "7", "prompt": "?", "outputs": [{"index": 0, "text": "\\boxed{4}"}]}],
        [("7", "4", 1)],
    ),
    "the harness": (
        [{"doc_id": 0, "doc": {"question": "?"}, "resps": [["\\boxed{8}", "\\boxed{9}"],
          ["\\boxed{9}"]], "filter": "strict"},
         {"doc_id": 0, "doc": {"question": "?"}, "resps": [["\\boxed{8}"]], "filter": "loose"}],
        [("0", "9", 3)],
    ),
    "parts of a message": (
        [{"id": 1, "responses": [{"content": [{"type": "text", "text": "\\boxed{2}"}]}]}],
        [("1", "2", 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_are_read_in_the_shapes_that_programs_write(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, expected = SHAPES[shape]
    found = votes(capsys, lines(tmp_path / "samples.jsonl", *written))
    assert [(one["id"], one["answer"], one["texts"]) for one in found] == expected


def test_a_file_may_be_one_value_over_many_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([{"id": 1, "texts": ["\\boxed{1}"]}] * 1, indent=2))
    assert [one["answer"] for one in votes(capsys, str(path))] == ["1"]


def test_a_vote_is_told_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["\\boxed{2}", "\\boxed{1}", "\\boxed{2.0}", "no idea"]
    cut = {"text": "\\boxed{9}", "finish_reason": "length"}
    [found] = votes(
        capsys, lines(tmp_path / "s", {"id": "a", "samples": [*texts, cut], "answer": "#### 2"})
    )
    assert found["votes"] == [
        {"answer": "2", "count": 2, "weight": 2.0, "share": 2 / 3, "texts": [0, 2]},
        {"answer": "1", "count": 1, "weight": 1.0, "share": 1 / 3, "texts": [1]},
    ]
    assert (found["texts"], found["without_answer"], found["cut"]) == (5, 1, 1)
    assert (found["gold"], found["correct"], found["share"]) == ("2", True, 2 / 3)


def test_totals_and_lines_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(
        tmp_path / "s",
        {"id": "a", "samples": ["\\boxed{2}", "\\boxed{1}", "\\boxed{2}"], "gold": 2},
        {"id": "b", "samples": ["\\boxed{2}", "none"], "gold": 3},
        {"id": "c", "samples": ["none"], "gold": 3},
    )
    assert run(["vote", path]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "a  2  (2 of 3 votes, 67%; 1: 1)  right",
        "b  2  (1 of 1 votes, 100%; without an answer: 1)  wrong, not 3",
        "c  no answer in 1 text; without an answer: 1  wrong, not 3",
    ]
    assert "3 questions; 6 texts; 2 without an answer" in shown.err
    assert "2 of 3 questions answered; 1 of 3 right (33.3%)" in shown.err
    assert run(["vote", path, "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_votes_weigh_confidences_if_a_policy_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        {"text": "\\boxed{1}", "confidence": 5.0},
        {"text": "\\boxed{1}", "confidence": 6.0},
        {"text": "\\boxed{2}", "confidence": 17.0},
    ]
    path = lines(tmp_path / "s", {"id": "a", "samples": samples})
    assert [one["answer"] for one in votes(capsys, path)] == ["1"]
    [weighed] = votes(capsys, path, "--policy", "deepconf-offline:keep=1")
    assert weighed["answer"] == "2"
    assert [one["weight"] for one in weighed["votes"]] == [17.0, 11.0]
    assert run(["vote", path, "--policy", "settle"]) == 2


def test_confidences_come_from_top_logprobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def choice(text: str, *logprobs: float) -> dict[str, Any]:
        top = [{"logprob": value} for value in logprobs]
        content = [{"token": "x", "logprob": logprobs[0], "top_logprobs": top}]
        return {"message": {"content": text}, "logprobs": {"content": content}}

    choices = [choice("\\boxed{1}", -0.5, -1.5), choice("\\boxed{2}", -0.1, -9.9)]
    path = lines(tmp_path / "s", {"id": "a", "choices": choices})
    [found] = votes(capsys, path, "--policy", "deepconf-offline:keep=1")
    assert [one["weight"] for one in found["votes"]] == pytest.approx([5.0, 1.0])


def test_without_any_answer_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [found] = votes(capsys, lines(tmp_path / "s", {"id": 1, "texts": ["no", ""]}), code=1)
    assert (found["answer"], found["votes"], found["correct"]) == (None, [], None)


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b'{"text": "a"}\n{"text": 5}\n', "line 2 of", "a text is not a string, but int"),
        (b'{"text": "a"}\n{"text": \n', "line 2 of", "it is not JSON"),
        (b'{"text": "a"}\n\n5\n', "line 3 of", "neither a text nor a JSON object"),
        (b'{"id": 1, "question": "?"}\n', "line 1 of", "none of its fields holds texts"),
        (b'{"id": 1, "texts": []}\n', "line 1 of", "its 'texts' holds no text"),
        (b'{"id":1,"text":"a"}\n{"id":2,"text":"a"}\n{"id":1,"text":"a"}\n', "line 3 of",
         "question '1' stands there again, first in line 1 of"),
        (b'{"id":1,"text":"a","gold":1}\n{"id":1,"text":"a","gold":2}\n', "line 2 of",
         "its right answer '2' is not that of line 1"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 of", "it is not UTF-8 text (byte 11)"),
        (b'["a"]\n["b"]\n', "line 2 of", "a list stands before it"),
        (b"[" * 100_000 + b"\n", "s", "nested too deeply"),
        (b'{"id":1,"texts":' + b"[" * 50 + b"]" * 50 + b"}\n", "line 1 of", "nested too deeply"),
        (b'{"id":1,"confidence":["x"],"text":"a"}\n', "line 1 of", "is not a number"),
        (b"", "s", "it holds no texts"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_line(
    content: bytes, where: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").write_bytes(content)
    assert run(["vote", str(tmp_path / "s")]) == 2
    told = capsys.readouterr().err
    assert where in told
    assert what in told


def test_no_file_and_a_missing_file_are_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["vote"]) == 2
    assert "no file is named" in capsys.readouterr().err
    assert run(["vote", str(tmp_path / "missing")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_one_question_at_a_time_is_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[int] = []

    class Endless(io.RawIOBase):
        """Each line is asked for only after the questions before it were printed."""

        number = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            del size
            if self.number == 50:
                return b""
            self.number += 1
            printed.append(len(capsys.readouterr().out.splitlines()))
            return json.dumps({"id": self.number, "texts": ["\\boxed{1}"]}).encode() + b"\n"

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Endless(), isatty=lambda: False))
    assert run(["vote", "-"]) == 0
    # When a line is asked for, all questions but the last two read were printed.
    assert sum(printed) >= 48
