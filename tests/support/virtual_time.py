"""Runs asynchronous code in a time of its own: waits take none, waiting for ever is an error."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


class StuckError(AssertionError):
    """Everything waits, and nothing will ever happen."""


class _Selector(selectors.DefaultSelector):
    """Lets time jump to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise StuckError(f"after {self.now:g} s all tasks wait for what will not come")
        self.now += timeout
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(main: Callable[[], Awaitable[T]]) -> T:
    """The result of `main`, in virtual time.

    Raises:
        StuckError: some task would have waited for ever.
    """
    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": _Loop})


def now() -> float:
    """Virtual seconds since the beginning."""
    return asyncio.get_running_loop().time()
