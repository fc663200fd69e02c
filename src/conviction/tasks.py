"""Structured waiting: a group of helping tasks, and a call that an end from outside cuts short."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

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
