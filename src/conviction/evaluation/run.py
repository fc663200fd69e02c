"""Evaluation: a whole data set through the live driver, all questions sharing one engine."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike

import anyio
import anyio.to_thread

from conviction.answers.base import AnswerKind
from conviction.core import FinishReason
from conviction.engines.base import Engine
from conviction.errors import AllTracesFailedError, AnswerError, ContextOverflowError
from conviction.evaluation.folder import RunWriter
from conviction.evaluation.grading import is_correct
from conviction.evaluation.plan import EvaluationPlan
from conviction.evaluation.recording import Asked, pool_source
from conviction.evaluation.results import QuestionResult, RunDescription
from conviction.events import Event, TraceFinished
from conviction.recordings import PoolMeta, PoolWriter
from conviction.recordings.recorder import Recorder
from conviction.recordings.rows import RowMaker
from conviction.thinking import TOP_K, deliberate
from conviction.verdict import Usage, Verdict

_MOST_FAILED = 3
"""Questions in a row of which every trace fails, until the engine counts as gone."""


@dataclass(slots=True)
class EvaluationProgress:
    """How far an evaluation is.

    Attributes:
        questions: Questions of the plan.
        results: Those that came to an end, failed ones too.
        kept: How many of them were there before this run of the program.
        notes: What the reader should know; whole sentences.
    """

    questions: int = 0
    results: list[QuestionResult] = field(default_factory=list[QuestionResult])
    kept: int = 0
    notes: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """Whether every question has its verdict."""
        return sum(not result.failed for result in self.results) == self.questions


ProgressListener = Callable[[EvaluationProgress], None]


async def evaluate(
    plan: EvaluationPlan,
    path: str | PathLike[str],
    *,
    engine: Engine,
    answers: AnswerKind,
    pool: str | PathLike[str] | None = None,
    on_progress: ProgressListener | None = None,
) -> EvaluationProgress:
    """Ask every question that a run has no verdict for, and keep each verdict as it comes.

    If the caller is cancelled, or an error ends the run, every verdict until then is on disk.

    Args:
        plan: What to evaluate.
        path: The run's folder; made if need be.
        engine: Generates the traces; already started.
        answers: Finds and compares answers.
        pool: Also record all traces in this pool.
        on_progress: Called at the beginning and after every question.

    Returns:
        All results.

    Raises:
        InvalidSettingError: the folder holds a run of other settings or data.
        RecordingError: the run or the pool cannot be written.
        AllTracesFailedError: no trace of several questions in a row came to an end.
        MissingLogprobsError: the policy needs token confidence and the engine gives none.
        EngineError: the engine cannot be used at all.
    """
    capabilities = await engine.capabilities()
    description = plan.description(engine.name, capabilities)
    with await anyio.to_thread.run_sync(RunWriter, path, description) as writer:
        meta = PoolMeta(
            model=capabilities.model,
            top_k=min(TOP_K, capabilities.top_k),
            answers=plan.answers,
            sampling=plan.sampling,
            source=pool_source(engine, plan.origin),
        )
        async with _recorder(plan, pool, meta, answers) as recorder:
            run = _Run(
                plan,
                writer,
                engine=engine,
                answers=answers,
                recorder=recorder,
                on_progress=on_progress,
            )
            run.note_versions(description)
            await run.all_questions(plan.at_once(capabilities))
    return run.progress


@asynccontextmanager
async def _recorder(
    plan: EvaluationPlan, pool: str | PathLike[str] | None, meta: PoolMeta, answers: AnswerKind
) -> AsyncGenerator[Recorder | None]:
    if pool is None:
        yield None
        return
    with await anyio.to_thread.run_sync(PoolWriter, pool, meta) as writer:
        for asked in plan.asked:
            question = asked.recorded
            writer.check_question(question.id, question.prompt_hash, question.gold)
        recorder = Recorder(writer, RowMaker(writer, answers, grade=is_correct))
        recorder.start()
        try:
            yield recorder
        finally:
            # What is finished gets onto the disk, also if we are being cancelled.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(recorder.finish)
        if recorder.failure is not None:
            raise recorder.failure


class _Run:
    """The state of one evaluation."""

    def __init__(
        self,
        plan: EvaluationPlan,
        writer: RunWriter,
        *,
        engine: Engine,
        answers: AnswerKind,
        recorder: Recorder | None,
        on_progress: ProgressListener | None,
    ) -> None:
        self._plan = plan
        self._writer = writer
        self._engine = engine
        self._answers = answers
        self._recorder = recorder
        self._on_progress = on_progress
        self._failed_in_a_row = 0
        kept = list(writer.kept)
        self.progress = EvaluationProgress(len(plan.asked), kept, len(kept))

    def note_versions(self, now: RunDescription) -> None:
        """Say so if the run was begun with another program."""
        before = self._writer.before.versions.get("conviction")
        if before != now.versions["conviction"]:
            self.progress.notes.append(
                f"The run was begun with conviction {before} and goes on with "
                f"{now.versions['conviction']}."
            )

    async def all_questions(self, at_once: int) -> None:
        """Ask everything that has no verdict yet."""
        self._tell()
        there = {result.id for result in self.progress.results}
        places = anyio.Semaphore(at_once)
        failures: list[Exception] = []

        async def work(asked: Asked) -> None:
            try:
                await self._question(asked)
            except Exception as error:  # noqa: BLE001  # raised below as it is, not in a group
                failures.append(error)
                tasks.cancel_scope.cancel()
            finally:
                places.release()

        async with anyio.create_task_group() as tasks:
            for asked in self._plan.asked:
                if asked.recorded.id not in there:
                    await places.acquire()
                    tasks.start_soon(work, asked)
        if failures:
            raise failures[0]

    async def _question(self, asked: Asked) -> None:
        watch = _Watch(asked, self._recorder)
        began = anyio.current_time()
        gone: Exception | None = None
        try:
            verdict = await self._verdict(asked, watch)
            # A verdict that is there must not be lost to a Ctrl-C.
            with anyio.CancelScope(shield=True):
                await self._keep(await self._graded(asked, verdict))
            self._failed_in_a_row = 0
        except (AllTracesFailedError, ContextOverflowError, AnswerError) as error:
            seconds = anyio.current_time() - began
            reason = f"{error.tried}: {error.found}"
            with anyio.CancelScope(shield=True):
                await self._keep(watch.failed(reason, seconds))
            if isinstance(error, AllTracesFailedError):
                self._failed_in_a_row += 1
                gone = error if self._failed_in_a_row >= _MOST_FAILED else None
        if gone is not None:
            raise gone
        if self._recorder is not None and self._recorder.failure is not None:
            raise self._recorder.failure

    async def _verdict(self, asked: Asked, watch: "_Watch") -> Verdict:
        plan = self._plan
        return await deliberate(
            asked.question,
            engine=self._engine,
            policy=plan.policy,
            answers=self._answers,
            sampling=plan.sampling,
            seed=plan.seed,
            restarts=plan.restarts,
            time_limit=plan.time_limit,
            on_event=watch,
        )

    async def _graded(self, asked: Asked, verdict: Verdict) -> QuestionResult:
        gold = asked.recorded.gold
        correct = None
        if gold is not None:
            # May wait for another process, so it leaves the event loop.
            correct = await anyio.to_thread.run_sync(
                is_correct, self._answers, verdict.answer, gold
            )
        return QuestionResult(
            id=asked.recorded.id,
            question=question_hash(asked.recorded.text),
            gold=gold,
            answer=verdict.answer,
            correct=correct,
            share=verdict.share,
            ended=verdict.ended,
            tokens=verdict.usage.generated,
            usage=verdict.usage,
            traces=len(verdict.traces),
            seconds=verdict.seconds,
            warnings=verdict.warnings,
            lead=verdict.lead,
            votes=len(verdict.tally.voters),
        )

    async def _keep(self, result: QuestionResult) -> None:
        """Count a result once it is on disk."""
        await anyio.to_thread.run_sync(self._writer.append, result)
        self.progress.results.append(result)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(self.progress)


class _Watch:
    """Listens to one question: records its traces, and knows what a failure cost."""

    def __init__(self, asked: Asked, recorder: Recorder | None) -> None:
        self._asked = asked
        self._recorder = recorder
        self._traces = 0
        self._tokens = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TraceFinished):
            return
        trace = event.trace
        self._traces += 1
        self._tokens += trace.tokens + trace.lost_tokens
        if self._recorder and trace.tokens and trace.finish is not FinishReason.ERROR:
            self._recorder.add(self._asked.recorded, trace)

    def failed(self, reason: str, seconds: float) -> QuestionResult:
        """The result of a question that has no verdict."""
        question = self._asked.recorded
        return QuestionResult(
            id=question.id,
            question=question_hash(question.text),
            gold=question.gold,
            answer=None,
            correct=None,
            share=0.0,
            ended="failed",
            tokens=self._tokens,
            usage=Usage(failed=self._tokens),
            traces=self._traces,
            seconds=seconds,
            error=reason,
        )


def question_hash(text: str) -> str:
    """A hash of a question's words, 16 hexadecimal digits."""
    return sha256(text.encode()).hexdigest()[:16]
