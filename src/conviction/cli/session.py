"""What all commands that generate share: messages, signals, the engine's life."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

from rich.console import Console

from conviction.answers import AnswerKind, kind
from conviction.signals import unless_interrupted

Progress = TypeVar("Progress")


def messages(*, quiet: bool) -> Console:
    """Where everything but the answer goes: stderr, one line per message."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


class Latest(Generic[Progress]):
    """A listener that remembers the progress of a run, which may be cancelled or fail.

    Args:
        progress: That of a run that has not begun.
        listener: Also told of every progress.

    Attributes:
        progress: The latest.
        began: Whether there was any.
    """

    def __init__(self, progress: Progress, listener: Callable[[Progress], None]) -> None:
        self.progress = progress
        self.began = False
        self._listener = listener

    def __call__(self, progress: Progress) -> None:
        """Remember it, and pass it on."""
        self.began = True
        self.progress = progress
        self._listener(progress)


async def run_on(
    engine: AbstractAsyncContextManager[object],
    answers: str,
    work: Callable[[AnswerKind], Awaitable[object]],
) -> bool:
    """Do work on an engine that is started for it, until it ends or the first Ctrl-C.

    Args:
        engine: Started before and stopped after, also after an error.
        answers: Name of the answer kind, which lives as long.
        work: Gets the answer kind.

    Returns:
        Whether it was interrupted.
    """

    async def on_engine() -> None:
        async with _open(answers) as answer_kind, engine:
            await work(answer_kind)

    return await unless_interrupted(on_engine)


@asynccontextmanager
async def _open(answers: str) -> AsyncGenerator[AnswerKind]:
    answer_kind = kind(answers)
    try:
        yield answer_kind
    finally:
        answer_kind.close()
