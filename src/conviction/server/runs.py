"""Every run of the server, with its tape, while it lasts and for some time after."""

import json
import time
from asyncio import CancelledError
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from secrets import token_hex
from typing import Any

import anyio
import anyio.to_thread

from conviction.errors import ConvictionError, InvalidSettingError
from conviction.events import Event, RunFinished, RunStarted
from conviction.history import History, PastVerdict
from conviction.server.failures import LOGGER, RequestError, status_and_body
from conviction.server.run_options import RunOptions
from conviction.server.tape import Frame, Tape, encode
from conviction.verdict import Verdict

_RECENT = 64
"""Frames that are kept for pages whose connection broke."""

_RECENT_BYTES = 1 << 20

_OFTEN, _SELDOM = 0.15, 0.3
"""Seconds between two frames: of few traces, and of many."""

_MANY = 64

_QUESTION = _ANSWER = 300
"""Characters of a question and of an answer in the list."""

_BASE_BYTES = 8192
"""Memory of a run beside its tape."""


class ServedRun:
    """One run, and the tape of it.

    Args:
        options: Of the run.
        on_finish: Called when it has ended.

    Attributes:
        id: Its name, which cannot be guessed.
        client: Name of the client's key; "" where there are no keys.
        tape: What happens in it.
        finished: Whether `finish` was called.
        size: Bytes that it takes, about; from then on.
    """

    def __init__(self, options: RunOptions, on_finish: Callable[["ServedRun"], None]) -> None:
        self.id = token_hex(12)
        self.client = options.client
        self.tape = Tape(options.text)
        self.finished = False
        self.size = 0
        self._created = time.time()
        self._facts = {"question": options.text[:_QUESTION], "policy": options.policy.name}
        self._on_finish = on_finish
        self._began: float | None = None
        self._outcome: Frame = {"answer": None, "share": None}
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._recent_bytes = 0

    def on_event(self, event: Event) -> None:
        """Take note of an event of the driver."""
        if self._began is None or isinstance(event, RunStarted):
            self._began = time.monotonic()
        self.tape.hear(event, time.monotonic() - self._began)

    def finish(self, outcome: Verdict | BaseException) -> None:
        """Take note of its verdict, or of the error or the cancellation that it ended with."""
        self.finished = True
        elapsed = 0.0 if self._began is None else time.monotonic() - self._began
        if isinstance(outcome, Verdict):
            if not self.tape.over:
                self.tape.hear(RunFinished(outcome), elapsed)
            answer = None if outcome.answer is None else outcome.answer[:_ANSWER]
            self._outcome = {"answer": answer, "share": outcome.share}
        elif isinstance(outcome, (CancelledError, GeneratorExit)):
            self.tape.fail("The client disconnected.", elapsed)
        else:
            self.tape.fail(status_and_body(outcome)[1]["error"]["message"], elapsed)
        self.size = self.tape.size + self._recent_bytes + _BASE_BYTES
        self._on_finish(self)

    def facts(self) -> dict[str, Any]:
        """Its entry in the list of runs."""
        state = "over" if self.tape.over else "waiting" if self._began is None else "running"
        facts = {"id": self.id, "created": self._created, "state": state}
        return facts | self._facts | self._outcome

    def snapshot(self) -> Frame:
        """The tape so far, as one frame."""
        self._publish()
        return self.tape.snapshot()

    async def whole(self) -> bytes:
        """The tape so far, as one frame in JSON."""
        return encode(self.snapshot())

    async def text(self, trace: int, most: int) -> dict[str, Any] | None:
        """What a trace wrote so far; None if there is no such trace."""
        return self.tape.text(trace, most)

    async def recorded(self) -> bytes:
        """The run as `Tape.recorded` describes it, in JSON."""
        self.snapshot()
        return encode(self.tape.recorded())

    async def frames(self, last: int | None, closing: anyio.Event) -> AsyncIterator[bytes]:
        """The frames for one page, as JSON, until the run is over.

        A page that asks for the next frame late gets one frame that says it all.

        Args:
            last: Number of the last frame that the page has; None for none.
            closing: Ends it, too.
        """
        while not closing.is_set():
            self._publish()
            for number, data in self._since(last):
                yield data
                last = number
            if self.tape.over and last == self.tape.number:
                return
            await anyio.sleep(_OFTEN if len(self.tape.traces) < _MANY else _SELDOM)

    def _publish(self) -> None:
        frame = self.tape.frame()
        if frame is None:
            return
        data = encode(frame)
        if len(self._recent) == self._recent.maxlen:
            self._recent_bytes -= len(self._recent[0][1])
        self._recent.append((frame["n"], data))
        self._recent_bytes += len(data)
        while self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def _since(self, last: int | None) -> list[tuple[int, bytes]]:
        """Frames after one, with their numbers; one with all of it if they are no longer kept."""
        number, kept = self.tape.number, len(self._recent)
        if last is None or not 0 <= number - last <= kept:
            return [(number, encode(self.tape.snapshot()))]
        return list(self._recent)[kept - (number - last) :]


