"""`conviction lab`: any policy on recorded traces, measured with intervals."""

import json as jsonlib
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

from conviction.cli.lab_progress import question_bar
from conviction.cli.lab_tables import (
    calibration_table,
    filter_table,
    front_table,
    print_fitting,
    ranking_table,
    study_table,
    table_console,
)
from conviction.cli.terminal import escaped, safe
from conviction.engines.local import usable_cores
from conviction.errors import InvalidSettingError
from conviction.lab.diagnosis import REPEATS as DIAGNOSIS_REPEATS
from conviction.lab.diagnosis import diagnose as find_out
from conviction.lab.export import write_table
from conviction.lab.report import diagnosis_page, study_page
from conviction.lab.sources import PoolTraces
from conviction.lab.study import Plan, Study, study

app = App(name="lab", help="Replay any policy on recorded traces, and measure it.")


@Parameter(name="*", group="Policies")
@dataclass(frozen=True)
class PlanOptions:
    """What to compare."""

    policy: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    'As in deepconf-low or "deepconf-low:window=32,keep=0.1/0.2"; repeat for several.'
    baseline: str | None = None
    "The policy that the others are compared to; the first if not given."
    budget: Annotated[tuple[int, ...], Parameter(negative="")] = ()
    "The most traces to start; as many as were recorded if not given, at most 64."
    concurrency: Annotated[tuple[float, ...], Parameter(negative="")] = (inf,)
    "Traces that run at once on the machine that is played; inf for all."
    sweep: Annotated[bool, Parameter(negative="")] = False
    "Try many settings of each policy, and show which no other beats."


@Parameter(name="*", group="Trials")
@dataclass(frozen=True)
class TrialOptions:
    """How often, and on which traces."""

    repeats: int | None = None
    "Random draws of traces per question; 64 if not given, 16 in a sweep."
    seed: int = 0
    "Same seed, same draws."
    with_replacement: Annotated[bool, Parameter(negative="")] = False
    "Let a draw take one trace several times."
    only_graded: Annotated[bool, Parameter(negative="")] = False
    "Leave out questions without a right answer."
    processes: int | None = None
    "Processes to use; as many as there are cores if not given."


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class LabOutput:
    """Where the results go."""

    json: Annotated[bool, Parameter(negative="")] = False
    "Print the results as JSON on stdout, in place of the table."
    out: Path | None = None
    "Also write one row per policy to this Parquet file."
    html: Path | None = None
    "Also write a report with figures to this file."
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False
    "Nothing on stderr but errors."


_PLAN, _TRIALS, _OUTPUT = PlanOptions(), TrialOptions(), LabOutput()


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
        pool: The pool, as `conviction record` made it.
        plan: What to compare.
        trials: How often, and on which traces.
        output: Where the results go.
    """
    console = _messages(output)
    source = PoolTraces.open(pool, only_graded=trials.only_graded)
    _check_targets(output.out, output.html)
    with question_bar(console, "replaying") as progress:
        result = study(
            source,
            Plan(
                specs=plan.policy,
                baseline=plan.baseline,
                budgets=plan.budget,
                concurrencies=plan.concurrency,
                sweep=plan.sweep,
                repeats=trials.repeats,
                seed=trials.seed,
                with_replacement=trials.with_replacement,
            ),
            processes=_processes(trials.processes),
            on_progress=progress,
        )
    if output.out:
        write_table(output.out, result.records())
    if output.html:
        page = study_page(result, model=source.pool.model, source=pool.name)
        output.html.write_text(page, encoding="utf-8")
    _show(result, source, output, console)


@app.command
def diagnose(
    pool: Path,
    /,
    *,
    budget: int | None = None,
    repeats: int = DIAGNOSIS_REPEATS,
    seed: int = 0,
    only_graded: Annotated[bool, Parameter(negative="")] = False,
    processes: int | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    html: Path | None = None,
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False,
) -> None:
    """Find out whether confidence helps on a pool of recorded traces.

    Args:
        pool: The pool, as `conviction record` made it.
        budget: Traces of each draw; as many as were recorded if not given, at most 64.
        repeats: Random draws of traces per question.
        seed: Same seed, same draws, same halves of the questions.
        only_graded: Leave out questions without a right answer.
        processes: Processes to use; as many as there are cores if not given.
        json: Print the results as JSON on stdout, in place of the tables.
        html: Also write a report with figures to this file.
        quiet: Nothing on stderr but errors.
    """
    output = LabOutput(json=json, html=html, quiet=quiet)
    console = _messages(output)
    source = PoolTraces.open(pool, only_graded=only_graded)
    _check_targets(html)
    with question_bar(console, "diagnosing") as progress:
        result = find_out(
            source,
            budget=budget,
            repeats=repeats,
            seed=seed,
            processes=_processes(processes),
            on_progress=progress,
        )
    if html:
        page = diagnosis_page(result, model=source.pool.model, source=pool.name)
        html.write_text(page, encoding="utf-8")
    if json:
        print(escaped(jsonlib.dumps(result.to_dict(), ensure_ascii=False, indent=2)))
        return
    stdout = table_console()
    for table in (ranking_table(result), filter_table(result), calibration_table(result)):
        stdout.print(table)
        stdout.print()
    # A pipe gets the whole sentence on one line.
    stdout.print(escape(safe(result.advice)), soft_wrap=not stdout.is_terminal)


def _messages(output: LabOutput) -> Console:
    return Console(stderr=True, quiet=output.quiet, highlight=False, soft_wrap=True)


def _processes(wanted: int | None) -> int:
    return usable_cores() if wanted is None else wanted


def _check_targets(*paths: Path | None) -> None:
    """Refuse what cannot be written before minutes of work rather than after."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InvalidSettingError(
                tried=f"write {path}",
                found="it is a folder" if path.is_dir() else "its folder does not exist",
                remedy="Name a file in a folder that exists.",
            )


def _show(result: Study, source: PoolTraces, output: LabOutput, console: Console) -> None:
    for one in result.refused:
        console.print(
            f"[yellow]left out:[/] {escape(safe(one.candidate.label))}: {escape(one.reason)}."
        )
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(safe(note))}")
    console.print(escape(safe(_what_was_done(result, source))), style="dim")
    if output.json:
        print(escaped(jsonlib.dumps(result.to_dict(), ensure_ascii=False, indent=2)))
        return
    table = front_table(result, result.front) if result.front else study_table(result)
    left_out = print_fitting(table, table_console())
    if left_out:
        console.print(
            f"Too narrow for {', '.join(left_out)}: widen the terminal, or use --json or --html.",
            style="dim",
        )


def _what_was_done(result: Study, source: PoolTraces) -> str:
    least, most = result.trials.least_traces, result.trials.most_traces
    traces = f"{least}" if least == most else f"{least} to {most}"
    at_once = ", ".join("all" if one == inf else f"{one:g}" for one in result.plan.concurrencies)
    return (
        f"{source.pool.model}: {len(source.question_ids)} questions, {traces} traces each, "
        f"{result.repeats} draws per question, {at_once} traces at once. "
        "In brackets: 95% intervals. Tokens and path (tokens one after another) are per question."
    )
