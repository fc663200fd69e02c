"""`conviction record`: complete traces of every question of a data set, kept on disk."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from conviction.answers import kind
from conviction.backends import room_for
from conviction.cli.asking import cancel_on_signal, check_texts, with_prompts
from conviction.cli.clusters import RayOptions
from conviction.cli.download_bar import prepared
from conviction.cli.engine_options import EngineOptions
from conviction.cli.recording_bar import recording_bar
from conviction.cli.terminal import safe
from conviction.cli.think import FAILED, INTERRUPTED, GenerationOptions
from conviction.cli.whole_numbers import WHOLE
from conviction.core import InvalidSettingError, require, require_whole
from conviction.evaluation.datasets import Dataset, Fields, load
from conviction.evaluation.grading import is_correct
from conviction.evaluation.recording import (
    ProgressListener,
    RecordingPlan,
    RecordingProgress,
)
from conviction.evaluation.recording import (
    record as record_traces,
)
from conviction.evaluation.wording import counted
from conviction.recordings.importing import import_files
from conviction.tasks import helpers

if TYPE_CHECKING:
    from conviction.engines.base import Engine
    from conviction.ray.workers import RayWorkers


@Parameter(name="*", group="Data")
@dataclass(frozen=True)
class DataOptions:
    """Which questions, and where a row holds what."""

    subset: str | None = None
    "Subset of a data set on the hub; needed if it has several."
    split: str | None = None
    "Split of a data set on the hub; needed if it has several."
    limit: Annotated[int | None, WHOLE] = None
    "The most questions to take, from the beginning."
    question_field: str | None = None
    "Field with the question; default: question, problem, input, prompt or query."
    answer_field: str | None = None
    "Field with the right answer; default: answer, target, gold_answer, gold, …"
    id_field: str | None = None
    "Field with the id; default: id, question_id or unique_id, else the row's number."
    no_gold: Annotated[bool, Parameter(negative="")] = False
    "Read no right answers; traces are then not graded."
    drop_duplicates: Annotated[bool, Parameter(negative="")] = False
    "Leave out a question that stood there before, in place of refusing the data set."

    def load(self, data: str, console: Console) -> Dataset:
        """The questions; what is being waited for shows on `console`.

        Raises:
            The same errors as `conviction.evaluation.datasets.load`.
        """
        if self.limit is not None:
            require_whole("limit", self.limit, low=1)
        with console.status(f"Reading {escape(safe(data))} …"):
            found = load(
                data,
                Fields(self.question_field, self.answer_field, self.id_field),
                gold=not self.no_gold,
                drop_duplicates=self.drop_duplicates,
                limit=self.limit,
                subset=self.subset,
                split=self.split,
            )
        if found.origin:
            questions = f"{counted(len(found.questions), 'question')} of {found.origin}"
            console.print(escape(safe(questions)), style="dim")
        return found


@Parameter(name="*", group="Generation")
@dataclass(frozen=True)
class RecordingGeneration(GenerationOptions):
    """How traces are generated."""

    time_limit: float | None = None
    "Seconds after which recording stops; the same command goes on later."


_DATA, _GENERATION, _ENGINE = DataOptions(), RecordingGeneration(), EngineOptions()
_RAY = RayOptions()


def record(
    data: str | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    traces: Annotated[int, Parameter(alias="-n"), WHOLE] = 16,
    import_: Annotated[list[Path] | None, Parameter(name="--import", negative="")] = None,
    text: bool = True,
    answers_only: Annotated[bool, Parameter(negative="")] = False,
    logprobs: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative="")] = False,
    dataset: DataOptions = _DATA,
    engine: EngineOptions = _ENGINE,
    generation: RecordingGeneration = _GENERATION,
    ray: RayOptions = _RAY,
) -> int:
    """Record complete traces of every question of a data set.

    The same command goes on where it was interrupted, however it ended.

    Args:
        data: A .jsonl, .csv or .parquet file with one question a row; or a data set on the
            Hugging Face hub, hf://OWNER/NAME, with @REVISION for a certain version.
        output: The pool: a folder, made if need be.
        traces: Traces of each question.
        import_: Bring in a file of another program instead of generating; repeat for several.
        text: Keep what the traces wrote.
        answers_only: Go without token confidences.
        logprobs: Also keep the log-probability of each token, about 3 bytes a token, where the
            engine gives them; `conviction lab diagnose` compares it with the confidences.
        quiet: Nothing on stderr but errors.
        dataset: Which questions.
        engine: Which model generates the traces, and how its engine is set up.
        generation: How traces are generated.
        ray: Engines in a Ray cluster in place of one in this process.
    """
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    if import_:
        return _import(
            import_, output, data, generation, console, model=engine.model, keep_text=text
        )
    if data is None:
        raise InvalidSettingError(
            tried="record traces",
            found="no data set is named",
            remedy="Name one: conviction record questions.jsonl -n 16 -o pool. Or import a file: "
            "--import FILE.",
        )
    # Everything that can be refused is refused before anything is fetched or started.
    ray.check()
    found = dataset.load(data, console)
    check_texts(found.questions)
    kind(generation.answer)
    require_whole("traces", traces, low=1)
    require_whole("restarts", generation.restarts, low=0)
    if generation.time_limit is not None:
        require("time_limit", generation.time_limit, low=0)
    backend = engine.backend
    sampling = generation.sampling(backend.sampling)
    backend = prepared(backend, console)
    asked = with_prompts(
        found.questions,
        answers=generation.answer,
        style=generation.prompt_style,
        model=backend,
        templated=engine.templated,
    )
    plan = RecordingPlan(
        asked=asked,
        traces=traces,
        sampling=sampling,
        seed=generation.seed,
        restarts=generation.restarts,
        keep_text=text,
        answers_only=answers_only,
        logprobs=logprobs,
        origin=found.origin,
    )
    workers = ray.workers(
        backend.sized(room_for([one.question for one in asked], sampling)),
        answers=generation.answer,
    )
    with ray.connected(), recording_bar(console) as listener:
        reached = _Reached(listener)
        work = partial(_record, plan, output, workers, generation, reached)
        interrupted = anyio.run(work)
    return _report(reached.progress, output, console, interrupted=interrupted)


class _Reached:
    """Remembers how far a recording came, also if it is cancelled."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener
        self.progress = RecordingProgress()

    def __call__(self, progress: RecordingProgress) -> None:
        self.progress = progress
        self._listener(progress)


