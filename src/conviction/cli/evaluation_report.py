"""What an evaluation came to, for the terminal."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conviction.cli.terminal import shown
from conviction.display import one_line
from conviction.evaluation import counted
from conviction.evaluation.compare import Comparison
from conviction.evaluation.summary import Abstention, Summary
from conviction.lab.columns import count, percentage, with_interval
from conviction.lab.statistics import Estimate

_MOST_REASONS = 3


def summary_table(summary: Summary, *, failures_wrong: bool) -> Table:
    """A run's figures, one a line."""
    table = _table()
    table.add_row("accuracy", _accuracy(summary))
    tokens = f"{_interval(summary.tokens, count)} a question; {summary.all_tokens:,} in all"
    table.add_row("tokens", tokens if summary.finished else "-")
    if summary.finished:
        table.add_row("traces", f"{summary.traces:.1f} a question")
        table.add_row("seconds", f"{summary.seconds:.1f} a question")
    if sharing := summary.sharing:
        table.add_row("total", f"{sharing.spent:,} of {counted(sharing.total, 'token')} spent")
        table.add_row(
            "ended",
            f"{sharing.settled} settled, {sharing.whole_budget} with their whole budget, "
            f"{sharing.contested} contested to the end, "
            f"{sharing.unanswered} unanswered",
        )
    table.add_row("no answer", f"{summary.no_answer} of {summary.finished}, counted as wrong")
    if summary.failed:
        told = "counted as wrong" if failures_wrong else "not counted"
        table.add_row("failed", f"{summary.failed} of {summary.questions}, {told}")
    return table


def add_calibration(table: Table, found: Abstention) -> None:
    """What a calibration says of a run, below the figures of the run itself."""
    by = f"by {counted(found.learned_from, 'question')} of {shown(found.pool)}"
    if isfinite(found.expected):
        was = f"{percentage(found.observed)} % were"
        table.add_row("calibrated", f"{100 * found.expected:.1f} % expected right {by}; {was}")
    else:
        table.add_row("calibrated", f"{counted(found.told, 'verdict')} {by}")
    if found.untold:
        table.add_row("", f"{counted(found.untold, 'verdict')} of unknown probability")
    if found.below is None:
        return
    table.add_row(
        "abstained",
        f"{counted(len(found.abstained), 'question')}: less probable to be right than "
        f"{100 * found.below:g} %, or nobody knows",
    )
    table.add_row("answered", f"{percentage(found.coverage)} %; {found.answered:,} in all")
    if isfinite(found.accuracy.value):
        table.add_row("of these", f"{percentage(found.accuracy)} % right")


def print_failures(summary: Summary, console: Console, *, failures_wrong: bool) -> None:
    """Say why questions failed, and how they count."""
    if not summary.failed:
        return
    for reason in summary.failures[:_MOST_REASONS]:
        console.print(f"[yellow]failed:[/] {shown(one_line(reason))}")
    if (more := len(summary.failures) - _MOST_REASONS) > 0:
        console.print(
            f"[yellow]failed:[/] {counted(more, 'other reason')}; see conviction eval results."
        )
    if not failures_wrong:
        console.print("The accuracy leaves out what failed; --failures-wrong counts it as wrong.")


def comparison_table(comparison: Comparison, first: Path, second: Path) -> Table:
    """Two runs beside each other, and their difference."""
    table = _table()
    for name, path, accuracy, tokens in zip(
        ("first", "second"), (first, second), comparison.accuracies, comparison.tokens, strict=True
    ):
        table.add_row(
            name,
            f"{percentage(accuracy)} % right, {count(tokens)} tokens a question: {shown(path)}",
        )
    table.add_row(
        "difference",
        f"{percentage(comparison.difference, signed=True)} points, second against first",
    )
    table.add_row(
        "McNemar",
        f"p = {comparison.p:.3g}: {comparison.only_first_right} right only in the first, "
        f"{comparison.only_second_right} only in the second, {comparison.both_right} in both, "
        f"{comparison.neither_right} in neither",
    )
    table.add_row(
        "tokens", f"{_interval(comparison.tokens_ratio, '{:.3f}'.format)} times those of the first"
    )
    return table


def _accuracy(summary: Summary) -> str:
    if not isfinite(summary.accuracy.value):
        return "-"
    of = f"{summary.right:,} of {counted(summary.counted, 'question')} right"
    return f"{percentage(summary.accuracy)} %; {of}"


def _interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    return with_interval(estimate, text).removesuffix(" [-]")


def _table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
