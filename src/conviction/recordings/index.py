"""What a pool holds, without what is large."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from conviction.core import Answer, FinishReason
from conviction.errors import RecordingError
from conviction.recordings.schema import COMPLETE, PoolMeta, RecordedQuestion, RecordedTrace


@dataclass
class Entry:
    """What is known of one question.

    Attributes:
        question: The question; its counts of traces are brought up to date at the end.
        numbers: Numbers of its recorded traces.
        complete: How many of them ran to their own end or to their token limit.
        seeds: Their seeds.
        answers: Key of each distinct answer, in the order in which they were recorded.
    """

    question: RecordedQuestion
    numbers: set[int] = field(default_factory=set[int])
    complete: int = 0
    seeds: set[int] = field(default_factory=set[int])
    answers: dict[str, str] = field(default_factory=dict[str, str])


class Index:
    """All questions of a pool, and the facts that its traces share.

    Memory grows with the number of traces, not with their tokens.

    Attributes:
        meta: The pool's facts; None as long as nothing was added.
        entries: What is known of each question by its id, in order of first appearance.
    """

    def __init__(self) -> None:
        self.meta: PoolMeta | None = None
        self.entries: dict[str, Entry] = {}

    def questions(self) -> tuple[RecordedQuestion, ...]:
        """All questions with their counts of traces."""
        return tuple(
            replace(entry.question, traces=len(entry.numbers), complete=entry.complete)
            for entry in self.entries.values()
        )

    def answers(self, question_id: str) -> Mapping[str, str]:
        """The key of each distinct recorded answer to a question, in order of recording."""
        entry = self.entries.get(question_id)
        return dict(entry.answers) if entry else {}

    def use_meta(self, meta: PoolMeta, place: str) -> None:
        """Check that something shares the facts of what was added before.

        Raises:
            RecordingError: it does not.
        """
        if self.meta is None:
            self.meta = meta
        elif different := meta.differences(self.meta):
            raise RecordingError(
                tried=f"use {place}",
                found=f"it does not fit what is there: {different}",
                remedy="Confidences of other models, k or settings belong in a pool of their own.",
            )

    def add_row(self, row: RecordedTrace, place: str) -> None:
        """Take note of one more trace, as `add`."""
        question = RecordedQuestion(row.question_id, row.question, row.gold, row.prompt_hash, 0)
        self.add(question, row.number, row.seed, row.finish, row.answer, place=place)

    def add(  # in the order of a row
        self,
        question: RecordedQuestion,
        number: int,
        seed: int,
        finish: FinishReason,
        answer: Answer | None,
        *,
        place: str,
    ) -> None:
        """Take note of one more trace; `place` is where it was found, for errors.

        Raises:
            RecordingError: it is there already, or its question is another one of the same id.
        """
        self.check_question(question.id, question.prompt_hash, question.gold, place)
        entry = self.entries.get(question.id)
        if entry is None:
            entry = self.entries[question.id] = Entry(question)
        if number in entry.numbers:
            raise RecordingError(
                tried=f"use {place}",
                found=f"trace {number} of question {question.id!r} is there already",
                remedy="Each trace may be recorded once; was a part copied within the pool?",
            )
        entry.numbers.add(number)
        entry.seeds.add(seed)
        entry.complete += finish in COMPLETE
        if answer:
            entry.answers.setdefault(answer.text, answer.key)

    def check_question(
        self, question_id: str, prompt_hash: str, gold: str | None, place: str
    ) -> None:
        """Check that a question is the one that is known by its id, if there is one.

        Raises:
            RecordingError: its prompt or gold answer is another.
        """
        entry = self.entries.get(question_id)
        if entry is None:
            return
        for name, now in (("prompt_hash", prompt_hash), ("gold", gold)):
            before = getattr(entry.question, name)
            if before != now:
                raise RecordingError(
                    tried=f"use {place}",
                    found=f"question {question_id!r} has the {name.replace('_', ' ')} {now!r} "
                    f"there, and {before!r} before",
                    remedy="Another question, prompt or gold answer belongs in another pool.",
                )
