"""Several servers as one engine: what they can do together, and which gets the next trace.

A server that failed is *drained*: it gets no new traces until it gives a sign of life again;
traces that still run on it go on. The balancer sends nothing. All state is of one event loop.
"""

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import anyio

from conviction.display import quoted
from conviction.engines.base import Capabilities
from conviction.engines.openai.facts import ServerFacts
from conviction.engines.openai.http import HttpClient
from conviction.engines.openai.probe import MOST_TOP_K
from conviction.errors import EngineError, InvalidSettingError

ServerT = TypeVar("ServerT")

_FIRST_REST = 0.5
_LONGEST_REST = 15.0
_LONGEST_WAIT = 120.0
"""Seconds that a server may ask us to wait; one that asks for more is given up."""


@dataclass(eq=False)
class Server:
    """One server: what speaks to it, and what is known of it.

    Attributes:
        facts: What was found out; None until it was asked.
        trouble: Why it is not used; None if it is.
        failing: Why it has not said yet what it can do, while it is asked again.
        remembered: Whether the facts are from an earlier run.
    """

    http: HttpClient
    facts: ServerFacts | None = None
    trouble: EngineError | None = None
    failing: EngineError | None = None
    remembered: bool = False

    def lose_gate(self) -> None:
        """Ask it for log-probabilities from now on: its gate was there, and is no longer."""
        if self.facts is not None:
            self.facts = replace(self.facts, gate=False, channel=False, stop_token=None)


def common_capabilities(servers: Sequence[Server], concurrency: int) -> Capabilities:
    """What servers can do together that get `concurrency` traces each; at least one must work.

    InvalidSettingError if they serve different models.
    """
    facts = [server.facts for server in servers if server.facts]
    if len({fact.model for fact in facts}) > 1:
        models = [
            f"{quoted(one.facts.model)} at {one.http.base_url}" for one in servers if one.facts
        ]
        raise InvalidSettingError(
            tried="think with several servers as one",
            found=f"they serve different models: {', '.join(models)}",
            remedy="Name a model that all of them serve, or give only servers of one model.",
        )
    weakest = min(facts, key=_most_k)
    return Capabilities(
        model=facts[0].model,
        top_k=_most_k(weakest),
        top_k_reason=weakest.top_k_reason,
        concurrency=concurrency * len(facts),
        context=min((fact.context for fact in facts if fact.context), default=None),
        seeds=all(fact.seeds for fact in facts),
        continues=all(fact.continues for fact in facts),
        gates=all(fact.gate for fact in facts),
        notes=tuple(_notes(servers, _most_k(weakest))),
    )


def _most_k(facts: ServerFacts) -> int:
    """The k that confidences may have: those of a channel need no log-probabilities."""
    return MOST_TOP_K if facts.channel else facts.top_k


def _notes(servers: Sequence[Server], top_k: int) -> Iterator[str]:
    """What to know before trusting or comparing results of these servers."""
    for server in servers:
        url, facts = server.http.base_url, server.facts
        if facts is None:
            yield f"{url} is left out: {server.trouble}"
            continue
        if facts.listed and facts.model not in facts.listed:
            yield (
                f"{url} does not list the model {quoted(facts.model)}, and may answer with "
                f"another: it lists {', '.join(map(quoted, facts.listed[:5]))}."
            )
        if 0 < _most_k(facts) < MOST_TOP_K and facts.top_k == top_k:
            yield (
                f"Token confidence is over k = {top_k}, and compares only with such: {url} was "
                f"{facts.top_k_reason}."
            )
        if facts.raw is False and not facts.channel:
            yield (
                f"Log-probabilities of {url} change with the temperature: confidences compare "
                "only between traces of the same sampling."
            )
        if facts.incremental is False:
            yield (
                f"Tokens of {url} arrive in lumps: something holds the stream back, so a trace "
                "that is stopped early may have been generated to its end."
            )
        if facts.frees is False:
            yield f"{url} went on generating after its stream was closed: stopping saves little."
        if server.http.sends_key_in_the_open:
            yield f"The key travels to {url} without TLS, so others may read it."
    if len({server.facts.channel or server.facts.raw for server in servers if server.facts}) > 1:
        yield "Servers differ in how they take log-probabilities: confidences may not compare."


def backoff(failures: int) -> float:
    """Seconds to wait after some failures in a row, from 0; random, to spread what comes back."""
    longest = min(_FIRST_REST * 2**failures, _LONGEST_REST)
    return longest * random.uniform(0.75, 1.25)  # noqa: S311


