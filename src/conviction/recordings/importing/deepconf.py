"""Results of DeepConf's reference implementation (facebookresearch/deepconf), saved as JSON.

The program itself saves pickles. Whoever made one can turn it into JSON:

    python -c "import json, pickle, sys
    json.dump(pickle.load(open(sys.argv[1], 'rb')), sys.stdout, default=float)" run.pkl > run.json

Its confidences are rounded to three digits, and average all log-probabilities that vLLM returned,
which are k + 1 where the sampled token was not among the k best.
"""

from math import inf, nan
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from conviction.core import FinishReason, Question, Trace
from conviction.recordings.importing.base import (
    Imported,
    ImportedQuestion,
    asked_question,
    refused,
    shaped,
)
from conviction.recordings.schema import PoolMeta, in_range

_TOP_K = 20
"""What its programs ask vLLM for."""

_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class _Trace(msgspec.Struct):
    text: str
    confs: list[float | None] | None = None
    stop_reason: str | None = None


class _Config(msgspec.Struct):
    model: str = ""
    model_path: str = ""


class _Result(msgspec.Struct):
    all_traces: list[_Trace]
    question: str = ""
    ground_truth: str | float | None = None
    question_id: int | str | None = None
    qid: int | str | None = None
    config: _Config = msgspec.field(default_factory=_Config)


def read_deepconf(path: Path, value: Any) -> Imported:
    """The question with all its traces that the JSON of a file holds.

    Raises:
        RecordingError: it has another shape, or lacks confidences of single tokens.
    """
    result = shaped(value, _Result, str(path))
    if not result.all_traces:
        raise refused(path, "it has no trace: all_traces is empty", "Leave out the file.")
    number = result.question_id if result.question_id is not None else result.qid
    question_id = path.stem if number is None else str(number)
    gold = None if result.ground_truth is None else str(result.ground_truth)
    asked = Question.ask(result.question)
    question = asked_question(path, question_id, result.question, gold, asked)
    traces = tuple(
        _trace(position, trace, f"trace {position} of question {question_id!r} in {path}")
        for position, trace in enumerate(result.all_traces)
    )
    meta = PoolMeta(
        model=result.config.model or result.config.model_path or path.stem,
        top_k=_TOP_K,
        answers="",
        source=f"{path.name} of facebookresearch/deepconf; some confidences average k + 1 values",
    )
    return Imported(meta, (ImportedQuestion(str(path), question, traces),))


def _trace(number: int, trace: _Trace, place: str) -> Trace:
    if trace.confs is None:
        raise refused(
            place,
            "it has no confidences of single tokens (confs)",
            "Save the results of its offline mode, which keeps them.",
        )
    values = np.array([nan if value is None else value for value in trace.confs], np.float64)
    # An average over a token that top-p or a grammar ruled out; as a live run takes it.
    values[values == inf] = nan
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not in_range(values):
        wrong = next(i for i in range(values.size) if not in_range(values[i : i + 1]))
        raise refused(
            place,
            f"its confidence of token {wrong} is {trace.confs[wrong]}",
            "A confidence is finite and at least 0; null stands for an unknown one.",
        )
    return Trace(
        id=number,
        # What its fork of vLLM stops carries other words there.
        finish=_FINISHES.get(trace.stop_reason or "stop", FinishReason.LOW_CONFIDENCE),
        tokens=values.size,
        text=trace.text,
        confidences=values,
    )
