"""What the lab found, as tables for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conviction.display import safe
from conviction.lab.columns import COLUMNS, percentage, share, with_interval
from conviction.lab.comparison import Front, Row
from conviction.lab.diagnosis import Diagnosis
from conviction.lab.statistics import Estimate
from conviction.lab.study import Study

_PIPE_WIDTH = 240
_FEWEST_COLUMNS = 4


def table_console(console: Console | None = None) -> Console:
    """Where tables go: stdout; a pipe has no width, so there each row stays on one line."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_fitting(table: Table, console: Console) -> tuple[str, ...]:
    """Print a table without the last of its columns that do not fit; gives their headings."""
    left_out: list[str] = []
    unbounded = console.options.update(width=_PIPE_WIDTH)
    while len(table.columns) > _FEWEST_COLUMNS:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        left_out.insert(0, str(table.columns.pop().header))
    # A caption would be broken at the table's width, which may be less than the screen's.
    caption, table.caption = table.caption, None
    console.print(table)
    if caption is not None:
        console.print(caption, style="dim")
    return tuple(left_out)


def study_table(study: Study) -> Table:
    """Every candidate with all columns."""
    baseline = study.baseline.label
    table = _table("policy", *(one.heading.format(baseline=baseline) for one in COLUMNS))
    several = len(study.concurrencies) > 1
    for row in study.rows:
        first = row is study.rows[0]
        table.add_row(
            _name(row, concurrency=several),
            *("" if first and one.against else one.text(row.figures[one.name]) for one in COLUMNS),
        )
    return table


def front_table(study: Study, front: Front) -> Table:
    """The candidates that no other beats, on the questions that did not choose them."""
    chosen, reported = front.questions
    accuracy, *others = (column for column in COLUMNS if column.front)
    table = _table(
        "policy on the front",
        f"{accuracy.heading} on the {reported} others",
        f"on the {chosen} that chose",
        *(one.heading.format(baseline=study.baseline.label) for one in others),
    )
    several = len(study.concurrencies) > 1
    for here, there in sorted(front.rows, key=lambda pair: pair[0].tokens.value):
        table.add_row(
            _name(there, concurrency=several),
            accuracy.text(there.figures[accuracy.name]),
            share(here.figures[accuracy.name]),
            *(one.text(there.figures[one.name]) for one in others),
        )
    return table


def ranking_table(diagnosis: Diagnosis) -> Table:
    """AUROC by metric and window, and that of plain likelihood where it was recorded."""
    table = _table("metric", "window", "AUROC among votes", "among all traces")
    table.caption = "On all questions, to describe: the best of so many looks better than it is."
    for one in diagnosis.rankings:
        table.add_row(str(one.metric), _window(one.window), _area(one.votes), _area(one.all))
    if plain := diagnosis.log_probability:
        name = "log-probability (for comparison)"
        table.add_row(name, _window(None), _area(plain.votes), _area(plain.all))
    return table


def filter_table(diagnosis: Diagnosis) -> Table:
    """What filtering changes; last what a narrow terminal can do without."""
    table = _table("filter by", "window", "kept", "against majority", "better %", "worse %")
    chose, others = diagnosis.choice.questions
    table.caption = f"On {_questions(others)}; the windows rank best on the {chose} others."
    for one in diagnosis.filters:
        table.add_row(
            str(one.metric),
            _window(one.window),
            f"{one.keep:.0%}",
            percentage(one.difference, signed=True),
            percentage(one.better),
            percentage(one.worse),
        )
    return table


def calibration_table(diagnosis: Diagnosis) -> Table:
    """How often majority is right, by its leader's share of the vote."""
    table = _table("share of the vote", "questions", "mean share %", "majority right %")
    for one in diagnosis.calibration:
        table.add_row(
            f"{one.low:.0%} to {one.high:.0%}",
            f"{one.questions:.1f}",
            share(one.share),
            percentage(one.accuracy),
        )
    return table


def _questions(number: int) -> str:
    return "1 question" if number == 1 else f"{number} questions"


def _window(window: int | None) -> str:
    return str(window) if window else "-"


def _area(estimate: Estimate) -> str:
    return with_interval(estimate, "{:.2f}".format)


def _name(row: Row, *, concurrency: bool) -> str:
    at_once = f" c={row.candidate.concurrency:g}" if concurrency else ""
    return escape(safe(row.candidate.label + at_once))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", caption_justify="left")
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(escape(heading), justify="right")
    return table