class PastRun:
    """A run that the history keeps from an earlier start of the server.

    Args:
        entry: What the history lists of it.
        history: Holds the rest, which is read when it is looked at.
    """

    finished = True

    def __init__(self, entry: PastVerdict, history: History) -> None:
        self.id = entry.run
        self.client = entry.client
        self._entry = entry
        self._history = history

    def facts(self) -> dict[str, Any]:
        """Its entry in the list of runs."""
        entry = self._entry
        return {
            "id": self.id,
            "created": entry.asked,
            "state": "over",
            "question": entry.question[:_QUESTION],
            "policy": entry.policy,
            "answer": None if entry.answer is None else entry.answer[:_ANSWER],
            "share": entry.share,
        }

    async def whole(self) -> bytes:
        """The tape, as one frame."""
        return encode((await self._content())["frame"])

    async def frames(self, last: int | None, closing: anyio.Event) -> AsyncIterator[bytes]:
        """The one frame that says it all."""
        del last, closing
        yield await self.whole()

    async def text(self, trace: int, most: int) -> dict[str, Any] | None:
        """What a trace wrote; None if there is no such trace."""
        del most
        return (await self._content())["texts"].get(str(trace))

    async def recorded(self) -> bytes:
        """The run as `Tape.recorded` describes it, in JSON."""
        try:
            page = await anyio.to_thread.run_sync(self._history.page, self._entry.id)
        except InvalidSettingError:
            page = b""  # Deleted meanwhile.
        if not page:
            raise RequestError("This run is no longer kept.", code="no_run", status=404)
        return page

    async def _content(self) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(json.loads, await self.recorded())


AnyRun = ServedRun | PastRun


class Runs:
    """The active runs, the latest of the past ones, and those of earlier starts.

    Args:
        history: Where runs are kept beyond the end of the server; None for nowhere.
        most: Runs that are kept after their end.
        most_bytes: Memory that they may take, about.
    """

    def __init__(
        self, history: History | None = None, *, most: int = 200, most_bytes: int = 128 << 20
    ) -> None:
        self._history = history
        self._past: dict[str, PastRun] = {}
        self._most = most
        self._most_bytes = most_bytes
        self._all: OrderedDict[str, ServedRun] = OrderedDict()
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0

    def begin(self, options: RunOptions) -> ServedRun:
        """A new run."""
        run = ServedRun(options, self._keep)
        self._all[run.id] = run
        return run

    async def load(self) -> None:
        """List what the history keeps of earlier starts.

        Raises:
            RecordingError: the history cannot be read.
        """
        if self._history is None:
            return
        history = self._history
        listed = partial(history.entries, origin="serve", most=self._most)
        for entry in await anyio.to_thread.run_sync(listed):
            self._past[entry.run] = PastRun(entry, history)

    async def remember(self, run: ServedRun, verdict: Verdict, question: str) -> None:
        """Keep a run that has ended in the history, if there is one; a failure is logged."""
        if self._history is None:
            return
        run.snapshot()
        recorded = run.tape.recorded()

        def add(history: History) -> None:
            page = encode(recorded)
            history.add(
                verdict,
                question=question,
                origin="serve",
                client=run.client,
                run=run.id,
                page=page,
            )

        try:
            # Shielded: a server that ends keeps what it answered.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(add, self._history)
        except ConvictionError as error:
            LOGGER.warning("The history was not written. %s", error)

    def of(self, client: str) -> list[AnyRun]:
        """A client's runs, the newest first."""
        runs: list[AnyRun] = [*reversed(self._all.values()), *self._past.values()]
        return [run for run in runs if run.client == client]

    def find(self, run: str, client: str) -> AnyRun | None:
        """A client's run of that id."""
        found = self._all.get(run) or self._past.get(run)
        return found if found is not None and found.client == client else None

    def _keep(self, run: ServedRun) -> None:
        """Keep a run that has ended, in place of older ones."""
        size = run.size
        self._ended[run.id] = size
        self._bytes += size
        while len(self._ended) > self._most or (
            self._bytes > self._most_bytes and len(self._ended) > 1
        ):
            oldest, freed = self._ended.popitem(last=False)
            self._bytes -= freed
            del self._all[oldest]
