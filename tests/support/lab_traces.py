"""Traces for tests of the lab, and work that goes wrong in another process."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from conviction.core import Answer, FinishReason
from conviction.lab.candidates import parse
from conviction.lab.columns import run_type
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import TracesInMemory, TraceSource
from conviction.lab.trials import Trials
from conviction.recordings import PoolMeta, PoolWriter
from conviction.recordings import RecordedTrace as Row

ANSWERS = ("41", "42", "43")
GOLD = "41"


def recorded(
    seed: int, count: int, *, tokens: int = 40, bonus: float = 3.0, odds: float = 0.5
) -> list[PlayedTrace]:
    """Traces of one question; right ones are more confident by `bonus`."""
    random = np.random.default_rng(seed)
    traces: list[PlayedTrace] = []
    for _ in range(count):
        right = random.random() < odds
        key = GOLD if right else str(random.choice(ANSWERS[1:]))
        length = int(random.integers(tokens // 2, tokens))
        values = random.gamma(9.0, 1.0, length) + (bonus if right else 0.0)
        traces.append(
            PlayedTrace(
                length,
                FinishReason.STOP,
                Answer(key, key),
                correct=right,
                confidences=values.astype(np.float32),
            )
        )
    return traces


def in_memory(
    questions: int = 6, count: int = 12, *, top_k: int = 20, bonus: float = 3.0, odds: float = 0.5
) -> TracesInMemory:
    """Several questions with their traces."""
    return TracesInMemory(
        {
            f"question {number}": recorded(number, count, bonus=bonus, odds=odds)
            for number in range(questions)
        },
        top_k=top_k,
    )


def trials(specs: Sequence[str], *, budget: int = 8, **figures: ArrayLike) -> Trials:
    """Runs as they are given: figures by name, each of shape (candidates, questions, repeats)."""
    candidates = tuple(parse(specs, budgets=[budget]))
    shape = np.broadcast_shapes(*(np.shape(values) for values in figures.values()))
    runs = np.zeros(shape, run_type())
    runs["tokens"] = runs["full_tokens"] = 100
    for name, values in figures.items():
        runs[name] = values
    ids = tuple(f"question {number}" for number in range(shape[1]))
    return Trials(candidates, ids, runs, 2 * budget, 2 * budget)


def on_disk(
    folder: Path,
    source: TracesInMemory | None = None,
    *,
    ungraded: Sequence[str] = (),
    top_k: int = 20,
) -> Path:
    """The same as a pool on disk: a new file, also inside a folder that exists."""
    path = folder / "pool.db" if folder.is_dir() else folder
    source = source or in_memory()
    with PoolWriter(path, PoolMeta("a model <b>", top_k, "number")) as writer:
        for question_id, traces in source.questions.items():
            gold = None if question_id in ungraded else GOLD
            writer.append(
                *(
                    Row(
                        question_id=question_id,
                        number=number,
                        prompt_hash="0" * 16,
                        question="How many?",
                        gold=gold,
                        finish=trace.finish,
                        tokens=trace.tokens,
                        answer=trace.answer,
                        correct=trace.correct if gold else None,
                        confidences=trace.confidences if top_k else None,
                    )
                    for number, trace in enumerate(traces)
                )
            )
    return path


def die_unless_first(source: TraceSource, question_id: str) -> str:
    """Work that ends its process, as running out of memory does."""
    if question_id != source.question_ids[0]:
        os._exit(3)
    return question_id


def fail_unless_first(source: TraceSource, question_id: str) -> str:
    """Work that raises."""
    if question_id != source.question_ids[0]:
        raise LookupError(question_id)
    return question_id
