"""Which requests run, which wait, and which are refused."""

from collections import Counter, deque
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import Self

import anyio

from conviction.errors import OverloadedError
from conviction.server.settings import Queueing

_FIRST_GUESS = 10.0
"""Assumed seconds of a verdict before the first one."""
_WEIGHT_OF_NEWEST = 0.1
_LONGEST_WAIT = 120
_RESERVE = 4
"""A client with nothing running finds room beyond the bound, up to a quarter more."""


class Ticket:
    """A request that runs or waits for its turn; made by `Admission.join`.

    `called` is set when it is its turn. Leaving its context gives the turn to the next; it can be
    left more than once.
    """

    def __init__(self, admission: "Admission", client: str) -> None:
        self.client = client
        self.called = anyio.Event()
        self.began = 0.0
        self._left = False
        self._admission = admission

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the turn to the next, once."""
        if not self._left:
            self._left = True
            self._admission.leave(self)


class Admission:
    """A bounded queue in front of a bounded number of verdicts; clients take turns.

    One client that fills the bound must not keep all others waiting until its verdicts are done. So
    a client that has none running may begin one beyond the bound, as long as at most a quarter more
    than the bound run.
    """

    def __init__(self, queueing: Queueing, clock: Callable[[], float] = monotonic) -> None:
        self.running = 0
        self.queued = 0
        self._bounds = queueing
        self._clock = clock
        # In order of turns: a client that was served goes to the end, unless nothing of it waits.
        self._waiting: dict[str, deque[Ticket]] = {}
        self._running_of: Counter[str] = Counter()
        self._mean_seconds: float | None = None

    def join(self, key: str, address: str = "") -> Ticket:
        """Take a place, to run or in the queue; OverloadedError if too many wait already.

        Args:
            key: Name of the client's key; "" where there are no keys.
            address: Tells clients apart where there are no keys.
        """
        client = key or address
        ticket = Ticket(self, client)
        if self._may_run(client):  # Then none that waits may run.
            self._call(ticket)
            return ticket
        if self.queued >= self._bounds.queued:
            raise self._overloaded("the queue", self._bounds.queued, own=False)
        own = self._waiting.get(client, deque[Ticket]())
        # Many users may have one address, so without keys all share the one bound.
        if key and len(own) >= self._bounds.queued_per_client:
            raise self._overloaded("your queue", self._bounds.queued_per_client, own=True)
        own.append(ticket)
        self._waiting[client] = own
        self.queued += 1
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the turn of a ticket to the next."""
        if not ticket.called.is_set():
            tickets = self._waiting[ticket.client]
            tickets.remove(ticket)
            self.queued -= 1
            if not tickets:
                del self._waiting[ticket.client]
            return
        seconds = self._clock() - ticket.began
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _WEIGHT_OF_NEWEST * (seconds - mean)
        self.running -= 1
        self._running_of[ticket.client] -= 1
        if not self._running_of[ticket.client]:
            del self._running_of[ticket.client]
        while (client := next(filter(self._may_run, self._waiting), None)) is not None:
            tickets = self._waiting.pop(client)
            following = tickets.popleft()
            if tickets:
                self._waiting[client] = tickets
            self.queued -= 1
            self._call(following)

    def _may_run(self, client: str) -> bool:
        """Whether one more verdict of a client may run now."""
        bound = self._bounds.running
        if client not in self._running_of:
            bound += bound // _RESERVE
        return self.running < bound

    @property
    def retry_after(self) -> int:
        """Seconds after which a new request may find room, estimated; from 1 to 120."""
        seconds = _FIRST_GUESS if self._mean_seconds is None else self._mean_seconds
        ahead = self.queued + 1
        return min(max(1, ceil(seconds * ahead / self._bounds.running)), _LONGEST_WAIT)

    def _call(self, ticket: Ticket) -> None:
        self.running += 1
        self._running_of[ticket.client] += 1
        ticket.began = self._clock()
        ticket.called.set()

    def _overloaded(self, queue: str, most: int, *, own: bool) -> OverloadedError:
        wait = self.retry_after
        return OverloadedError(
            tried="take one more request",
            found=f"{queue} is full, {most} wait already",
            remedy=f"Ask again in {wait} s.",
            retry_after=wait,
            own=own,
        )