@dataclass(eq=False)
class Endpoint(Generic[ServerT]):
    """One server as the balancer sees it.

    Attributes:
        most: The most traces that it gets at once.
        limit: The most for now: fewer after it said that they are too many.
        open: Traces that it has.
        outstanding: Tokens that these may still generate.
        trusted: Whether its last response was good; else it is checked first.
        rests_until: Until when it is left alone.
        last: Its last failure.
    """

    server: ServerT
    most: int
    open: int = 0
    outstanding: int = 0
    trusted: bool = True
    checking: bool = False
    rests_until: float = 0.0
    last: EngineError | None = None
    limit: int = field(init=False)
    _failures: int = 0
    _failing_since: float | None = None
    _asked_until: float = 0.0

    def __post_init__(self) -> None:
        self.limit = self.most

    def has_room(self, now: float) -> bool:
        """Whether it may be given a trace, perhaps after a check."""
        return self.open < self.limit and now >= self.rests_until and not self.checking

    def answered(self) -> None:
        """It took a trace."""
        self.trusted, self._failing_since = True, None

    def completed(self) -> None:
        """A trace came to its end there, so it may be able to take one more."""
        self._failures = 0
        self.limit = min(self.most, self.limit + 1)

    def broke(self, now: float) -> None:
        """A stream of it broke: leave it alone for a while, then check."""
        self.trusted = False
        self._rest(now)

    def failed(self, error: EngineError, now: float) -> None:
        """It could not be reached, or is in trouble: leave it alone for a while, then check."""
        self.trusted = False
        self._fail(error, now)

    def crowded(self, error: EngineError, now: float, wait: float | None) -> None:
        """It has too many traces: give it no more than it took, and rest as long as it asks."""
        self.limit = max(1, self.open)
        self._fail(error, now)
        if wait is not None:
            self._asked_until = max(self._asked_until, now + wait)
            self.rests_until = max(self.rests_until, self._asked_until)

    def hopeless(self, now: float, patience: float) -> bool:
        """Whether waiting for it is over: it fails for too long, or asks for too much time."""
        if self.open or self._failing_since is None:
            return False  # What still runs there ends some time, and tells more.
        if self._asked_until - now > _LONGEST_WAIT:
            return True
        failing = now - self._failing_since
        # However often it asks for time, it is not given more than once the longest wait.
        asked = now < self._asked_until and failing <= patience + _LONGEST_WAIT
        return failing > patience and not asked

    @property
    def failure(self) -> EngineError | None:
        """Its last failure, if it has taken no trace since."""
        return self.last if self._failing_since is not None else None

    def _fail(self, error: EngineError, now: float) -> None:
        self.last = error
        if self._failing_since is None:
            self._failing_since = now
        self._rest(now)

    def _rest(self, now: float) -> None:
        if now >= self.rests_until:  # One outage meets many traces; it counts once.
            self.rests_until = now + backoff(self._failures)
            self._failures += 1


@dataclass(eq=False)
class Lease(Generic[ServerT]):
    """A trace's place on a server, and the tokens that it may still generate there."""

    endpoint: Endpoint[ServerT]
    tokens: int

    def advance(self, tokens: int) -> None:
        """Some of the tokens have come."""
        came = min(tokens, self.tokens)
        self.tokens -= came
        self.endpoint.outstanding -= came


@dataclass(eq=False)
class Balancer(Generic[ServerT]):
    """Gives each trace a place on the server with the fewest outstanding tokens.

    Attributes:
        endpoints: The servers, at least one.
        check: Asks one for a sign of life; raises EngineError if there is none.
        patience: Seconds that all may fail before waiting ends with the last error.
    """

    endpoints: Sequence[Endpoint[ServerT]]
    check: Callable[[ServerT], Awaitable[object]]
    patience: float
    clock: Callable[[], float] = time.monotonic
    _waiting: deque[anyio.Event] = field(default_factory=deque[anyio.Event])

    async def take(self, tokens: int) -> Lease[ServerT]:
        """Wait for a place for a trace; EngineError once all servers have failed for too long."""
        waited = False
        while True:
            now = self.clock()
            free = [endpoint for endpoint in self.endpoints if endpoint.has_room(now)]
            trusted = [endpoint for endpoint in free if endpoint.trusted]
            suspect = next((endpoint for endpoint in free if not endpoint.trusted), None)
            if suspect:
                # Also where others have room, or it would never come back.
                await self._examine(suspect)
            elif trusted:
                endpoint = min(trusted, key=lambda e: e.outstanding)
                endpoint.open += 1
                endpoint.outstanding += tokens
                if len(trusted) > 1 or endpoint.has_room(now):
                    self._wake_one()
                return Lease(endpoint, tokens)
            elif all(endpoint.hopeless(now, self.patience) for endpoint in self.endpoints):
                self._wake_one()  # One after the other hears of it.
                # A copy: one error raised for many traces would gather all their tracebacks.
                raise next(copy(e.last) for e in self.endpoints if e.last is not None)
            else:
                await self._wait(now, first=waited)
                waited = True

    def give_back(self, lease: Lease[ServerT], *, complete: bool = False) -> None:
        """The trace has ended. If it is complete, its server may be able to take one more."""
        endpoint = lease.endpoint
        endpoint.open -= 1
        endpoint.outstanding -= lease.tokens
        if complete:
            endpoint.completed()
        self._wake_one()

    async def _examine(self, endpoint: Endpoint[ServerT]) -> None:
        endpoint.checking = True
        try:
            await self.check(endpoint.server)
        except EngineError as error:
            endpoint.failed(error, self.clock())
        else:
            endpoint.trusted = True
        finally:
            endpoint.checking = False
            self._wake_one()

    async def _wait(self, now: float, *, first: bool) -> None:
        """Until a place may be free, or a rest is over; `first` of all who wait, or last."""
        ends = [e.rests_until for e in self.endpoints if e.rests_until > now]
        woken = anyio.Event()
        self._waiting.insert(0 if first else len(self._waiting), woken)
        cancelled = True
        try:
            with anyio.move_on_after(min(ends) - now if ends else None):
                await woken.wait()
            cancelled = False
        finally:
            if not woken.is_set():
                self._waiting.remove(woken)
            if cancelled:
                self._wake_one()  # Another waiter must look instead.

    def _wake_one(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
