"""Recording complete traces of every question of a data set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from os import PathLike

import anyio
import anyio.to_thread
import numpy as np

from conviction.answers import AnswerKind, is_correct
from conviction.core import FinishReason, Trace
from conviction.engines.base import Capabilities, Engine
from conviction.errors import (
    AllTracesFailedError,
    ContextOverflowError,
    MissingLogprobsError,
    NothingGeneratedError,
    RecordingError,
)
from conviction.evaluation import counted
from conviction.evaluation.plan import PromptedQuestion, RecordingPlan
from conviction.evaluation.workers import Generating, OneEngine, Turns, Workers, recorded
from conviction.events import Event, TraceFinished
from conviction.recordings import PoolMeta, PoolWriter, RecordedTrace
from conviction.recordings.recorder import Recorder
from conviction.recordings.rows import RowMaker
from conviction.tasks import unless_ended
from conviction.thinking import TOP_K

_MOST_FAILED = 3
"""Questions in a row of which every trace fails, until the engine counts as broken."""


@dataclass(slots=True)
class RecordingProgress:
    """How far a recording is.

    Attributes:
        wanted: Traces that the pool shall hold.
        present: Traces of the plan that it holds.
        recorded: Those of them that this run recorded.
        tokens: Their tokens.
        questions: Questions of the plan.
        complete_questions: Those of which nothing is missing.
        notes: What was left out, and why; whole sentences.
    """

    wanted: int = 0
    present: int = 0
    recorded: int = 0
    tokens: int = 0
    questions: int = 0
    complete_questions: int = 0
    notes: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.present == self.wanted


ProgressListener = Callable[[RecordingProgress], None]


async def record(
    plan: RecordingPlan,
    path: str | PathLike[str],
    *,
    engine: Engine | Workers,
    answers: AnswerKind,
    on_progress: ProgressListener | None = None,
    time_limit: float | None = None,
) -> RecordingProgress:
    """Record what a pool lacks of a plan; what it holds already stays.

    All questions share the engine, which is given no more traces at once than it can run. If the
    caller is cancelled, what was finished until then is recorded.

    The engine is started. The pool's file is made if need be. `on_progress` is called after traces
    were recorded, from another thread; after `time_limit` seconds no more is generated.

    Raises:
        RecordingError: the pool cannot be used, or belongs to other questions or settings.
        AllTracesFailedError: no trace of several questions in a row came to an end.
        MissingLogprobsError: the engine gives no log-probabilities, and the plan wants them.
        EngineError: the engine cannot be used at all.
    """
    workers = engine if isinstance(engine, Workers) else OneEngine(engine, answers)
    ends = anyio.current_time() + (inf if time_limit is None else time_limit)
    capabilities, _ = await unless_ended(workers.capabilities, time_limit, None)
    if capabilities is None:
        raise _nothing_said(workers, time_limit)
    if not plan.answers_only and not capabilities.top_k:
        raise _no_confidences(workers.name, capabilities)
    meta = PoolMeta(
        model=capabilities.model,
        top_k=0 if plan.answers_only else min(TOP_K, capabilities.top_k),
        answers=answers.name,
        sampling=plan.sampling,
        source=pool_source(workers.name, plan.origin),
    )
    writer = await anyio.to_thread.run_sync(PoolWriter, path, meta)
    with writer:
        # One question more than fills an engine, so that it is never short of traces.
        at_once = workers.places(ceil(capabilities.concurrency / plan.traces) + 1)
        run = _Recording(plan, writer, workers, at_once, answers, on_progress)
        async with recorded(run.recorder):
            with anyio.CancelScope(deadline=ends) as rest:
                await run.all_questions()
        if rest.cancelled_caught and (failure := workers.failure):
            run.progress.notes.append(f"When the time was up: {failure.problem}.")
        run.check()
    if not writer.path.exists():
        raise RecordingError(
            tried=f"record traces in {writer.path}",
            found="the file was removed while it was written",
            remedy="Run the same command again, and leave the file where it is.",
        )
    return run.progress


def pool_source(engine: str, origin: str | None) -> str:
    """Where the traces of a pool come from: the engine, and the hub, if the questions do."""
    return f"{engine}; questions of {origin}" if origin else engine


def _nothing_said(workers: Workers, time_limit: float | None) -> NothingGeneratedError:
    failure = workers.failure
    return NothingGeneratedError(
        tried=f"record traces from {workers.name}",
        causes=[
            f"within {time_limit or 0:g} s it had not said what it can do",
            *([failure.problem] if failure else []),
        ],
        remedy="Mend the cause, or allow more time, and run the same command again.",
        ended="time",
        engine=failure,
    )


def _no_confidences(engine: str, capabilities: Capabilities) -> MissingLogprobsError:
    reason = capabilities.top_k_reason
    return MissingLogprobsError(
        tried=f"record token confidences from {engine}",
        found="it gives no log-probabilities" + (f": it was {reason}" if reason else ""),
        remedy="Switch them on in the engine, or record answers alone: --answers-only.",
    )


@dataclass
class _Recording:
    """The state of one recording."""

    plan: RecordingPlan
    writer: PoolWriter
    workers: Workers
    at_once: int
    answers: AnswerKind
    on_progress: ProgressListener | None
    failed: list[AllTracesFailedError] = field(default_factory=list[AllTracesFailedError])
    unknown: int = 0
    without_logprobs: int = 0

    def __post_init__(self) -> None:
        plan, writer = self.plan, self.writer
        self.confidences = writer.meta.top_k > 0
        self.missing: list[tuple[PromptedQuestion, tuple[int, ...]]] = []
        self.left: dict[str, int] = {}
        self.progress = RecordingProgress(
            wanted=plan.traces * len(plan.asked), questions=len(plan.asked)
        )
        for asked in plan.asked:
            self._look_at(asked)
        rows = RowMaker(writer, self.answers, grade=is_correct, keep_text=plan.keep_text)
        self.recorder = Recorder(writer, rows, on_recorded=self._count)

    async def all_questions(self) -> None:
        """Generate everything that is missing."""
        if self.on_progress:
            self.on_progress(self.progress)
        await Turns().each(self.missing, self._question, at_once=self.at_once)

    def check(self) -> None:
        """Note what was left out.

        Raises:
            AllTracesFailedError: nothing was recorded, because every trace failed.
        """
        self.progress.notes += self.workers.notes
        if self.failed and not self.progress.recorded:
            raise self.failed[0]
        if self.unknown:
            self.progress.notes.append(
                f"All confidences of {counted(self.unknown, 'trace')} are unknown: the engine "
                "left its log-probabilities out."
            )
        if self.without_logprobs:
            self.progress.notes.append(
                f"Recorded without the log-probability of each token: "
                f"{counted(self.without_logprobs, 'trace')}; the engine gave none."
            )

    def _look_at(self, asked: PromptedQuestion) -> None:
        """See what is missing of a question."""
        question = asked.recorded
        self.writer.check_question(question.id, question.prompt_hash, question.gold)
        present = self.writer.numbers(question.id)
        missing = tuple(n for n in range(self.plan.traces) if n not in present)
        self.progress.present += self.plan.traces - len(missing)
        if missing:
            self.missing.append((asked, missing))
            self.left[question.id] = len(missing)
        else:
            self.progress.complete_questions += 1

    def _count(self, rows: list[RecordedTrace]) -> None:
        """Count what got onto the disk; called in the recorder's thread."""
        progress = self.progress
        for row in rows:
            progress.present += 1
            progress.recorded += 1
            progress.tokens += row.tokens
            self.left[row.question_id] -= 1
            progress.complete_questions += self.left[row.question_id] == 0
        self.failed.clear()
        if self.on_progress:
            self.on_progress(progress)

    async def _question(self, missing: tuple[PromptedQuestion, tuple[int, ...]]) -> None:
        asked, numbers = missing
        causes: list[str] = []
        try:
            await self._generate(asked, numbers, causes)
        except ContextOverflowError as error:
            self.progress.notes.append(f"Question {asked.question.id!r} was left out: {error}")
        except AllTracesFailedError as error:
            self.progress.notes.append(f"Question {asked.question.id!r}: {error.found}.")
            if self.recorder.failure is None:  # Else that ended it, and is raised below.
                self.failed.append(error)
            if len(self.failed) >= _MOST_FAILED:
                raise
        else:
            if causes:
                self.progress.notes.append(
                    f"{counted(len(causes), 'trace')} of question {asked.question.id!r} failed: "
                    f"{'; '.join(dict.fromkeys(causes))}"
                )
        if self.recorder.failure is not None:
            raise self.recorder.failure

    async def _generate(
        self, asked: PromptedQuestion, numbers: tuple[int, ...], causes: list[str]
    ) -> None:
        full = anyio.Event()

        def on_event(event: Event) -> None:
            if self.recorder.failure is not None:
                full.set()
            elif isinstance(event, TraceFinished) and event.trace.complete:
                self._record(asked, event.trace)
            elif isinstance(event, TraceFinished) and event.trace.finish is FinishReason.ERROR:
                causes.append(event.trace.error)

        plan = self.plan
        generating = Generating(
            asked.question,
            numbers,
            plan.sampling,
            seed=plan.seed,
            restarts=plan.restarts,
            confidences=self.confidences,
            logprobs=plan.logprobs,
        )
        await self.workers.generate(generating, on_event=on_event, interrupt=full)

    def _record(self, asked: PromptedQuestion, trace: Trace) -> None:
        if self.confidences and not np.isfinite(trace.confidences).any():
            self.unknown += 1
        if self.plan.logprobs and trace.logprobs is None:
            self.without_logprobs += 1
        self.recorder.add(asked.recorded, trace, trace.id)
