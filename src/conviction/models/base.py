"""What all parts of fetching share: what is wanted, within which limits, and who watches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conviction.models.sources import Source
from conviction.prompts import PromptStyle

Progress = Callable[[int, int | None, str], None]
"""Called as (bytes done, bytes in all where known, what is being done).

It is called from the thread that fetches, some hundred times a second at most speed. An
exception that it raises ends the fetching; what was fetched is kept and continued next time.
"""

Notice = Callable[[str], None]
"""Called with one sentence when something happened that a user should know."""


class SourceFailedError(Exception):
    """One source cannot deliver the file, and the next one is to be tried; says why."""


class WrongBytesError(SourceFailedError):
    """What a source delivered is not the file that was wanted; it was set aside."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to be had.

    Attributes:
        name: What people call the model.
        path: Where the file belongs.
        sources: Where it can come from, the first choice first.
        prompt_style: How the model is best asked.
        size: Bytes it must have; None where unknown.
        sha256: Hash it must have; None where unknown, for files that a user chose by address.
    """

    name: str
    path: Path
    sources: tuple[Source, ...]
    prompt_style: PromptStyle
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for what, in seconds, and how often to try.

    Attributes:
        connect: For a connection to be made.
        read: For more bytes to come.
        attempts: Connections in a row that may break without bringing the file forward.
        pause: Before the second attempt; doubles with each further one.
        part: For the package index to deliver one package.
        lock: For another process that fetches the same file.
    """

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 3
    pause: float = 0.5
    part: float = 1800.0
    lock: float = 7200.0


def ignore_progress(done: int, total: int | None, what: str) -> None:
    """A `Progress` that nobody watches."""
    del done, total, what


def ignore_notice(text: str) -> None:
    """A `Notice` that nobody reads."""
    del text


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whoever is told how the fetching goes."""

    progress: Progress = ignore_progress
    notice: Notice = ignore_notice
