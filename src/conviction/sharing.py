"""Many questions, one engine: which question gets the next free slot, and if the tokens allow it.

Nothing waits in here: a question takes a place, says how many traces it wants, and is called back
when one of them may begin. `Turns` say whose turn it is: `NearestFirst` for questions that are all
there from the beginning, `conviction.fair_shares.FairShares` for those that clients keep sending.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Self

from conviction.core import FinishReason, Trace, require_whole

_TELLING = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOW_CONFIDENCE)
"""Traces that end so count for the mean length of a trace."""


@dataclass(eq=False)
class Place:
    """One question's place among those that share an engine; made by `Slots.place`.

    Leaving its context gives back all that it holds; none of its traces may run then.

    Attributes:
        number: In order of joining, from 0.
        most: The most traces of it that run at once; None for as many as there are slots.
        total: Tokens that its traces together may generate; None for no bound of its own.
        client: Who asks; "" where that makes no difference.
        begin: Called when a waiting trace may begin; from then on it runs.
        end: Called when the total is spent.
        first: Traces that it wanted at first; None before it said so.
        begun: Traces that began, of which `running` have not ended.
        waiting: Traces that wait for their turn.
        need: The fewest votes that would settle it; None where its policy cannot tell.
        spent: Tokens that count towards its total, as they come.
    """

    _slots: "Slots"
    number: int
    most: int | None = None
    total: int | None = None
    client: str = ""
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None
    first: int | None = None
    begun: int = 0
    running: int = 0
    waiting: int = 0
    need: int | None = None
    spent: int = 0
    # Kept by the slots: tokens of its running traces. Kept by `NearestFirst`: further traces that
    # had begun when it began to wait, None while it does not; and how often it was lined up.
    live: int = 0
    since: int | None = None
    version: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.leave(self)

    @property
    def counts(self) -> bool:
        """Whether `generated` wants to hear of tokens as they come."""
        return self.total is not None or self._slots.total is not None

    @property
    def ready(self) -> bool:
        """Whether one of its traces may begin as soon as it is its turn."""
        return self.waiting > 0 and (self.most is None or self.running < self.most)

    @property
    def further(self) -> bool:
        """Whether it has had its first traces."""
        return self.first is not None and self.begun >= self.first

    @property
    def turn(self) -> tuple[bool, int, int]:
        """Its rank in `NearestFirst` among those that wait, the lowest first."""
        if not self.further:
            return False, self.begun, self.number
        # A question that does not know how far it is counts as half done.
        need = self.begun if self.need is None else self.need
        return True, (self.since or 0) + need, self.number

    def want(self, traces: int, need: int | None) -> None:
        """Set how many traces wait for their turn, and the votes that would settle it."""
        self._slots.want(self, traces, need)

    def generated(self, tokens: int) -> None:
        """Count tokens of a running trace."""
        self._slots.count(self, tokens)

    def ended(self, trace: Trace) -> None:
        """Give back the slot of a trace; whose turn it is comes out at the next `want`."""
        self._slots.give_back(self, trace)


class Turns(ABC):
    """Whose turn it is among the places that are ready; told of all that happens to them."""

    @abstractmethod
    def joined(self, place: Place) -> None:
        """A place was made."""

    @abstractmethod
    def changed(self, place: Place) -> None:
        """Another number of its traces waits or may run."""

    @abstractmethod
    def next(self) -> Place | None:
        """The place whose trace begins next; None if none may begin now."""

    @abstractmethod
    def began(self, place: Place) -> None:
        """One of its traces began."""

    @abstractmethod
    def ended(self, place: Place) -> None:
        """One of its traces ended."""

    @abstractmethod
    def left(self, place: Place) -> None:
        """It was given up, and with it all that runs of it."""


class NearestFirst(Turns):
    """The order for questions that are all there from the beginning.

    First traces come first, those of the question that had the fewest before others, so that all
    have one before any has two. Further traces go to the question that needs the fewest votes to be
    settled; each further trace that begins while a question waits lowers its need by one vote. So
    no question waits for more further traces of others than the votes it needs plus the number of
    questions. (Without that, more questions are settled at the end of a total, but fewer are right:
    benchmarks/README.md.)

    No trace begins before all places have said what they want. A question that comes later has its
    first traces before others have further ones: where new questions keep coming, use `FairShares`.
    """

    def __init__(self) -> None:
        self._further_traces = 0
        self._silent: set[int] = set()
        # A place that is lined up anew leaves its old entry behind, with an older version.
        self._line: list[tuple[tuple[bool, int, int], int, Place]] = []

    def joined(self, place: Place) -> None:
        """Wait until it has said what it wants."""
        self._silent.add(place.number)

    def changed(self, place: Place) -> None:
        """Line it up anew."""
        self._silent.discard(place.number)
        if not place.waiting:
            place.since = None
        elif place.since is None:
            place.since = self._further_traces
        self._line_up(place)

    def next(self) -> Place | None:
        """The nearest; None before all have said what they want."""
        while self._line and not self._silent:
            _, version, place = self._line[0]
            if place.ready and version == place.version:
                return place
            heappop(self._line)
        return None

    def began(self, place: Place) -> None:
        """Line it up for its next trace."""
        self._further_traces += _is_contested(place)
        place.since = self._further_traces if place.waiting else None
        self._line_up(place)

    def ended(self, place: Place) -> None:
        """It is lined up when it says what it wants."""

    def left(self, place: Place) -> None:
        """Wait for it no longer."""
        self._silent.discard(place.number)

    def _line_up(self, place: Place) -> None:
        place.version += 1
        if place.ready:
            heappush(self._line, (place.turn, place.version, place))


class Slots:
    """The slots of one engine, and perhaps a total of tokens, shared by many questions.

    No slot is idle while a trace waits that may begin. Whose trace begins is up to the turns.

    Guarantee: with `NearestFirst`, no question waits for more further traces of others than the
    votes that it needs plus the number of questions. With `FairShares`, a question that shares S
    slots with n - 1 others of its client at most is answered within m + 1 times its time alone,
    m = 5/4 n, plus (5 m / S + 2) times the longest trace; other clients count as well.

    Tokens: a trace begins only if the total covers the tokens spent by ended traces, those of
    running traces (at least the mean of ended ones for each), and that mean for itself. Before any
    has ended, `longest` stands for the mean, and one trace may begin as long as any token is left.
    If the total covers no further trace and none runs, or if it is exceeded, all places are called
    to end. So it is exceeded by the chunk that exceeds it and what the other running traces
    generate until they are cancelled, as a rule a chunk each.

    Args:
        concurrency: Traces that run at once, at least 1.
        total: Tokens that all traces together may generate, at least 1; None for any number.
        spent: Tokens of all traces: as they come if there is a total, else when a trace ends.
        longest: The most tokens of a trace.
        turns: Whose turn it is; None for `NearestFirst`.

    Attributes:
        running: Traces that run.
        contested: Questions that had more than their first traces and still take part.
        over: Whether the total is spent.

    Raises:
        InvalidSettingError: concurrency or total lie outside their range.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        total: int | None = None,
        spent: int = 0,
        longest: int = 1,
        turns: Turns | None = None,
    ) -> None:
        require_whole("concurrency", concurrency, low=1)
        if total is not None:
            require_whole("total_tokens", total, low=1)
        self.total = total
        self.spent = spent
        self.running = 0
        self.contested = 0
        self.over = False
        self._concurrency = concurrency
        self._longest = longest
        self._live = 0
        self._lengths = 0
        self._sum_of_lengths = 0
        self._turns = turns or NearestFirst()
        self._joined = 0
        self._places: dict[int, Place] = {}

    def place(
        self, *, most: int | None = None, total: int | None = None, client: str = ""
    ) -> Place:
        """A place for one more question, with bounds of its own on traces at once and on tokens.

        Make all places of `NearestFirst` before any is used: it waits until all have said what they
        want. The chunk that exceeds its total of tokens calls it to end.

        Raises:
            InvalidSettingError: a bound is below 1.
        """
        if most is not None:
            require_whole("most", most, low=1)
        if total is not None:
            require_whole("total_tokens", total, low=1)
        place = Place(self, self._joined, most, total, client)
        self._places[place.number] = place
        self._joined += 1
        self._turns.joined(place)
        return place

    def want(self, place: Place, traces: int, need: int | None) -> None:
        """`Place.want`."""
        if place.number not in self._places:
            return
        if place.first is None:
            place.first = traces
        place.waiting, place.need = traces, need
        self._turns.changed(place)
        self._begin_what_may()
        if self.over and place.waiting:
            place.end()

    def count(self, place: Place, tokens: int) -> None:
        """`Place.generated`."""
        place.spent += tokens
        if place.total is not None and place.spent > place.total:
            place.end()
        if self.total is None:
            return
        place.live += tokens
        self._live += tokens
        self.spent += tokens
        if self.spent > self.total:
            self._end_all()

    def give_back(self, place: Place, trace: Trace) -> None:
        """`Place.ended`."""
        tokens = trace.tokens + trace.lost_tokens
        if self.total is None:
            self.spent += tokens
        else:
            place.live -= tokens
            self._live -= tokens
        if trace.finish in _TELLING and trace.continues is None:
            self._lengths += 1
            self._sum_of_lengths += tokens
        place.running -= 1
        self.running -= 1
        self._turns.ended(place)

    def leave(self, place: Place) -> None:
        """Give back all that a place holds, and let others begin."""
        if self._places.pop(place.number, None) is None:
            return
        self._turns.left(place)
        self.contested -= _is_contested(place)
        self.running -= place.running
        self._live -= place.live
        place.waiting = place.running = place.live = 0
        self._begin_what_may()

    def _begin_what_may(self) -> None:
        while not self.over and self.running < self._concurrency:
            place = self._turns.next()
            if place is None:
                return
            if not self._covers_another():
                if not self.running:
                    self._end_all()
                return
            self._begin(place)

    def _covers_another(self) -> bool:
        if self.total is None:
            return True
        if not self.running and not self._lengths:
            return self.spent < self.total
        mean = self._sum_of_lengths / self._lengths if self._lengths else self._longest
        promised = max(self._live, self.running * mean) + mean
        return self.spent - self._live + promised <= self.total

    def _begin(self, place: Place) -> None:
        self.contested -= _is_contested(place)
        place.begun += 1
        self.contested += _is_contested(place)
        place.running += 1
        self.running += 1
        place.waiting -= 1
        self._turns.began(place)
        place.begin()

    def _end_all(self) -> None:
        if not self.over:
            self.over = True
            for place in list(self._places.values()):
                place.end()


def _is_contested(place: Place) -> bool:
    return place.first is not None and place.begun > place.first
