"""`conviction lab`: any policy on recorded traces, measured with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from conviction.answers import kinds_help
from conviction.cli.lab_tables import (
    calibration_table,
    filter_table,
    front_table,
    print_fitting,
    ranking_table,
    study_table,
    table_console,
)
from conviction.cli.progress import messages, question_bar
from conviction.cli.terminal import WHOLE, print_json, print_notes, shown
from conviction.core import require_whole
from conviction.engines.local import usable_cores
from conviction.errors import InvalidSettingError, UnknownNameError
from conviction.lab.columns import COLUMNS
from conviction.lab.diagnosis import REPEATS as DIAGNOSIS_REPEATS
from conviction.lab.diagnosis import Diagnosis
from conviction.lab.diagnosis import diagnose as find_out
from conviction.lab.export import writable, write_page, write_table
from conviction.lab.figures import check_installed
from conviction.lab.report import diagnosis_page, study_page
from conviction.lab.sources import PoolTraces
from conviction.lab.study import Plan, Study, check_plan, study

_COLUMNS = "\n".join(
    f"- {one.heading.format(baseline='the baseline')}: {one.help}" for one in COLUMNS
)

app = App(
    name="lab",
    help="Replay any policy on recorded traces, and measure it.\n\n"
    f"Columns, over all questions and draws:\n\n{_COLUMNS}",
)


@Parameter(name="*", group="Policies")
@dataclass(frozen=True)
class PlanOptions:
    """What to compare."""

    policy: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    'As in deepconf-low or "deepconf-low:window=32,keep=0.1/0.2"; repeat, or list several.'
    baseline: str | None = None
    "The policy that the others are compared to; the first if not given."
    budget: Annotated[tuple[int, ...], WHOLE, Parameter(negative="", show_default=False)] = ()
    "The most traces to start; as many as were recorded if not given, at most 64."
    concurrency: Annotated[tuple[float, ...], Parameter(negative="", show_default=False)] = ()
    "Traces that run at once on the machine that is played; all (inf) if not given."
    sweep: Annotated[bool, Parameter(negative="")] = False
    "Try many settings of each policy, and the usual ones on machines of 8 and of 1, too."


@Parameter(name="*", group="Trials")
@dataclass(frozen=True)
class PoolOptions:
    """On which traces."""

    seed: Annotated[int, WHOLE] = 0
    "Same seed, same draws, same halves of the questions."
    only_graded: Annotated[bool, Parameter(negative="")] = False
    "Leave out questions without a right answer."
    answer: Annotated[str, Parameter(help=f"For files of other programs. {kinds_help()}")] = "math"
    processes: Annotated[int | None, WHOLE] = None
    "Processes to use; as many as there are cores if not given."

    def open(self, pool: Path) -> PoolTraces:
        """The traces of a pool."""
        return PoolTraces.open(pool, only_graded=self.only_graded, answers=self.answer)


@Parameter(name="*", group="Trials")
@dataclass(frozen=True)
class TrialOptions(PoolOptions):
    """How often, and on which traces."""

    repeats: Annotated[int | None, WHOLE] = None
    "Random draws of traces per question; 64 if not given, 16 in a sweep."
    with_replacement: Annotated[bool, Parameter(negative="")] = False
    "Let a draw take one trace several times."


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class ReportOptions:
    """Where the results go."""

    json: Annotated[bool, Parameter(negative="")] = False
    "Print the results as JSON on stdout, in place of tables."
    html: Path | None = None
    "Also write a report with figures to this file."
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False
    "Nothing on stderr but errors."


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class LabOutput(ReportOptions):
    """Where the results go."""

    out: Path | None = None
    "Also write one row per policy to this Parquet file."


_PLAN, _TRIALS, _OUTPUT = PlanOptions(), TrialOptions(), LabOutput()
_POOL, _REPORT = PoolOptions(), ReportOptions()


@app.default
def compare(
    pool: Path,
    /,
    *,
    plan: PlanOptions = _PLAN,
    trials: TrialOptions = _TRIALS,
    output: LabOutput = _OUTPUT,
) -> None:
    """Replay policies on a pool of recorded traces, and compare them.

    Args:
        pool: A pool, as `conviction record` made it, or any file that its --import reads.
        plan: What to compare.
        trials: How often, and on which traces.
        output: Where the results go.
    """
    console = messages(quiet=output.quiet)
    wanted = Plan(
        specs=plan.policy,
        baseline=plan.baseline,
        budgets=plan.budget,
        concurrencies=plan.concurrency,
        sweep=plan.sweep,
        repeats=trials.repeats,
        seed=trials.seed,
        with_replacement=trials.with_replacement,
    )
    _check_policies(wanted)
    _check(pool, [output.out, output.html], trials.processes)
    source = trials.open(pool)
    with question_bar(console, "replaying") as progress:
        result = study(source, wanted, processes=_processes(trials.processes), on_progress=progress)
    try:
        if output.out:
            write_table(output.out, result.records())
        if output.html:
            page = study_page(result, model=source.pool.model, source=pool.name)
            write_page(output.html, page)
    finally:
        # A disk that is full does not take away what minutes of work found.
        _show(result, source, output, console)


@app.command
def diagnose(
    pool: Path,
    /,
    *,
    budget: Annotated[int | None, WHOLE] = None,
    repeats: Annotated[int, WHOLE] = DIAGNOSIS_REPEATS,
    traces: PoolOptions = _POOL,
    output: ReportOptions = _REPORT,
) -> None:
    """Find out whether confidence helps on a pool of recorded traces.

    Args:
        pool: A pool, as `conviction record` made it, or any file that its --import reads.
        budget: Traces of each draw; as many as were recorded if not given, at most 64.
        repeats: Random draws of traces per question.
        traces: On which traces.
        output: Where the results go.
    """
    console = messages(quiet=output.quiet)
    require_whole("repeats", repeats, low=1)
    if budget is not None:
        require_whole("budget", budget, low=1)
    _check(pool, [output.html], traces.processes)
    source = traces.open(pool)
    with question_bar(console, "diagnosing") as progress:
        result = find_out(
            source,
            budget=budget,
            repeats=repeats,
            seed=traces.seed,
            processes=_processes(traces.processes),
            on_progress=progress,
        )
    try:
        if output.html:
            page = diagnosis_page(result, model=source.pool.model, source=pool.name)
            write_page(output.html, page)
    finally:
        _show_diagnosis(result, output, console)


def _check_policies(plan: Plan) -> None:
    """Refuse a wrong plan; a pool that was named after the policies is taken for one of them."""
    try:
        check_plan(plan)
    except UnknownNameError as error:
        for spec in plan.specs:
            if Path(spec).exists():
                raise InvalidSettingError(
                    tried=f"use {spec!r} as a policy",
                    found="it is a file or folder, and everything after --policy names policies",
                    remedy="Name the pool first: conviction lab POOL --policy A B.",
                ) from error
        raise


def _processes(wanted: int | None) -> int:
    return usable_cores() if wanted is None else wanted


def _check(pool: Path, outputs: Sequence[Path | None], processes: int | None) -> None:
    """Refuse what cannot be done before minutes of work; the last of the outputs is a report."""
    require_whole("processes", _processes(processes), low=1)
    if outputs[-1]:
        check_installed()
    targets = [writable(path, recording=pool) for path in outputs if path is not None]
    if len(set(targets)) < len(targets):
        raise InvalidSettingError(
            tried=f"write {outputs[0]} and {outputs[-1]}",
            found="they are the same file",
            remedy="Name two.",
        )


def _show_diagnosis(result: Diagnosis, output: ReportOptions, console: Console) -> None:
    print_notes(result.notes, console)
    if output.json:
        print_json(result.to_dict())
        return
    stdout = table_console()
    left_out: list[str] = []
    for table in (ranking_table(result), filter_table(result), calibration_table(result)):
        left_out += print_fitting(table, stdout)
        stdout.print()
    # A pipe gets the whole sentence on one line.
    stdout.print(shown(result.advice), soft_wrap=not stdout.is_terminal)
    _show_left_out(left_out, console)


def _show_left_out(headings: Sequence[str], console: Console) -> None:
    if headings:
        console.print(
            f"Too narrow for {', '.join(headings)}: widen the terminal, or use --json or --html.",
            style="dim",
        )


def _show(result: Study, source: PoolTraces, output: LabOutput, console: Console) -> None:
    for one in result.refused:
        console.print(f"[yellow]left out:[/] {shown(one.candidate.label)}: {shown(one.reason)}.")
    print_notes(result.notes, console)
    console.print(shown(_what_was_done(result, source)), style="dim")
    if output.json:
        print_json(result.to_dict())
        return
    table = front_table(result, result.front) if result.front else study_table(result)
    _show_left_out(print_fitting(table, table_console()), console)


def _what_was_done(result: Study, source: PoolTraces) -> str:
    at_once = ", ".join("all" if one == inf else f"{one:g}" for one in result.concurrencies)
    return (
        f"{source.pool.model}: {len(source.question_ids)} questions, {result.traces} traces each, "
        f"{result.repeats} draws per question, {at_once} traces at once. "
        "In brackets: 95% intervals, [-] where no question differs. Tokens and path (tokens one "
        "after another) are per question."
    )
