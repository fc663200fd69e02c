"""A pool as a single file, for keeping and passing on."""

import os
from collections.abc import Iterator
from pathlib import Path

from conviction.recordings.parquet import write_part
from conviction.recordings.pool import Pool
from conviction.recordings.schema import RecordedQuestion, RecordedTrace


def pack(pool: Pool, target: str | os.PathLike[str], *, keep_text: bool = True) -> None:
    """Write a pool as one Parquet file, question after question; one is held at a time.

    Args:
        pool: What to write.
        target: The file; replaced if it is there.
        keep_text: Whether the words of questions and traces come along. They are about a third of
            a pool, and may not be yours to pass on; answers and right answers stay.

    Raises:
        RecordingError: the pool is damaged, or the disk refuses.
    """
    groups = (list(_rows(pool, question, keep_text=keep_text)) for question in pool.questions)
    write_part(Path(target).expanduser(), groups, pool.meta)


def _rows(pool: Pool, question: RecordedQuestion, *, keep_text: bool) -> Iterator[RecordedTrace]:
    traces = pool.traces(question.id)
    texts = pool.texts(question.id) if keep_text else [None] * len(traces)
    logprobs = pool.logprobs(question.id)
    graded = question.gold is not None
    for position, text in enumerate(texts):
        yield RecordedTrace(
            question_id=question.id,
            number=int(traces.ids[position]),
            prompt_hash=question.prompt_hash,
            question=question.text if keep_text else "",
            gold=question.gold,
            seed=int(traces.seeds[position]),
            text=text,
            answer=traces.answers[position],
            correct=bool(traces.correct[position]) if graded else None,
            finish=traces.finish[position],
            tokens=int(traces.tokens[position]),
            prompt_tokens=int(traces.prompt_tokens[position]),
            lost_tokens=int(traces.lost_tokens[position]),
            confidences=traces.confidences[position] if traces.confidences else None,
            logprobs=logprobs[position],
            started=float(traces.started[position]),
            ended=float(traces.ended[position]),
        )
