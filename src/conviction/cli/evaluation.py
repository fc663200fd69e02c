"""`conviction eval`: a data set through the live driver, and two such runs compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from conviction.answers import AnswerKind
from conviction.cli import ExitCode
from conviction.cli.clusters import RayOptions
from conviction.cli.evaluation_report import (
    add_calibration,
    comparison_table,
    print_failures,
    summary_table,
)
from conviction.cli.inputs import CalibrationOptions, EngineOptions, GenerationOptions
from conviction.cli.lab_tables import percentage, table_console
from conviction.cli.progress import Latest, Reading, messages, prepared, run_on, run_progress
from conviction.cli.record import DataOptions
from conviction.cli.terminal import WHOLE, print_json, print_notes, shown
from conviction.cli.think import PolicyOptions
from conviction.core import InvalidSettingError, Sampling, require
from conviction.display import escaped
from conviction.engines.base import Capabilities
from conviction.errors import ConvictionError
from conviction.evaluation import counted
from conviction.evaluation.compare import compare as compare_runs
from conviction.evaluation.plan import EvaluationPlan, check_plan
from conviction.evaluation.run import EvaluationProgress, evaluate, many_engines
from conviction.evaluation.stored import read_run
from conviction.evaluation.summary import (
    Abstention,
    Summary,
    abstain,
    accuracy_counts,
    proportion,
    summarise,
    summarise_sharing,
)
from conviction.files import expanded
from conviction.policies.base import Policy

if TYPE_CHECKING:
    from conviction.engines.base import Engine
    from conviction.ray.workers import RayWorkers

app = App(name="eval", help="Ask every question of a data set, and measure how many are right.")


@Parameter(name="*", group="Generation")
@dataclass(frozen=True)
class EvaluationGeneration(GenerationOptions):
    """How traces are generated."""

    time_limit: float | None = None
    "Seconds after which the votes of a question so far decide it."
    questions_at_once: Annotated[int | None, WHOLE] = None
    "Questions that share the engine at once; as many as keep it busy if not given."
    total_tokens: Annotated[int | None, WHOLE] = None
    """Tokens that all questions share: those nearest to being settled go first, and when the
    total is spent, the votes so far decide."""

    def plan(
        self, policy: Policy, sampling: Sampling, *, path: str, origin: str | None
    ) -> Callable[..., EvaluationPlan]:
        """The plan, for the questions `asked`."""
        return partial(
            EvaluationPlan,
            policy=policy,
            answers=self.answer,
            sampling=sampling,
            seed=self.seed,
            restarts=self.restarts,
            time_limit=self.time_limit,
            path=path,
            origin=origin,
            questions_at_once=self.questions_at_once,
            total_tokens=self.total_tokens,
        )


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class EvaluationOutput:
    """What to show, and what counts as passed."""

    fail_below: float | None = None
    "Exit with code 1 if the accuracy is below this, in [0, 1]."
    failures_wrong: Annotated[bool, Parameter(negative="")] = False
    "Count questions that failed as wrong; otherwise they are left out of the accuracy."
    json: Annotated[bool, Parameter(negative="")] = False
    "Print the summary as JSON on stdout, in place of the table."
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False
    "Nothing on stderr but errors."


_DATA, _GENERATION, _POLICY = DataOptions(), EvaluationGeneration(), PolicyOptions()
_ENGINE, _OUTPUT = EngineOptions(), EvaluationOutput()
_CALIBRATION, _RAY = CalibrationOptions(), RayOptions()


@app.default
def evaluation(
    data: str,
    /,
    *,
    run: Annotated[Path, Parameter(name="--output", alias="-o")],
    record: Path | None = None,
    policy: PolicyOptions = _POLICY,
    dataset: DataOptions = _DATA,
    engine: EngineOptions = _ENGINE,
    generation: EvaluationGeneration = _GENERATION,
    ray: RayOptions = _RAY,
    calibration: CalibrationOptions = _CALIBRATION,
    output: EvaluationOutput = _OUTPUT,
) -> int:
    """Ask every question of a data set, and measure how many are answered rightly.

    The same command goes on where it was interrupted, however it ended.

    Args:
        data: A .jsonl, .csv or .parquet file with one question a row; or a data set on the
            Hugging Face hub, hf://OWNER/NAME, with @REVISION for a certain version.
        run: The run: a file, made if need be.
        record: Also record all traces in this pool.
        policy: How many traces, which of them count, and when it is enough.
        dataset: Which questions.
        engine: Which model generates the traces, and how its engine is set up.
        generation: How traces are generated.
        ray: Engines in a Ray cluster in place of one in this process.
        calibration: How probable answers are to be right, and when that is too little.
        output: What to show, and what counts as passed.
    """
    # Everything that can be refused is refused before anything is fetched or started.
    _check_output(output, dataset)
    steering = policy.build()
    calibrator = calibration.open(steering)
    ray.check()
    if ray.ray is not None and generation.total_tokens is not None:
        raise many_engines()
    console = messages(quiet=output.quiet)
    found = dataset.load(data, console)
    generation.check()
    backend = engine.backend
    sampling = generation.sampling(backend.sampling)
    plan_for = generation.plan(steering, sampling, path=data, origin=found.origin)
    plan_for(asked=())
    backend = prepared(backend, console)
    asked = generation.asked(found.questions, backend, templated=engine.templated)
    plan = plan_for(asked=asked)
    check_plan(plan, run)
    questions = [one.question for one in asked]
    workers = ray.workers(backend, questions, sampling, answers=generation.answer)
    with ray.connected():
        progress, capabilities, interrupted = _run(plan, run, workers, record, console)
    progress.results = plan.in_order(progress.results)
    report = partial(_report, progress, run, output, console, interrupted=interrupted)
    # An engine that said nothing of itself has nothing that a calibration could be like.
    if calibrator is None or capabilities is None:
        return report()
    calibrator.expect(generation, backend, templated=engine.templated)
    calibrator.capabilities = capabilities
    try:
        learned = calibrator.calibration(questions, console)
        progress.notes += learned.notes
        abstention = abstain(progress.results, learned, calibrator.below)
    except (ConvictionError, KeyboardInterrupt):
        report()  # What was measured is shown all the same.
        raise
    return report(abstention)


@app.command
def compare(
    first: Path,
    second: Path,
    /,
    *,
    fail_if_worse: Annotated[bool, Parameter(negative="")] = False,
    failures_wrong: Annotated[bool, Parameter(negative="")] = False,
    seed: Annotated[int, WHOLE] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False,
) -> int:
    """Compare two runs, question by question.

    Args:
        first: The run that is compared to.
        second: The run that is compared.
        fail_if_worse: Exit with code 1 if the second is worse by more than chance: the interval of
            the difference lies below 0, and McNemar's p is below 0.05.
        failures_wrong: Count questions that failed as wrong; otherwise they are left out.
        seed: Same seed, same interval of the tokens.
        json: Print the comparison as JSON on stdout, in place of the table.
        quiet: Nothing on stderr but errors.
    """
    console = messages(quiet=quiet)
    result = compare_runs(
        read_run(first), read_run(second), failures_wrong=failures_wrong, seed=seed
    )
    print_notes(result.notes, console)
    if json:
        runs = {"first": str(first), "second": str(second)}
        print_json({**runs, **result.to_dict()})
    else:
        console.print(
            f"Over {counted(result.questions, 'question')} that both have. In brackets: 95% "
            "intervals.",
            style="dim",
        )
        table_console().print(comparison_table(result, first, second))
    if fail_if_worse and result.worse:
        console.print("The second is worse than the first.", style="bold red")
        return ExitCode.FAILED
    return 0


@app.command
def results(run: Path, /) -> None:
    """Print the results of a run as JSON lines, one per question.

    Args:
        run: The run.
    """
    for result in read_run(run).results:
        print(escaped(msgspec.json.encode(result).decode()))


def _run(
    plan: EvaluationPlan,
    run: Path,
    engine: "Engine | RayWorkers",
    pool: Path | None,
    console: Console,
) -> tuple[EvaluationProgress, Capabilities | None, bool]:
    """How far the evaluation came, what its engine can do, and whether it was interrupted."""
    capabilities: Capabilities | None = None

    with run_progress(console) as show:
        latest = Latest(EvaluationProgress(len(plan.asked)), lambda now: show(_reading(now)))

        async def work(answers: AnswerKind) -> None:
            nonlocal capabilities
            capabilities = await engine.capabilities()
            await evaluate(plan, run, engine=engine, answers=answers, pool=pool, on_progress=latest)

        try:
            interrupted = anyio.run(run_on, engine, plan.answers, work)
        except ConvictionError:
            if latest.began and expanded(run).exists():
                _tell_where(latest.progress, run, console)
            raise
    return latest.progress, capabilities, interrupted


def _reading(progress: EvaluationProgress) -> Reading:
    accuracy = proportion(*accuracy_counts(progress.results))
    right = f"{percentage(accuracy)} % right" if isfinite(accuracy.value) else ""
    spent = ""
    if slots := progress.sharing:
        total = counted(slots.total or 0, "token")
        spent = f"{progress.settled} settled, {progress.contested} contested"
        spent += f", {slots.spent:,} of {total}"
    return Reading(
        "question",
        done=len(progress.results),
        total=progress.questions,
        kept=progress.kept,
        detail=right,
        tokens=sum(result.tokens for result in progress.results[progress.kept :]),
        spent=spent,
        # With a total most questions end together, so those that ended say nothing of the rest.
        steady=progress.sharing is None,
    )


def _check_output(output: EvaluationOutput, dataset: DataOptions) -> None:
    if output.fail_below is None:
        return
    require("fail_below", output.fail_below, low=0, high=1)
    if dataset.no_gold:
        raise InvalidSettingError(
            tried="use --fail-below with --no-gold",
            found="without right answers there is no accuracy",
            remedy="Leave one of them out.",
        )


def _report(
    progress: EvaluationProgress,
    run: Path,
    output: EvaluationOutput,
    console: Console,
    abstention: Abstention | None = None,
    *,
    interrupted: bool,
) -> int:
    summary = summarise(progress.results, progress.questions, failures_wrong=output.failures_wrong)
    if (slots := progress.sharing) and slots.total is not None:
        sharing = summarise_sharing(progress.results, slots.total, slots.spent)
        summary = replace(summary, sharing=sharing)
    # A Ctrl-C in the moment in which the last verdict came interrupted nothing.
    interrupted = interrupted and not summary.complete
    print_notes(progress.notes, console)
    print_failures(summary, console, failures_wrong=output.failures_wrong)
    if output.json:
        what = {"run": str(run), "interrupted": interrupted, **summary.to_dict()}
        if abstention is not None:
            what["calibration"] = abstention.to_dict()
        print_json(what)
    else:
        table = summary_table(summary, failures_wrong=output.failures_wrong)
        if abstention is not None:
            add_calibration(table, abstention)
        table_console().print(table)
    _tell_where(progress, run, console)
    if interrupted:
        return ExitCode.INTERRUPTED
    passed = _passed(summary, output, console)
    return 0 if passed and summary.complete else ExitCode.FAILED


def _tell_where(progress: EvaluationProgress, run: Path, console: Console) -> None:
    answered = sum(not result.failed for result in progress.results)
    wanted = counted(progress.questions, "verdict")
    console.print(f"{shown(run)} holds {answered:,} of {wanted}.")
    if not progress.complete:
        console.print("The same command asks the rest.")


def _passed(summary: Summary, output: EvaluationOutput, console: Console) -> bool:
    limit = output.fail_below
    # Without a single verdict there is no accuracy, and what is not there does not pass.
    if limit is None or summary.accuracy.value >= limit:
        return True
    console.print(
        f"The accuracy, {percentage(summary.accuracy)} %, is below {100 * limit:g} %.",
        style="bold red",
    )
    return False
