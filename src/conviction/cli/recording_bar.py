"""How far a recording is: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from conviction.cli.download_bar import whole
from conviction.cli.terminal import duration
from conviction.evaluation.recording import ProgressListener, RecordingProgress
from conviction.evaluation.wording import counted

_SECONDS_BETWEEN_LINES = 10.0
_SPEED_SECONDS = 600.0
"""Traces end in bursts, so their rate is taken over a long while."""


class _Rate(ProgressColumn):
    """Tokens a second since the beginning."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        tokens = int(task.fields.get("tokens", 0))
        return Text(f"{tokens / elapsed:,.0f} tokens/s" if elapsed > 0 and tokens else "")


@contextmanager
def recording_bar(console: Console) -> Generator[ProgressListener]:
    """A listener that shows on `console` what it is told."""
    if console.quiet:
        yield lambda _: None
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("traces"),
            MofNCompleteColumn(table_column=whole()),
            _Rate(table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
            console=console,
            speed_estimate_period=_SPEED_SECONDS,
        )
        with bar:
            yield _Bar(bar)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def __call__(self, progress: RecordingProgress) -> None:
        if self._bar.tasks[0].total is None:
            # What was there before must not count as speed.
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(
                "", total=progress.wanted, completed=progress.present, tokens=0
            )
        self._bar.update(
            self._task,
            completed=progress.present,
            tokens=progress.tokens,
            description=f"questions {progress.complete_questions}/{progress.questions}",
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._told = monotonic()
        self._questions = -1

    def __call__(self, progress: RecordingProgress) -> None:
        now = monotonic()
        first = self._questions < 0
        if not first and now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told, self._questions = now, progress.complete_questions
        line = (
            f"{progress.present:,} of {counted(progress.wanted, 'trace')}, "
            f"{progress.complete_questions:,} of {counted(progress.questions, 'question')}"
        )
        elapsed = now - self._began
        if progress.recorded and elapsed > 0:
            left = (progress.wanted - progress.present) * elapsed / progress.recorded
            line += f", {progress.tokens / elapsed:,.0f} tokens/s, {duration(left)} left"
        self._console.print(line)
