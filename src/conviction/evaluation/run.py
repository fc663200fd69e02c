"""Evaluation: a whole data set through the live driver, all questions sharing one engine."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike

import anyio
import anyio.to_thread

from conviction.answers import AnswerKind, compared, is_correct
from conviction.core import FinishReason, Trace
from conviction.engines.base import Engine
from conviction.errors import (
    AllTracesFailedError,
    AnswerError,
    ContextOverflowError,
    InvalidSettingError,
    NothingGeneratedError,
    RecordingError,
)
from conviction.evaluation.plan import EvaluationPlan, PromptedQuestion
from conviction.evaluation.recording import pool_source
from conviction.evaluation.results import QuestionResult, RunDescription
from conviction.evaluation.stored import RunWriter
from conviction.evaluation.workers import OneEngine, Thinking, Turns, Workers, recorded
from conviction.events import Event, TraceFinished
from conviction.recordings import PoolMeta, PoolWriter
from conviction.recordings.recorder import Recorder
from conviction.recordings.rows import RowMaker
from conviction.sharing import Place, Slots
from conviction.thinking import TOP_K
from conviction.verdict import Usage, Verdict

_MOST_FAILED = 3
"""Failed questions in a row until the engine counts as gone; where questions share a total, failed
traces in a row of as many whole budgets."""


@dataclass(slots=True)
class EvaluationProgress:
    """How far an evaluation is.

    Attributes:
        questions: Questions of the plan.
        results: Those that came to an end, failed ones too.
        kept: How many of them were there before this run of the program.
        sharing: What the questions share, where there is a total of tokens.
        notes: What the reader should know; whole sentences.
    """

    questions: int = 0
    results: list[QuestionResult] = field(default_factory=list[QuestionResult])
    kept: int = 0
    sharing: Slots | None = None
    notes: list[str] = field(default_factory=list[str])

    @property
    def complete(self) -> bool:
        """Whether every question has its verdict."""
        return sum(not result.failed for result in self.results) == self.questions

    @property
    def settled(self) -> int:
        """Questions of which the policy settled on an answer."""
        return sum(result.settled for result in self.results)

    @property
    def contested(self) -> int:
        """Questions that more than their first traces have not settled, done or not."""
        ended = sum(result.contested for result in self.results)
        return ended + (self.sharing.contested if self.sharing else 0)


ProgressListener = Callable[[EvaluationProgress], None]


async def evaluate(
    plan: EvaluationPlan,
    path: str | PathLike[str],
    *,
    engine: Engine | Workers,
    answers: AnswerKind,
    pool: str | PathLike[str] | None = None,
    on_progress: ProgressListener | None = None,
) -> EvaluationProgress:
    """Ask every question that a run has no verdict for, and keep each verdict as it comes.

    If the caller is cancelled, or an error ends the run, every verdict until then is on disk.

    The engine is started. The run's folder is made if need be; a pool also records all traces.
    `on_progress` is called at the beginning and after every question; where questions share a total
    of tokens, also after every trace.

    Raises:
        InvalidSettingError: the folder holds a run of other settings or data, or a total of tokens
            comes with more than one engine.
        RecordingError: the run or the pool cannot be written, or was removed meanwhile.
        AllTracesFailedError: no trace of several questions in a row came to an end.
        MissingLogprobsError: the policy needs token confidence and the engine gives none.
        EngineError: the engine cannot be used at all.
    """
    workers = engine if isinstance(engine, Workers) else OneEngine(engine, answers)
    if plan.total_tokens is not None and not isinstance(workers, OneEngine):
        raise many_engines()
    capabilities = await workers.capabilities()
    description = plan.description(workers.name, capabilities)
    with await anyio.to_thread.run_sync(RunWriter, path, description) as writer:
        meta = PoolMeta(
            model=capabilities.model,
            top_k=min(TOP_K, capabilities.top_k),
            answers=plan.answers,
            sampling=plan.sampling,
            source=pool_source(workers.name, plan.origin),
        )
        async with _recorder(plan, pool, meta, answers) as recorder:
            run = _Evaluation(plan, writer, workers, answers, recorder, on_progress)
            run.note_versions(description)
            if plan.total_tokens is not None:
                run.progress.sharing = Slots(
                    capabilities.concurrency,
                    total=plan.total_tokens,
                    spent=writer.spent,
                    longest=plan.sampling.max_tokens,
                )
            try:
                await run.all_questions(workers.places(plan.at_once(capabilities)))
                await anyio.to_thread.run_sync(writer.check_there)
            finally:
                run.keep_spent()
                run.progress.notes += workers.notes
    return run.progress


def many_engines() -> InvalidSettingError:
    """The error of a total of tokens with more than one engine."""
    return InvalidSettingError(
        tried="share a total of tokens among questions on many engines",
        found="whose turn it is would have to be decided for all traces in one place",
        remedy="Leave the total out, or use one engine in this process; one can have several "
        "servers behind it: --base-url, repeated.",
    )


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
        rows = RowMaker(writer, answers, grade=is_correct)
        async with recorded(Recorder(writer, rows)) as recorder:
            yield recorder


@dataclass
class _Evaluation:
    """The state of one evaluation."""

    plan: EvaluationPlan
    writer: RunWriter
    workers: Workers
    answers: AnswerKind
    recorder: Recorder | None
    on_progress: ProgressListener | None
    failed_in_a_row: int = 0
    failed_traces_in_a_row: int = 0
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        kept = list(self.writer.kept)
        self.progress = EvaluationProgress(len(self.plan.asked), kept, len(kept))

    def note_versions(self, now: RunDescription) -> None:
        """Note if another version began the run."""
        before, after = (one.versions.get("conviction") for one in (self.writer.before, now))
        if before != after:
            self.progress.notes.append(
                f"The run was begun with conviction {before} and goes on with {after}."
            )

    async def all_questions(self, at_once: int) -> None:
        """Ask everything that has no verdict yet."""
        self._tell()
        there = {result.id for result in self.progress.results}
        left = [asked for asked in self.plan.asked if asked.recorded.id not in there]
        sharing = self.progress.sharing
        # All have their place before the first begins.
        places = [sharing.place() if sharing else None for _ in left]

        async def work(item: tuple[PromptedQuestion, Place | None]) -> None:
            asked, place = item
            with place or nullcontext():
                await self._question(asked, place)

        await self.turns.each(zip(left, places, strict=True), work, at_once=at_once)

    def keep_spent(self) -> None:
        """Keep what was spent on all traces, where there is a total."""
        if self.progress.sharing:
            self.writer.spend(self.progress.sharing.spent)

    def _trace_ended(self, trace: Trace) -> None:
        """Keep what was spent, and see whether the engine is still there."""
        if self.progress.sharing is None:
            return
        try:
            self.keep_spent()
        except RecordingError as error:
            self.turns.fail(error)
        failed = trace.finish is FinishReason.ERROR
        self.failed_traces_in_a_row = self.failed_traces_in_a_row + 1 if failed else 0
        # All questions are under way: an engine that goes would leave each with too few votes.
        if self.failed_traces_in_a_row == _MOST_FAILED * self.plan.policy.budget:
            self.turns.fail(
                AllTracesFailedError(
                    tried=f"think with {self.failed_traces_in_a_row} traces on "
                    f"{self.workers.name}, one after another",
                    causes=[trace.error],
                    remedy="Mend the cause and run the same command again.",
                )
            )
        self._tell()

    async def _question(self, asked: PromptedQuestion, place: Place | None) -> None:
        watch = _Watch(asked, self.recorder, self._trace_ended)
        began = anyio.current_time()
        gone: Exception | None = None
        try:
            verdict = await self.workers.think(self._thinking(asked), on_event=watch, place=place)
            # A verdict that is there must not be lost to a Ctrl-C.
            with anyio.CancelScope(shield=True):
                await self._keep(await self._graded(asked, verdict))
            self.failed_in_a_row = 0
        except (AllTracesFailedError, ContextOverflowError, AnswerError) as error:
            seconds = anyio.current_time() - began
            with anyio.CancelScope(shield=True):
                await self._keep(watch.failed(error.problem, seconds))
            slow = isinstance(error, NothingGeneratedError) and error.unexplained
            if isinstance(error, AllTracesFailedError) and not slow:
                self.failed_in_a_row += 1
                gone = error if self.failed_in_a_row >= _MOST_FAILED else None
        if gone is not None:
            raise gone
        if self.recorder is not None and self.recorder.failure is not None:
            raise self.recorder.failure

    def _thinking(self, asked: PromptedQuestion) -> Thinking:
        plan = self.plan
        return Thinking(
            asked.question,
            plan.policy,
            plan.sampling,
            seed=plan.seed,
            restarts=plan.restarts,
            time_limit=plan.time_limit,
            whole=self.recorder is not None,
        )

    async def _graded(self, asked: PromptedQuestion, verdict: Verdict) -> QuestionResult:
        gold, answer, warnings = asked.recorded.gold, verdict.answer, verdict.warnings
        correct = None if gold is None else False
        if gold is not None and answer is not None:
            # May take a while, so it leaves the event loop.
            equal = await anyio.to_thread.run_sync(compared, self.answers, answer, gold)
            correct = bool(equal)
            if equal is None:
                told = "The answer could not be compared with the right one, and counts as wrong."
                warnings = (*warnings, told)
        return QuestionResult(
            id=asked.recorded.id,
            question=question_hash(asked.recorded.text),
            gold=gold,
            answer=answer,
            correct=correct,
            share=verdict.share,
            ended=verdict.ended,
            tokens=verdict.usage.generated,
            usage=verdict.usage,
            traces=len(verdict.traces),
            seconds=verdict.seconds,
            warnings=warnings,
            lead=verdict.lead,
            votes=len(verdict.tally.voters),
        )

    async def _keep(self, result: QuestionResult) -> None:
        """Count a result once it is on disk."""
        await anyio.to_thread.run_sync(self.writer.append, result)
        self.progress.results.append(result)
        self._tell()

    def _tell(self) -> None:
        if self.on_progress:
            self.on_progress(self.progress)


@dataclass
class _Watch:
    """Listens to one question: records its traces, and counts the tokens of a failure."""

    asked: PromptedQuestion
    recorder: Recorder | None
    on_trace: Callable[[Trace], None]
    traces: int = 0
    tokens: int = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TraceFinished):
            return
        trace = event.trace
        self.traces += 1
        self.tokens += trace.tokens + trace.lost_tokens
        if self.recorder and trace.tokens and trace.finish is not FinishReason.ERROR:
            self.recorder.add(self.asked.recorded, trace)
        self.on_trace(trace)

    def failed(self, reason: str, seconds: float) -> QuestionResult:
        """The result of a question that has no verdict."""
        question = self.asked.recorded
        return QuestionResult(
            id=question.id,
            question=question_hash(question.text),
            gold=question.gold,
            answer=None,
            correct=None,
            share=0.0,
            ended="failed",
            tokens=self.tokens,
            usage=Usage(failed=self.tokens),
            traces=self.traces,
            seconds=seconds,
            error=reason,
        )


def question_hash(text: str) -> str:
    """A hash of a question's words, 16 hexadecimal digits."""
    return sha256(text.encode()).hexdigest()[:16]
