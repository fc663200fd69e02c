"""A task group whose own block fails with its own error."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


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
