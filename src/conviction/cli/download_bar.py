"""A progress bar for fetching a model; appears only when something is fetched."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from conviction.backends import Backend
from conviction.cli.terminal import safe
from conviction.models import Progress as ProgressCallback


def whole() -> Column:
    """A column that is never wrapped: figures stay in one piece on a narrow terminal."""
    return Column(no_wrap=True)


@contextmanager
def download_bar(console: Console) -> Generator[ProgressCallback]:
    """A callback that draws what it is told on `console`."""
    bar = Progress(
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=10),
        DownloadColumn(table_column=whole()),
        TransferSpeedColumn(table_column=whole()),
        TimeRemainingColumn(compact=True, table_column=whole()),
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
