"""From finished traces to rows of a pool: which answers are equal, and which are right."""

from collections.abc import Callable, Mapping

from conviction.answers import AnswerKind, Grouping
from conviction.core import Answer, Trace
from conviction.recordings.file import PoolWriter
from conviction.recordings.index import Index
from conviction.recordings.schema import RecordedQuestion, RecordedTrace

Grade = Callable[[AnswerKind, str, str], bool]
"""Whether an answer, the second argument, means the same as a gold answer, the third."""


class Labels:
    """Gives the answers to one question their keys, and keeps to those that are recorded.

    Args:
        answer_kind: Compares the answers.
        recorded: The key of each answer that is recorded already.
    """

    def __init__(self, answer_kind: AnswerKind, recorded: Mapping[str, str]) -> None:
        self._grouping = Grouping(answer_kind)
        self._known = dict(recorded)
        self._recorded_keys: dict[str, str] = {}
        # The answer that founded a class comes first, so that it represents the class again.
        founding = sorted(recorded, key=lambda text: answer_kind.canonical(text) != recorded[text])
        for text in founding:
            key = self._grouping.classify(text).key
            self._recorded_keys.setdefault(key, recorded[text])

    def answer(self, text: str) -> Answer:
        """The answer with its key; may wait for a comparison."""
        if text not in self._known:
            key = self._grouping.classify(text).key
            self._known[text] = self._recorded_keys.get(key, key)
        return Answer(text, self._known[text])


class RowMaker:
    """Makes rows for a pool; may wait for comparisons.

    Args:
        recorded: The pool, or what is known of it.
        grade: Tells right answers where there is a gold one; None records no grades.
        keep_text: Whether what a trace wrote is recorded.
    """

    def __init__(
        self,
        recorded: PoolWriter | Index,
        answer_kind: AnswerKind,
        *,
        grade: Grade | None = None,
        keep_text: bool = True,
    ) -> None:
        self._recorded = recorded
        self._confidences = recorded.meta is not None and recorded.meta.top_k > 0
        self._kind = answer_kind
        self._grade = grade
        self._keep_text = keep_text
        self._labels: dict[str, Labels] = {}
        self._grades: dict[tuple[str, str], bool] = {}

    def row(self, question: RecordedQuestion, trace: Trace, number: int) -> RecordedTrace:
        """The row of a trace; its answer is given its key and its grade anew."""
        answer = self._answer(question, trace)
        return RecordedTrace(
            question_id=question.id,
            number=number,
            prompt_hash=question.prompt_hash,
            question=question.text,
            gold=question.gold,
            seed=trace.seed,
            text=trace.text if self._keep_text else None,
            answer=answer,
            correct=self._correct(answer, question.gold),
            finish=trace.finish,
            tokens=trace.tokens,
            prompt_tokens=trace.prompt_tokens,
            lost_tokens=trace.lost_tokens,
            confidences=trace.confidences if self._confidences else None,
            logprobs=trace.logprobs,
            started=trace.started,
            ended=trace.ended,
        )

    def _answer(self, question: RecordedQuestion, trace: Trace) -> Answer | None:
        if trace.answer is None:
            return None
        if question.id not in self._labels:
            recorded = self._recorded.answers(question.id)
            self._labels[question.id] = Labels(self._kind, recorded)
        return self._labels[question.id].answer(trace.answer.text)

    def _correct(self, answer: Answer | None, gold: str | None) -> bool | None:
        if self._grade is None or gold is None:
            return None
        if answer is None:
            return False
        pair = (answer.text, gold)
        if pair not in self._grades:
            self._grades[pair] = self._grade(self._kind, *pair)
        return self._grades[pair]
