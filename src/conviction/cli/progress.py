"""How far a command is: a bar on a terminal, a line now and then elsewhere, nothing if quiet."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from conviction.backends import Backend
from conviction.cli.terminal import duration, safe
from conviction.evaluation import counted
from conviction.models import Progress as OnDownload

_PATIENCE_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 10.0
_SPEED_SECONDS = 600.0
"""Traces and questions end in bursts, so their rate is taken over a long while."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a run over a data set is.

    Attributes:
        unit: What is counted, "question" or "trace".
        done: How many there are.
        total: How many there shall be.
        kept: How many of `done` an earlier run left; they say nothing of this one's speed.
        detail: What else to say of them.
        tokens: Tokens that this run generated.
        spent: Said of tokens in place of their number and rate.
        steady: Whether those that are done tell how long the rest will take.
    """

    unit: str
    done: int
    total: int
    kept: int
    detail: str = ""
    tokens: int = 0
    spent: str = ""
    steady: bool = True


OnReading = Callable[[Reading], None]


@contextmanager
def run_progress(console: Console) -> Generator[OnReading]:
    """A callback that shows how far a run over a data set is."""
    if console.quiet:
        yield lambda _: None
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        bar = Progress(
            TextColumn("{task.description}", table_column=_whole()),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=_whole()),
            TextColumn("{task.fields[speed]}", table_column=_whole()),
            TimeRemainingColumn(compact=True, table_column=_whole()),
            console=console,
            speed_estimate_period=_SPEED_SECONDS,
        )
        with bar:
            yield _Bar(bar)


def _whole() -> Column:
    """A column that is never wrapped: figures stay in one piece on a narrow terminal."""
    return Column(no_wrap=True)


class _Clock:
    """Runs from the first reading on: what was there before must not count as speed."""

    def __init__(self) -> None:
        self._began = monotonic()

    def speed(self, reading: Reading) -> str:
        elapsed = monotonic() - self._began
        if reading.spent or not reading.tokens or elapsed <= 0:
            return reading.spent
        return f"{counted(reading.tokens, 'token')}, {reading.tokens / elapsed:,.0f}/s"

    def left(self, reading: Reading) -> str:
        if reading.done == reading.kept or not reading.steady:
            return ""
        each = (monotonic() - self._began) / (reading.done - reading.kept)
        return f"{duration((reading.total - reading.done) * each)} left"


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._clock: _Clock | None = None
        self._task = bar.add_task("starting", total=None, speed="")

    def __call__(self, reading: Reading) -> None:
        if self._clock is None:
            self._clock = _Clock()
            if not reading.steady:
                self._bar.columns = self._bar.columns[:-1]
            # A new task, since this one's speed would count from before the first reading.
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(
                "", total=reading.total, completed=reading.done, speed=""
            )
        self._bar.update(
            self._task,
            completed=reading.done,
            description=reading.detail,
            speed=self._clock.speed(reading),
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock: _Clock | None = None
        self._printed = 0.0

    def __call__(self, reading: Reading) -> None:
        now = monotonic()
        if self._clock and now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._clock = self._clock or _Clock()
        self._printed = now
        parts = (
            f"{reading.done:,} of {counted(reading.total, reading.unit)}",
            reading.detail,
            self._clock.speed(reading),
            self._clock.left(reading),
        )
        self._console.print(", ".join(part for part in parts if part))


@contextmanager
def question_bar(console: Console, what: str) -> Generator[Callable[[int, int], None]]:
    """A callback for questions done and their number; draws once that takes over two seconds.

    Args:
        console: Where to draw; nothing is drawn unless it is a terminal.
        what: What is being done.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None)
    timer = Timer(_PATIENCE_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        # It may be starting the bar at this moment.
        timer.join()
        bar.stop()


@contextmanager
def download_bar(console: Console) -> Generator[OnDownload]:
    """A callback for bytes fetched; a bar appears only when something is fetched."""
    bar = Progress(
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=10),
        DownloadColumn(table_column=_whole()),
        TransferSpeedColumn(table_column=_whole()),
        TimeRemainingColumn(compact=True, table_column=_whole()),
        console=console,
        disable=console.quiet,
    )
    tasks: dict[str, TaskID] = {}

    def show(done: int, total: int | None, what: str) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()


def prepared(backend: Backend, console: Console) -> Backend:
    """The backend, ready to be built; what it needs is fetched with a bar.

    Raises:
        ConvictionError: it cannot be fetched.
    """
    with download_bar(console) as progress:
        return backend.prepare(progress, lambda text: console.print(escape(safe(text))))
