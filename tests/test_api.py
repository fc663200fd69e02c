"""`think` and `athink`, as programs and notebooks call them."""

import asyncio
from pathlib import Path

import pytest

import conviction
from conviction.backends import room_for
from conviction.backends.builtin import Embedded
from conviction.core import InvalidSettingError, Message, Question, Sampling
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import ConvictionError, UnknownNameError
from conviction.models import ModelFile
from conviction.policies import Majority, Single
from conviction.prompts import PromptStyle, compose


def engine() -> ScriptedEngine:
    return ScriptedEngine([Script.even("\\boxed{4}")])


def test_think_answers_in_a_plain_program() -> None:
    verdict = conviction.think("2 + 2?", engine=engine(), policy="majority", budget=3)
    assert (verdict.answer, verdict.share, len(verdict.traces)) == ("4", 1.0, 3)


def test_think_answers_inside_a_running_loop_as_in_a_notebook() -> None:
    async def cell() -> conviction.Verdict:
        return conviction.think("2 + 2?", engine=engine(), policy=Majority(2))

    assert asyncio.run(cell()).answer == "4"


def test_errors_of_the_run_come_out_as_they_are_in_both_cases() -> None:
    async def cell() -> None:
        conviction.think("2 + 2?", engine=engine(), policy="majorty")

    with pytest.raises(UnknownNameError, match="majority"):
        asyncio.run(cell())
    with pytest.raises(UnknownNameError, match="majority"):
        conviction.think("2 + 2?", engine=engine(), policy="majorty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_style": "step-by-stp"}, "step-by-step"),
        ({"policy": Single(), "budget": 4}, "the policy has its own"),
        ({"model": "smollm2"}, "has its model already"),
        ({"answers": "maths"}, "'math'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(
    options: dict[str, object], message: str
) -> None:
    used = engine()
    with pytest.raises(ConvictionError, match=message):
        conviction.think("2 + 2?", engine=used, **options)
    assert used.generated == []


@pytest.mark.parametrize("question", ["", " ", None, 4, "\0", "\udcff"])
def test_what_is_no_question_is_refused(question: str) -> None:
    with pytest.raises(InvalidSettingError, match="ask the question"):
        conviction.think(question, engine=engine())


def test_a_question_needs_a_message() -> None:
    with pytest.raises(InvalidSettingError, match="no messages"):
        Question(())


def test_a_finished_question_is_sent_as_it_is() -> None:
    asked: list[tuple[Message, ...]] = []

    def script(request: object) -> Script:
        asked.append(request.messages)  # type: ignore[attr-defined]
        return Script.even("\\boxed{4}")

    question = Question((Message("system", "Be brief."), Message("user", "2 + 2?")))
    conviction.think(question, engine=ScriptedEngine(script), policy="single")
    assert asked == [question.messages]


@pytest.mark.parametrize("text", ["사과 몇 개?", "苹果" * 800, "12345 * 67890. " * 200])
def test_the_embedded_engine_gets_room_for_any_script_and_for_digits(text: str) -> None:
    model = ModelFile(Path("m.gguf"), "m", PromptStyle.WORKED_EXAMPLES)
    question = compose(text, kind="math", style=PromptStyle.WORKED_EXAMPLES)
    room = room_for([question], Sampling(max_tokens=100))
    embedded = Embedded(file=model).sized(room).build()
    written = sum(len(message.content.encode()) for message in question.messages)
    # A byte-level tokenizer makes at most one token of each byte.
    assert embedded._context >= written + 100  # type: ignore[attr-defined]


def test_korean_questions_are_asked_in_korean() -> None:
    question = compose("사과 몇 개?", kind="math", style=PromptStyle.STEP_BY_STEP)
    assert "답은 \\boxed{" in question.text
    plain = compose("사과 몇 개?", kind="math", style=PromptStyle.PLAIN)
    assert plain.text == "사과 몇 개?"


@pytest.mark.parametrize("kind", ["text", "choice", "json"])
def test_worked_examples_are_left_out_where_they_end_in_the_wrong_form(kind: str) -> None:
    question = compose("Which?", kind=kind, style=PromptStyle.WORKED_EXAMPLES)
    assert len(question.messages) == 1
    assert len(compose("2?", kind="math", style=PromptStyle.WORKED_EXAMPLES).messages) == 5
