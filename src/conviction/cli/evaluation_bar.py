"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Generator
from contextlib import contextmanager
from math import isfinite
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conviction.cli.download_bar import whole
from conviction.cli.lab_tables import percentage
from conviction.cli.terminal import duration
from conviction.evaluation.run import EvaluationProgress, ProgressListener
from conviction.evaluation.summary import accuracy_counts, proportion
from conviction.evaluation.wording import counted
from conviction.sharing import Slots

_SECONDS_BETWEEN_LINES = 10.0
_SPEED_SECONDS = 600.0
"""Questions end in bursts, so their rate is taken over a long while."""


@contextmanager
def evaluation_bar(console: Console) -> Generator[ProgressListener]:
    """A listener that shows on `console` what it is told."""
    if console.quiet:
        yield lambda _: None
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        bar = Progress(
            TextColumn("{task.description}", table_column=whole()),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=whole()),
            TextColumn("{task.fields[speed]}", table_column=whole()),
            TimeRemainingColumn(compact=True, table_column=whole()),
            console=console,
            speed_estimate_period=_SPEED_SECONDS,
        )
        with bar:
            yield _Bar(bar)


class _Speed:
    """Tokens since the beginning, and how many a second."""

    def __init__(self) -> None:
        self.began = monotonic()

    def tokens(self, progress: EvaluationProgress) -> str:
        if progress.sharing:
            return _shared(progress, progress.sharing)
        tokens = sum(result.tokens for result in progress.results[progress.kept :])
        elapsed = monotonic() - self.began
        if not tokens or elapsed <= 0:
            return ""
        return f"{counted(tokens, 'token')}, {tokens / elapsed:,.0f}/s"

    def left(self, progress: EvaluationProgress) -> str:
        done = len(progress.results)
        if done == progress.kept or progress.sharing:
            return ""
        each = (monotonic() - self.began) / (done - progress.kept)
        return f"{duration((progress.questions - done) * each)} left"


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._speed = _Speed()
        self._task = bar.add_task("starting", total=None, speed="")
        self._began = False

    def __call__(self, progress: EvaluationProgress) -> None:
        if not self._began:
            # What was there before must not count as speed.
            self._began = True
            self._speed = _Speed()
            if progress.sharing:
                # Most questions end together, so those that ended tell nothing of the time left.
                self._bar.columns = self._bar.columns[:-1]
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(
                "", total=progress.questions, completed=len(progress.results), speed=""
            )
        self._bar.update(
            self._task,
            completed=len(progress.results),
            description=_accuracy(progress),
            speed=self._speed.tokens(progress),
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._speed = _Speed()
        self._told: float | None = None

    def __call__(self, progress: EvaluationProgress) -> None:
        now = monotonic()
        if self._told is not None and now - self._told < _SECONDS_BETWEEN_LINES:
            return
        if self._told is None:
            self._speed = _Speed()
        self._told = now
        parts = [
            f"{len(progress.results):,} of {counted(progress.questions, 'question')}",
            _accuracy(progress),
            self._speed.tokens(progress),
            self._speed.left(progress),
        ]
        self._console.print(", ".join(part for part in parts if part))


def _shared(progress: EvaluationProgress, slots: Slots) -> str:
    spent = f"{slots.spent:,} of {counted(slots.total or 0, 'token')}"
    return f"{progress.settled} settled, {progress.contested} contested, {spent}"


def _accuracy(progress: EvaluationProgress) -> str:
    accuracy = proportion(*accuracy_counts(progress.results))
    return f"{percentage(accuracy)} % right" if isfinite(accuracy.value) else ""
