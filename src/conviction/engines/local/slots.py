"""The slots of llama.cpp's server: a trace each, and a queue for the traces that wait."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio


@dataclass(eq=False)
class Slot:
    """A place for one trace.

    Attributes:
        number: The server's number for it.
        holds: The prompt whose tokens lie in its cache; None if that is not known.
    """

    number: int
    holds: object = None


class SlotPool:
    """Hands out slots, first come, first served.

    Args:
        count: Slots, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._free = [Slot(number) for number in range(count)]
        # Its waiters queue in order, and one that is cancelled leaves the queue.
        self._places = anyio.Semaphore(count)

    @property
    def free(self) -> int:
        """Slots that nobody has now."""
        return len(self._free)

    @asynccontextmanager
    async def take(self, prompt: object) -> AsyncGenerator[Slot, None]:
        """A slot for the duration of the context: one that holds `prompt`, if there is one."""
        async with self._places:
            slot = next((slot for slot in self._free if slot.holds is prompt), self._free[0])
            self._free.remove(slot)
            try:
                yield slot
            finally:
                self._free.append(slot)
