"""Turns by fair shares: each client has its part of the slots, each question its part of that.

For questions that clients keep sending. It is fair queueing by the time that slots are held, at two
levels: clients share the slots, and the questions of a client share what the client gets. The
virtual time of a level and the rule for those that come anew are those of WF2Q+ (Bennett and Zhang,
1997); the order, by what each had before its next trace, is that of start-time fair queueing
(Goyal, Vin and Cheng, 1996).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import monotonic
from typing import Generic, TypeVar

from conviction.sharing import Place, Turns

_HEAD_START = 4
"""Mean traces that a question may have beyond its share when it comes; `settle` needs so many."""
_PROMISED = 0.8
"""Part of the slots that is shared evenly for sure; the rest gives newcomers their head start."""
_FIRST_GUESS = 1.0
"""Assumed seconds of a trace before the first one ended."""
_WEIGHT_OF_NEWEST = 0.1

T = TypeVar("T")


class FairShares(Turns):
    """The order for questions that clients keep sending.

    Guarantee: let S be the number of slots, c the most clients at a time, and q the most questions
    at a time of this client. A question that waits gets at least 1/m of the time of all slots,
    m = 5/4 c x 5/4 q, with 1 for the factor of a single client or question. So it is answered
    within

        (m + 1) x (its time alone) + m / S x (head start + longest trace) + 2 x (longest trace)

    whatever others ask. Running traces are not interrupted for others, hence the longest trace. A
    property test holds this (tests/test_fair_shares.py).

    How: every client, and every question of a client, has a tag: the clock of its level when it
    joined plus the seconds that its traces have held slots since. The clock advances by 4/5 of the
    seconds that slots are held, divided by the number of members. The client with the lowest tag is
    next, and of its questions, the one with the lowest tag. A new member starts a head start of
    four mean traces below the clock, so that easy questions are answered soon; the fifth that is
    not promised pays for it. Members that are further behind come before all new ones. Unused time
    of a member that had nothing to begin is forgotten except for the head start, and so is time
    that it used because no other member needed it.

    A trace that begins counts with the mean seconds of earlier ones of its question (or of all),
    and when it ends with those that it took. Time is what counts, not tokens: prompts, silent
    servers and traces that are given up before their first token hold slots, too.

    Beginning or ending a trace takes O(log n).

    Args:
        clock: Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._clients = _Level[_Client]()
        self._client_of: dict[str, _Client] = {}
        self._questions: dict[int, _Question] = {}
        self._mean_seconds: float | None = None

    def joined(self, place: Place) -> None:
        """Give it a share among the questions of its client."""
        now = self._clock()
        client = self._client_of.get(place.client)
        if client is None:
            client = _Client(place.client)
            client.share = self._clients.join(client, place.number, now, self._head_start)
            self._client_of[place.client] = client
        question = _Question(place, client)
        question.share = client.level.join(question, place.number, now, self._head_start)
        self._questions[place.number] = question

    def changed(self, place: Place) -> None:
        """Line it up if it is ready, and its client."""
        question, now = self._questions[place.number], self._clock()
        client = question.client
        client.level.set_ready(question.share, now, self._head_start, ready=place.ready)
        ready = client.level.first() is not None
        self._clients.set_ready(client.share, now, self._head_start, ready=ready)

    def next(self) -> Place | None:
        """The question with the least of the client with the least."""
        client = self._clients.first()
        question = client.level.first() if client else None
        return question.place if question else None

    def began(self, place: Place) -> None:
        """Count its trace with the seconds that it will probably take."""
        question, now = self._questions[place.number], self._clock()
        guess = question.mean_seconds or self._mean_seconds or _FIRST_GUESS
        question.begun.append((now, guess))
        self._count(question, guess, now, running=1)
        self.changed(place)

    def ended(self, place: Place) -> None:
        """Count its trace with the seconds that it took."""
        # Which of its traces ended makes no difference to the sum.
        question, now = self._questions[place.number], self._clock()
        began, guess = question.begun.popleft()
        seconds = now - began
        self._count(question, seconds - guess, now, running=-1)
        question.mean_seconds = _moved(question.mean_seconds, seconds)
        self._mean_seconds = _moved(self._mean_seconds, seconds)

    def left(self, place: Place) -> None:
        """Let the others have its share."""
        question, now = self._questions.pop(place.number), self._clock()
        client = question.client
        while question.begun:
            began, guess = question.begun.popleft()
            self._count(question, now - began - guess, now, running=-1)
        client.level.leave(question.share, now)
        if not client.level.members:
            self._clients.leave(client.share, now)
            del self._client_of[client.name]
        elif client.level.first() is None:
            self._clients.set_ready(client.share, now, self._head_start, ready=False)

    @property
    def _head_start(self) -> float:
        return _HEAD_START * (self._mean_seconds or _FIRST_GUESS)

    def _count(self, question: "_Question", seconds: float, now: float, *, running: int) -> None:
        client = question.client
        client.level.count(question.share, seconds, now, running=running)
        self._clients.count(client.share, seconds, now, running=running)


