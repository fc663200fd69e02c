"""Fetching a model, with a progress bar that appears only when something is fetched."""

import tomllib
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

from conviction.cli.terminal import safe
from conviction.errors import InvalidSettingError
from conviction.models import ModelFile, catalogue, mirrors_setting, resolve
from conviction.models import Progress as ProgressCallback


def whole() -> Column:
    """A column that is never wrapped: figures stay in one piece on a narrow terminal."""
    return Column(no_wrap=True)


@contextmanager
def download_bar(console: Console) -> Generator[ProgressCallback]:
    """A callback that draws the state of a fetch on `console`."""
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


def model_mirrors() -> bool | None:
    """Whether mirrors may be used: `CONVICTION_MODEL_MIRRORS`, then the settings file, then None.

    Raises:
        InvalidSettingError: the variable, or `model_mirrors` in the file, is malformed.
    """
    from conviction.cli.main import config_path  # noqa: PLC0415  # main imports the commands

    setting, path = mirrors_setting(), config_path()
    if setting is None and path.is_file():
        try:
            setting = tomllib.loads(path.read_text("utf-8")).get("model_mirrors")
        except ValueError as error:
            raise InvalidSettingError(
                tried=f"read the settings file {path}", found=str(error), remedy="Correct the file."
            ) from None
        if not isinstance(setting, bool | None):
            raise InvalidSettingError(
                tried=f"read model_mirrors in the settings file {path}",
                found=f"{setting!r} is neither true nor false",
                remedy="Write model_mirrors = false to turn mirrors off.",
            )
    return setting


def fetched(model: str | None, console: Console) -> ModelFile:
    """A model by its name, path or address, fetched with a bar if need be; None for the default.

    Raises:
        The same errors as `conviction.models.resolve`.
    """
    with download_bar(console) as progress:
        return resolve(
            model or catalogue().default,
            mirrors=model_mirrors(),
            progress=progress,
            notice=lambda text: console.print(escape(safe(text))),
        )
