"""`conviction record`: complete traces of every question of a data set, kept on disk."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from conviction.answers import AnswerKind, is_correct, kind
from conviction.cli import ExitCode
from conviction.cli.clusters import RayOptions
from conviction.cli.inputs import EngineOptions, check_texts, with_prompts
from conviction.cli.progress import Latest, Reading, messages, prepared, run_on, run_progress
from conviction.cli.terminal import WHOLE
from conviction.cli.think import GenerationOptions
from conviction.core import InvalidSettingError, require, require_whole
from conviction.display import safe
from conviction.evaluation import counted
from conviction.evaluation.datasets import Dataset, Fields, load
from conviction.evaluation.recording import RecordingPlan, RecordingProgress
from conviction.evaluation.recording import record as record_traces
from conviction.lab.export import writable
from conviction.recordings import Pool, import_files, pack

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
        """The questions, as `datasets.load` reads them, with a sign on `console` meanwhile."""
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
    import_: Annotated[
        list[Path] | None, Parameter(name="--import", negative="", consume_multiple=True)
    ] = None,
    export: Path | None = None,
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
        output: The pool: a file, made if need be.
        traces: Traces of each question.
        import_: Bring in files of other programs, pools, or folders of such, instead of generating.
        export: Then also write the pool to this Parquet file; without DATA, that alone.
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
    console = messages(quiet=quiet)
    if import_:
        _import(import_, output, data, generation, console, model=engine.model, keep_text=text)
    if export and data is None:
        return _export(output, export, console, keep_text=text)
    if import_:
        return 0
    if data is None:
        raise InvalidSettingError(
            tried="record traces",
            found="no data set is named",
            remedy="Name one: conviction record questions.jsonl -n 16 -o pool. Or import a file: "
            "--import FILE. Or write a pool as Parquet: --export FILE.parquet.",
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
    questions = [one.question for one in asked]
    workers = ray.workers(backend, questions, sampling, answers=generation.answer)
    with ray.connected():
        progress, interrupted = _run(plan, output, workers, generation, console)
    code = _report(progress, output, console, interrupted=interrupted)
    return code or (_export(output, export, console, keep_text=text) if export else 0)


def _run(
    plan: RecordingPlan,
    output: Path,
    engine: "Engine | RayWorkers",
    generation: GenerationOptions,
    console: Console,
) -> tuple[RecordingProgress, bool]:
    """How far the recording came, and whether it was interrupted."""
    with run_progress(console) as show:
        latest = Latest(RecordingProgress(), lambda now: show(reading(now)))

        async def work(answers: AnswerKind) -> None:
            await record_traces(
                plan,
                output,
                engine=engine,
                answers=answers,
                on_progress=latest,
                time_limit=generation.time_limit,
            )

        interrupted = anyio.run(run_on, engine, generation.answer, work)
    return latest.progress, interrupted


def reading(progress: RecordingProgress) -> Reading:
    """How far a recording is, for the bar."""
    return Reading(
        "trace",
        done=progress.present,
        total=progress.wanted,
        kept=progress.present - progress.recorded,
        detail=f"{progress.complete_questions:,} of {counted(progress.questions, 'question')}",
        tokens=progress.tokens,
    )


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
    return ExitCode.INTERRUPTED if interrupted else ExitCode.FAILED


def _import(
    paths: Sequence[Path],
    output: Path,
    data: str | None,
    generation: GenerationOptions,
    console: Console,
    *,
    model: str | None,
    keep_text: bool,
) -> None:
    if data is not None:
        raise InvalidSettingError(
            tried=f"record {data} and import {paths[0]}",
            found="a pool is either generated or imported",
            remedy="Leave one of them out.",
        )
    with closing(kind(generation.answer)) as answers:
        imported, before = import_files(
            paths, output, answers=answers, grade=is_correct, model=model, keep_text=keep_text
        )
    known = f"; there before: {before:,}" if before else ""
    place = escape(safe(str(output)))
    console.print(f"Imported {counted(imported, 'trace')} into {place}{known}.")


def _export(output: Path, target: Path, console: Console, *, keep_text: bool) -> int:
    found, pool = writable(target), Pool.open(output)
    if output.resolve() in (found, *found.parents):
        raise InvalidSettingError(
            tried=f"write {target}",
            found="it is the pool itself, or a part of it",
            remedy="Name another file.",
        )
    pack(pool, found, keep_text=keep_text)
    traces = sum(question.traces for question in pool.questions)
    console.print(f"Wrote {counted(traces, 'trace')} to {escape(safe(str(target)))}.")
    return 0
