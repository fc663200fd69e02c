"""The answer in the last sentences of traces: a table of our own, and sentences put together."""
# ruff: noqa: RUF001  # sentences of many languages

import json
import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.answers import AnswerKind, Grouping, extract_answer, kind

TABLES = Path(__file__).parent / "data" / "answers"
NAMES = ("math", "choice", "number", "text", "json")


def table(name: str) -> list[list[str]]:
    _, *lines = (TABLES / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def equal(answers: AnswerKind, first: str, second: str) -> bool:
    grouping = Grouping(answers, budget_seconds=100.0)
    return grouping.classify(first).key == grouping.classify(second).key


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_answer_is_found_in_every_text_of_our_own(name: str) -> None:
    pytest.importorskip("mpmath", reason="mpmath (extra `math`) is not installed")
    answers = kind(name)
    wrong: list[tuple[str, str | None, str]] = []
    for of_kind, text, expected in table("own_texts"):
        if of_kind == name:
            found = answers.extract(json.loads(text))
            if found is None or expected == "-":
                right = found is None and expected == "-"
            else:
                right = equal(answers, found, expected)
            if not right:
                wrong.append((text, found, expected))
    answers.close()
    assert wrong == []


def test_the_table_of_our_own_is_large() -> None:
    assert len(table("own_texts")) >= 800
    assert {of_kind for of_kind, *_ in table("own_texts")} == set(NAMES)


@pytest.mark.parametrize(("name", "first", "second", "expected"), table("own_label_and_text_pairs"))
def test_labels_and_texts_are_equal_or_different(
    name: str, first: str, second: str, expected: str
) -> None:
    assert equal(kind(name), first, second) is (expected == "equal")


LABELS = ("{0}", "({0})", "**{0}**", "**({0})**", "${0}$", "\\text{{{0}}}", "option {0}", '"{0}"')
TEXTS = ("", ") Mars", ". Mars", ": Mars", " (Mars)", ", as it is red", " because it is red")
SENTENCES = (
    "The answer is {}.", "So the correct answer is {}.", "Answer: {}", "**Final Answer:** {}",
    "The correct option is {}.", "Thus, the best choice must be {}.", "I choose {}.",
    "My final answer is {}", "The answer would therefore be {}.",
)  # fmt: skip
LETTERS = ("B", "D", "E")


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_choice_is_found_in_every_dress_in_every_english_sentence(sentence: str) -> None:
    choice = kind("choice")
    for letter, label, text in product(LETTERS, LABELS, TEXTS):
        bare = label.format(letter)
        said = sentence.format(bare + text)
        if text.startswith((")", ".", ":")) and label not in {"{0}", "option {0}"}:
            continue  # "(B)) Mars" is not written
        found = choice.extract(f"A is too hot, and C is too far.\n\n{said}")
        assert found is not None, said
        assert (choice.canonical(found), choice.shown(found)) == (letter, letter), said


FOREIGN = (
    "정답은 {}입니다.", "정답: {}", "따라서 답은 {}이다.", "{}가 정답입니다.",
    "옳은 것은 {}입니다.",
    "Die richtige Antwort ist {}.", "Antwort: {}", "{} ist richtig.",
    "La bonne réponse est {}.", "Réponse : {}", "La respuesta correcta es la {}.", "Respuesta: {}",
    "A resposta correta é {}.", "La risposta corretta è la {}.",
    "答案是{}。", "正确答案：{}", "所以选{}。", "正解は{}です。",
    "答え：{}", "したがって、{}が正解です。",
)  # fmt: skip


@pytest.mark.parametrize("sentence", FOREIGN)
def test_a_choice_is_found_in_every_dress_in_other_languages(sentence: str) -> None:
    choice = kind("choice")
    for letter, label in product(LETTERS, ("{0}", "({0})", "**{0}**", "**({0})**")):
        said = sentence.format(label.format(letter))
        found = choice.extract(said)
        assert found is not None, said
        assert choice.canonical(found) == letter, said


@pytest.mark.parametrize(
    "sentence", ["정답은 {}입니다.", "정답: {}", "따라서 {}이 정답입니다.", "옳은 것은 {}이다."]
)
def test_numbers_and_letters_of_korean_choices_are_found(sentence: str) -> None:
    choice = kind("choice")
    for said, label in (
        ("③", "3"), ("③번", "3"), ("3번", "3"), ("**④**", "4"), ("ㄱ, ㄷ", "ㄱ,ㄷ"),
        ("①, ③", "1,3"),
    ):  # fmt: skip
        found = choice.extract(sentence.format(said))
        assert found is not None, sentence.format(said)
        assert choice.canonical(found) == label


MARKS = (
    ("<think>", "</think>"), ("<THINK>", "</THINK>"), ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"), ("<longcat_think>", "</longcat_think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)  # fmt: skip
ENDS = ("", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|return|>")


@pytest.mark.parametrize("mark", MARKS)
def test_only_the_final_part_counts_whatever_marks_the_reasoning(mark: tuple[str, str]) -> None:
    opening, closing = mark
    answers = kind("math")
    thought = "Perhaps the answer is 3. Or \\boxed{4}."
    for end in ENDS:
        assert answers.extract(f"{opening}{thought}{closing}The answer is 5.{end}") == "5"
        assert answers.extract(f"{thought}{closing}\nThe answer is 5.{end}") == "5"
        assert answers.extract(f"{opening}{thought}{closing}\n\n\\boxed{{5}}{end}") == "5"
        assert answers.extract(f"{opening}{thought}{closing}I am done.{end}") == "4"
    assert answers.extract(f"{opening}{thought}") == "4"
    assert answers.extract(f"{opening}Perhaps the answer is 3.") is None


def test_what_follows_the_end_of_a_turn_is_not_the_answer() -> None:
    for end, begin in (
        ("<|im_end|>", "<|im_start|>user\n"),
        ("<|eot_id|>", "<|start_header_id|>user<|end_header_id|>"),
        ("<end_of_turn>", "<start_of_turn>user\n"),
    ):
        assert kind("math").extract(f"The answer is 5.{end}\n{begin}The answer is 6?") == "5"


def test_a_long_reasoning_that_was_never_closed_gives_no_answer_beyond_its_box() -> None:
    long = "<think>" + "The answer is 3. " * 20_000
    assert kind("math").extract(long) is None
    assert kind("math").extract(long + "\\boxed{4}") == "4"


def test_the_answer_of_a_very_long_text_is_found_at_its_end() -> None:
    filling = "So we go on. " * 20_000
    for name, answer in (("math", "5"), ("number", "5"), ("choice", "B"), ("text", "Paris")):
        assert kind(name).extract(f"Answer: X1\n{filling}\nAnswer: {answer}") == answer


def test_a_choice_shows_its_letters() -> None:
    choice = kind("choice")
    shown = {
        answer: choice.shown(answer) for answer in ("B) Mars", "(c)", "C and A", "③번 화성", "?")
    }
    assert shown == {"B) Mars": "B", "(c)": "C", "C and A": "A, C", "③번 화성": "3", "?": "?"}


@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_no_text_at_all_breaks_extraction_or_leaves_half_a_character(text: str) -> None:
    for name in NAMES:
        answers = kind(name)
        for written in (text, f"Answer: {text}", f"\\boxed{{{text}}}", f"<answer>{text}</answer>"):
            found = answers.extract(written)
            assert found is None or found.encode()
            if found is not None and name in {"choice", "text", "json"}:
                assert answers.canonical(found)
                assert answers.shown(found)


def test_no_shuffled_row_of_the_tables_breaks_extraction() -> None:
    shuffled = random.Random(5)  # noqa: S311
    for of_kind, text, _ in (*table("texts"), *table("own_texts")):
        letters = list(json.loads(text))
        shuffled.shuffle(letters)
        answers = kind(of_kind)
        found = answers.extract("".join(letters))
        assert found is None or found.strip()


@given(st.sampled_from([row for row in table("own_texts") if row[2] != "-"]), st.data())
def test_invisible_characters_change_no_answer(row: list[str], data: st.DataObject) -> None:
    of_kind, text, _ = row
    written = json.loads(text)
    at = data.draw(st.integers(0, len(written)))
    hidden = data.draw(st.sampled_from("\u200b\u200e\u202e\u2066\ufeff\0"))
    answers = kind(of_kind)
    assert answers.extract(written[:at] + hidden + written[at:]) == answers.extract(written)


def test_strategies_give_candidates_until_one_is_accepted() -> None:
    text = "Answer: 7\nThen the answer is obvious."
    assert extract_answer(text, ["marker"], str.isdigit) == "7"


def test_half_a_character_in_json_is_written_out() -> None:
    answers = kind("json")
    assert answers.canonical('"\\ud800"').encode()
    assert answers.canonical('"\\ud800"') != answers.canonical('"\\ud801"')
