"""A run goes on behind a torn line, whatever was torn."""

from functools import partial
from pathlib import Path

import anyio

from conviction.answers import kind
from conviction.core import Sampling
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.folder import read_run
from conviction.evaluation.plan import EvaluationPlan, PromptedQuestion
from conviction.evaluation.run import evaluate
from conviction.policies import Majority
from conviction.prompts import PromptStyle


def test_nothing_is_left_of_a_torn_line_behind_a_shorter_one(tmp_path: Path) -> None:
    asked = tuple(
        PromptedQuestion.of(
            DatasetQuestion(name, f"What is {name}?", "1", f"line {name}"),
            answers="number",
            style=PromptStyle.PLAIN,
        )
        for name in "ab"
    )
    plan = EvaluationPlan(
        asked, Majority(1), answers="number", sampling=Sampling(), questions_at_once=1
    )

    def run() -> None:
        engine = ScriptedEngine([Script.even("It is 1.")])
        anyio.run(partial(evaluate, plan, tmp_path, engine=engine, answers=kind("number")))

    run()
    results = tmp_path / "results.jsonl"
    first, second, _ = results.read_bytes().split(b"\n")
    # Far longer than the line that takes its place.
    results.write_bytes(first + b"\n" + second[:-1] + b" " * 5000)
    run()
    assert [result.id for result in read_run(tmp_path).results] == ["a", "b"]
    assert results.read_bytes().count(b"\n") == 2
    assert results.read_bytes().endswith(b"}\n")
