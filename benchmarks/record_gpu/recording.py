"""Records what a pool lacks of a plan, with a model that continues many rows at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from batches import Finished, Wanted, generate
from decoder import Decoder

from conviction.answers import AnswerKind
from conviction.core import Answer, Trace
from conviction.evaluation import is_correct
from conviction.evaluation.recording import (
    ProgressListener,
    PromptedQuestion,
    RecordingPlan,
    RecordingProgress,
)
from conviction.recordings import PoolMeta, PoolWriter, RecordedTrace
from conviction.recordings.recorder import Recorder
from conviction.recordings.rows import RowMaker
from conviction.thinking import TOP_K, trace_seed


@dataclass(frozen=True, slots=True)
class Missing:
    """Traces of a question that the pool lacks.

    Attributes:
        asked: The question.
        numbers: Their numbers.
        prompt: The question's tokens.
    """

    asked: PromptedQuestion
    numbers: tuple[int, ...]
    prompt: Sequence[int]


def record(
    plan: RecordingPlan,
    path: Path,
    *,
    model: str,
    source: str,
    load: Callable[[], Decoder],
    answers: AnswerKind,
    batch: int,
    on_progress: ProgressListener,
) -> RecordingProgress:
    """Record what is missing; what is there already stays.

    Args:
        plan: What to record.
        path: The pool's folder; made if need be.
        model: Name of the model, as the pool keeps it.
        source: What generates the traces, for people.
        load: Loads the model; only called where something is missing.
        answers: Finds and compares answers.
        batch: Traces at once.
        on_progress: Called after traces were recorded, from another thread.

    Raises:
        RecordingError: the pool cannot be used, or belongs to other questions or settings.
        ModelError: the model cannot be loaded.
    """
    if plan.origin:
        source += f"; questions of {plan.origin}"
    meta = PoolMeta(model, TOP_K, answers.name, plan.sampling, source)
    with PoolWriter(path, meta) as writer:
        run = _Run(plan, writer, answers, on_progress)
        on_progress(run.progress)
        if run.missing:
            run.record(load(), batch)
        writer.compact()
    return run.progress


class _Run:
    """The state of one recording."""

    def __init__(
        self,
        plan: RecordingPlan,
        writer: PoolWriter,
        answers: AnswerKind,
        on_progress: ProgressListener,
    ) -> None:
        self._plan = plan
        self._answers = answers
        self._on_progress = on_progress
        self._begun: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self.missing: list[tuple[PromptedQuestion, tuple[int, ...]]] = []
        self.progress = RecordingProgress(
            wanted=plan.traces * len(plan.asked), questions=len(plan.asked)
        )
        for asked in plan.asked:
            self._look_at(asked, writer)
        rows = RowMaker(writer, answers, grade=is_correct, keep_text=plan.keep_text)
        self._recorder = Recorder(writer, rows, on_recorded=self._count)

    def record(self, decoder: Decoder, batch: int) -> None:
        """Generate and record everything that is missing."""
        fitting = list(self._fitting(decoder))
        self._recorder.start()
        try:
            for pieces in batches(fitting, batch):
                self._batch(decoder, pieces)
                if self._recorder.failure is not None:
                    break
        finally:
            # What is finished gets onto the disk, also after Ctrl-C.
            self._recorder.finish()
        if self._recorder.failure is not None:
            raise self._recorder.failure

    def _look_at(self, asked: PromptedQuestion, writer: PoolWriter) -> None:
        """See what is missing of a question."""
        question = asked.recorded
        writer.check_question(question.id, question.prompt_hash, question.gold)
        present = writer.numbers(question.id)
        numbers = tuple(n for n in range(self._plan.traces) if n not in present)
        self.progress.present += self._plan.traces - len(numbers)
        self._left[question.id] = len(numbers)
        if numbers:
            self.missing.append((asked, numbers))
        else:
            self.progress.complete_questions += 1

    def _fitting(self, decoder: Decoder) -> Iterator[Missing]:
        """What is missing, in tokens, without what the model cannot hold."""
        room = decoder.context - self._plan.sampling.max_tokens
        for asked, numbers in self.missing:
            prompt = decoder.prompt(asked.question.messages)
            if len(prompt) <= room:
                yield Missing(asked, numbers, prompt)
            else:
                self.progress.notes.append(
                    f"Question {asked.question.id!r} was left out: its {len(prompt):,} tokens and "
                    f"{self._plan.sampling.max_tokens:,} new ones do not fit the model's context "
                    f"of {decoder.context:,}."
                )

    def _batch(self, decoder: Decoder, pieces: Sequence[Missing]) -> None:
        began = perf_counter()
        for piece in pieces:
            self._begun.setdefault(piece.asked.question.id, began)
        owners = [(piece, number) for piece in pieces for number in piece.numbers]
        wanted = [
            Wanted(piece.prompt, [self._seed(piece, number) for number in piece.numbers])
            for piece in pieces
        ]
        with closing(generate(decoder, wanted, self._plan.sampling, top_k=TOP_K)) as finished:
            for one in finished:
                piece, number = owners[one.place]
                trace = self._trace(decoder, piece, number, one, began)
                self._recorder.add(piece.asked.recorded, trace, number)

    def _trace(
        self, decoder: Decoder, piece: Missing, number: int, one: Finished, began: float
    ) -> Trace:
        text = decoder.text(one.tokens.tolist())
        found = self._answers.extract(text)
        opened = self._begun[piece.asked.question.id]
        return Trace(
            id=number,
            finish=one.finish,
            tokens=one.tokens.size,
            text=text,
            confidences=one.confidences,
            # Its key is given where it is compared with the other answers.
            answer=None if found is None else Answer(found, found),
            seed=self._seed(piece, number),
            prompt_tokens=len(piece.prompt),
            started=began - opened,
            ended=perf_counter() - opened,
            logprobs=one.logprobs if self._plan.logprobs else None,
        )

    def _seed(self, piece: Missing, number: int) -> int:
        return trace_seed(self._plan.seed, piece.asked.question.id, number)

    def _count(self, rows: list[RecordedTrace]) -> None:
        """Count what got onto the disk; called in the recorder's thread."""
        progress = self.progress
        for row in rows:
            progress.present += 1
            progress.recorded += 1
            progress.tokens += row.tokens
            self._left[row.question_id] -= 1
            progress.complete_questions += self._left[row.question_id] == 0
        self._on_progress(progress)


def batches(missing: Sequence[Missing], size: int) -> Iterator[list[Missing]]:
    """Batches of at most `size` traces, prompts of like length together, the longest first.

    So little is spent on padding, and a batch that does not fit the memory is the first one.
    """
    batch: list[Missing] = []
    room = size
    for one in sorted(missing, key=lambda one: -len(one.prompt)):
        numbers = one.numbers
        while numbers:
            batch.append(Missing(one.asked, numbers[:room], one.prompt))
            numbers, room = numbers[room:], room - len(numbers[:room])
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch
