"""Ctrl-C and SIGTERM, as every command hears them: once to end in peace, twice to end at once."""

import signal
import sys
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

import anyio

from conviction.tasks import helpers

SAME_SIGNAL_SECONDS = 0.5
"""A supervisor may signal a process and its whole group, so one Ctrl-C can come twice."""

Result = TypeVar("Result")


async def on_signals(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Call `first` at the first SIGINT or SIGTERM, and `second` at each later one but an echo."""
    if sys.platform == "win32":  # no signal receivers there: Ctrl-C raises KeyboardInterrupt
        return
    began = inf
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if began == inf:
                began = anyio.current_time()
                first()
            elif anyio.current_time() - began > SAME_SIGNAL_SECONDS:
                second()


async def until_interrupted(work: Callable[[anyio.Event], Awaitable[Result]]) -> Result:
    """The result of work that ends early by itself when its event is set, at the first signal.

    Raises:
        KeyboardInterrupt: a second signal came, and the work was cancelled.
    """
    interrupt = anyio.Event()
    async with helpers() as tasks:
        tasks.start_soon(on_signals, interrupt.set, tasks.cancel_scope.cancel)
        return await work(interrupt)
    raise KeyboardInterrupt


async def unless_interrupted(work: Callable[[], Awaitable[object]]) -> bool:
    """Do work that the first signal cancels; whether that happened."""
    async with helpers() as tasks:
        tasks.start_soon(on_signals, tasks.cancel_scope.cancel, lambda: None)
        await work()
        return False
    return True
