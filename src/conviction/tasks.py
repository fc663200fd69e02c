"""Structured waiting: helper tasks, calls that end early, and work that Ctrl-C or SIGTERM ends."""

import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

SAME_SIGNAL_SECONDS = 0.5
"""A supervisor may signal a process and its whole group, so one Ctrl-C can come twice."""

Result = TypeVar("Result")


@asynccontextmanager
async def helpers() -> AsyncGenerator[TaskGroup]:
    """A task group for tasks that help a block of code and are cancelled when it ends.

    An error raised in the block comes out as it is, where a plain task group would wrap it in
    an exception group. If the group's scope is cancelled, the block just ends early.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # noqa: BLE001  # raised again below, outside of the group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def unless_ended(
    call: Callable[[], Awaitable[Result]], time_limit: float | None, interrupt: anyio.Event | None
) -> tuple[Result | None, str]:
    """The result of a call, or None and why waiting ended before it came.

    That is "time" after `time_limit` seconds, and "interrupted" when `interrupt` is set.
    """
    result: Result | None = None
    ended = "time"

    async def on_interrupt(event: anyio.Event) -> None:
        nonlocal ended
        await event.wait()
        ended = "interrupted"
        waiting.cancel()

    async with helpers() as tasks:
        with anyio.move_on_after(time_limit) as waiting:
            if interrupt is not None:
                tasks.start_soon(on_interrupt, interrupt)
            result = await call()
            ended = ""
    return result, ended


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
