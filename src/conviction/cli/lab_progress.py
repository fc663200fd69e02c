"""A progress bar over questions, for work that takes a while."""

from collections.abc import Generator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conviction.lab.trials import OnProgress

_PATIENCE_SECONDS = 2.0


@contextmanager
def question_bar(console: Console, what: str) -> Generator[OnProgress]:
    """A callback that draws how far it is, once that takes more than two seconds.

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

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        timer.cancel()
        # It may be starting the bar at this moment.
        timer.join()
        bar.stop()
