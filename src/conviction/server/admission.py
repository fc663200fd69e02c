"""Who thinks now, who waits, and who is sent away."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from math import ceil
from time import monotonic

import anyio

from conviction.errors import OverloadedError
from conviction.server.settings import Queueing

_FIRST_GUESS = 10.0
"""Seconds of a verdict before any was seen."""
_WEIGHT_OF_NEWEST = 0.1
_LONGEST_WAIT = 120


class Admission:
    """A bounded queue in front of a bounded number of verdicts; clients take turns.

    Args:
        queueing: The bounds.
        clock: Tells seconds.

    Attributes:
        running: Verdicts that are being thought about.
        queued: Verdicts that wait.
    """

    def __init__(self, queueing: Queueing, clock: Callable[[], float] = monotonic) -> None:
        self.running = 0
        self.queued = 0
        self._bounds = queueing
        self._clock = clock
        # In order of turns: who was served goes to the end; who waits for nothing is left out.
        self._waiting: dict[str, deque[anyio.Event]] = {}
        self._mean_seconds: float | None = None

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncGenerator[None]:
        """Wait for a turn, and have it while the block lasts.

        Raises:
            OverloadedError: too many wait already, of this client or of all.
        """
        await self._wait(client)
        began = self._clock()
        try:
            yield
        finally:
            self._learn(self._clock() - began)
            self.running -= 1
            self._admit()

    @property
    def retry_after(self) -> int:
        """Seconds after which a new request may find room, estimated; from 1 to 120."""
        seconds = _FIRST_GUESS if self._mean_seconds is None else self._mean_seconds
        ahead = self.queued + 1
        return min(max(1, ceil(seconds * ahead / self._bounds.running)), _LONGEST_WAIT)

    def check(self, client: str) -> None:
        """Check that one more of a client may at least wait.

        Raises:
            OverloadedError: too many wait already, of this client or of all.
        """
        if self.running < self._bounds.running and not self.queued:
            return
        if self.queued >= self._bounds.queued:
            raise self._overloaded("the queue", self._bounds.queued, own=False)
        own = len(self._waiting.get(client, ()))
        if own >= self._bounds.queued_per_client:
            raise self._overloaded("your queue", self._bounds.queued_per_client, own=True)

    async def _wait(self, client: str) -> None:
        self.check(client)
        if self.running < self._bounds.running and not self.queued:
            self.running += 1
            return
        turn = anyio.Event()
        self._waiting.setdefault(client, deque()).append(turn)
        self.queued += 1
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # Its turn came in the very moment that it gave up.
                self.running -= 1
                self._admit()
            else:
                self._forget(client, turn)
            raise

    def _admit(self) -> None:
        while self._waiting and self.running < self._bounds.running:
            client, turns = next(iter(self._waiting.items()))
            del self._waiting[client]
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns
            self.queued -= 1
            self.running += 1
            turn.set()

    def _forget(self, client: str, turn: anyio.Event) -> None:
        turns = self._waiting[client]
        turns.remove(turn)
        self.queued -= 1
        if not turns:
            del self._waiting[client]

    def _learn(self, seconds: float) -> None:
        before = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = before + _WEIGHT_OF_NEWEST * (seconds - before)

    def _overloaded(self, queue: str, most: int, *, own: bool) -> OverloadedError:
        wait = self.retry_after
        return OverloadedError(
            tried="take one more request",
            found=f"{queue} is full: {most} wait already",
            remedy=f"Ask again in {wait} s.",
            retry_after=wait,
            own=own,
        )