@dataclass(eq=False)
class _Share(Generic[T]):
    """What a member of a level had.

    Attributes:
        tag: The seconds that it held slots, from where the clock stood when it came.
        ready: Whether it waits for a turn.
        version: How often it was lined up.
    """

    owner: T
    number: int
    tag: float
    ready: bool = False
    version: int = 0


class _Level(Generic[T]):
    """Members that have even parts of some slots, and those that wait, by tag."""

    def __init__(self) -> None:
        self.members = 0
        self._virtual = 0.0
        self._running = 0
        self._at = 0.0
        # A share that is lined up anew leaves its old entry behind, with an older version.
        self._line: list[tuple[float, int, int, _Share[T]]] = []

    def join(self, owner: T, number: int, now: float, head_start: float) -> _Share[T]:
        self._go_on(now)
        self.members += 1
        return _Share(owner, number, self._virtual - head_start)

    def leave(self, share: _Share[T], now: float) -> None:
        self._go_on(now)
        self.members -= 1
        share.ready = False

    def set_ready(self, share: _Share[T], now: float, head_start: float, *, ready: bool) -> None:
        if ready == share.ready:
            return
        self._go_on(now)
        share.ready = ready
        if ready:
            least, most = self._virtual - head_start, self._virtual + head_start
            share.tag = min(max(share.tag, least), most)
            self._line_up(share)

    def count(self, share: _Share[T], seconds: float, now: float, *, running: int) -> None:
        """Add to what a member had, and to how many slots are held."""
        self._go_on(now)
        self._running += running
        share.tag += seconds
        if share.ready:
            self._line_up(share)

    def first(self) -> T | None:
        """The member with the lowest tag of those that are ready."""
        while self._line:
            tag, _, version, share = self._line[0]
            if share.ready and version == share.version:
                # Where all had more than the clock says, the others needed less than their part.
                self._virtual = max(self._virtual, tag)
                return share.owner
            heappop(self._line)
        return None

    def _line_up(self, share: _Share[T]) -> None:
        share.version += 1
        heappush(self._line, (share.tag, share.number, share.version, share))

    def _go_on(self, now: float) -> None:
        self._virtual += _PROMISED * (now - self._at) * self._running / max(self.members, 1)
        self._at = now


@dataclass(eq=False)
class _Question:
    """A question, with when its running traces began and the seconds that each counts with."""

    place: Place
    client: "_Client"
    begun: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])
    mean_seconds: float | None = None
    share: "_Share[_Question]" = field(init=False)


@dataclass(eq=False)
class _Client:
    name: str
    level: _Level[_Question] = field(default_factory=_Level[_Question])
    share: "_Share[_Client]" = field(init=False)


def _moved(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _WEIGHT_OF_NEWEST * (newest - mean)