async def _record(
    plan: RecordingPlan,
    output: Path,
    engine: "Engine | RayWorkers",
    generation: GenerationOptions,
    reached: _Reached,
) -> bool:
    """Record until all is there or the first Ctrl-C; whether it was interrupted."""
    async with AsyncExitStack() as stack, helpers() as tasks:
        tasks.start_soon(cancel_on_signal, tasks.cancel_scope)
        answers = kind(generation.answer)
        stack.callback(answers.close)
        await stack.enter_async_context(engine)
        await record_traces(
            plan,
            output,
            engine=engine,
            answers=answers,
            on_progress=reached,
            time_limit=generation.time_limit,
        )
        return False
    return True


def _report(
    progress: RecordingProgress, output: Path, console: Console, *, interrupted: bool
) -> int:
    for note in progress.notes:
        console.print(f"[yellow]note:[/] {escape(safe(note))}")
    console.print(
        f"Recorded {counted(progress.recorded, 'trace')}, {counted(progress.tokens, 'token')}; "
        f"{escape(safe(str(output)))} holds "
        f"{progress.present:,} of {counted(progress.wanted, 'trace')}."
    )
    if progress.complete:  # also if Ctrl-C came in that moment: nothing is left to do
        return 0
    console.print("The same command records the rest.")
    return INTERRUPTED if interrupted else FAILED


def _import(
    paths: Sequence[Path],
    output: Path,
    data: str | None,
    generation: GenerationOptions,
    console: Console,
    *,
    model: str | None,
    keep_text: bool,
) -> int:
    if data is not None:
        raise InvalidSettingError(
            tried=f"record {data} and import {paths[0]}",
            found="a pool is either generated or imported",
            remedy="Leave one of them out.",
        )
    answers = kind(generation.answer)
    try:
        imported, before = import_files(
            paths,
            output,
            answers=answers,
            grade=is_correct,
            model=model,
            keep_text=keep_text,
        )
    finally:
        answers.close()
    known = f"; there before: {before:,}" if before else ""
    place = escape(safe(str(output)))
    console.print(f"Imported {counted(imported, 'trace')} into {place}{known}.")
    return 0
