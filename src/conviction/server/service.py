"""What all requests share: the engine, its slots, the queue, and the runs."""

from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from conviction.answers import kind
from conviction.answers.base import AnswerKind
from conviction.engines.base import Capabilities, Engine
from conviction.errors import ConvictionError, ShuttingDownError
from conviction.events import Event, Listener
from conviction.server.admission import Admission
from conviction.server.asked import Asked
from conviction.server.runs import Run, Runs
from conviction.server.settings import Settings
from conviction.sharing import Slots
from conviction.thinking import deliberate
from conviction.verdict import Verdict

__all__ = ["Asked", "Run", "Service"]


class Service:
    """What all requests share. Entering it starts the engine; leaving it ends all that runs.

    Args:
        settings: What the server was told.
        engine: Generates the traces; not started yet.

    Attributes:
        settings: As given.
        engine: As given.
        capabilities: What the engine can do, from when the service was entered.
        admission: Who thinks and who waits.
        runs: Every run, of the API and of the page.
        closing: Set when the server was told to end: endless streams must end then.
    """

    capabilities: Capabilities

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.admission = Admission(settings.queueing)
        self.runs = Runs()
        self.closing = anyio.Event()
        self._active: dict[str, anyio.Event] = {}
        self._kinds: dict[str, AnswerKind] = {}
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup
        self._slots: Slots

    async def __aenter__(self) -> Self:
        """Start the engine and find out what it can do.

        Raises:
            ConvictionError: the engine does not start or cannot be used.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.engine)
            self.capabilities = await self.engine.capabilities()
            self._slots = Slots(self.capabilities.concurrency)
            stack.callback(self._close_kinds)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(lambda: self._tasks.cancel_scope.cancel())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what runs, and the engine."""
        await self._stack.aclose()

    @property
    def model(self) -> str:
        """The name that clients know the model by."""
        return self.settings.model or self.capabilities.model

    async def think(
        self,
        asked: Asked,
        *,
        on_event: Listener | None = None,
        interrupt: anyio.Event | None = None,
    ) -> Verdict:
        """Wait for a turn, then think. Cancelling the caller ends all traces at once.

        Args:
            asked: What to think about.
            on_event: Called with every event of the driver.
            interrupt: When set, the run ends with the votes it has.

        Raises:
            OverloadedError: too many wait already.
            ShuttingDownError: the server is about to end.
            ConvictionError: as `deliberate` raises.
        """
        self._check_open(asked)
        return await self._carry_out(asked, self.runs.begin(asked), on_event, interrupt)

    def begin(self, asked: Asked) -> Run:
        """Begin a run that goes on whoever listens, and tell which; it hears how it ends.

        Raises:
            OverloadedError: too many wait already.
            ShuttingDownError: the server is about to end.
        """
        self._check_open(asked)
        run = self.runs.begin(asked)
        self._tasks.start_soon(self._in_background, asked, run)
        return run

    def interrupt(self, run: str) -> bool:
        """Let a run end with the votes it has; whether there is one of that id that runs."""
        event = self._active.get(run)
        if event is not None:
            event.set()
        return event is not None

    def close(self) -> None:
        """Take no more requests."""
        self.closing.set()

    async def drain(self) -> None:
        """After the time that the settings give, let all that runs end with the votes it has."""
        await anyio.sleep(self.settings.drain_seconds)
        for event in list(self._active.values()):
            event.set()

    def _check_open(self, asked: Asked) -> None:
        if self.closing.is_set():
            raise ShuttingDownError(
                tried="take one more request",
                found="the server is about to end",
                remedy="Ask again when it has been started anew.",
            )
        self.admission.check(asked.client)

    async def _in_background(self, asked: Asked, run: Run) -> None:
        try:
            await self._carry_out(asked, run, None, None)
        except ConvictionError:
            return  # The run has heard of it.

    async def _carry_out(
        self,
        asked: Asked,
        run: Run,
        on_event: Listener | None,
        interrupt: anyio.Event | None,
    ) -> Verdict:
        try:
            with self._interruptible(run, interrupt) as event:
                async with self.admission.turn(asked.client):
                    verdict = await self._deliberate(asked, _both(run.listener, on_event), event)
        except BaseException as error:
            run.finished(error)
            raise
        run.finished(verdict)
        return verdict

    async def _deliberate(
        self, asked: Asked, listener: Listener, interrupt: anyio.Event
    ) -> Verdict:
        with self._slots.place() as place:
            return await deliberate(
                asked.question,
                engine=self.engine,
                policy=asked.policy,
                answers=self._kind(asked.answers),
                sampling=asked.sampling,
                seed=asked.seed,
                on_event=listener,
                time_limit=asked.time_limit,
                interrupt=interrupt,
                place=place,
            )

    @contextmanager
    def _interruptible(self, run: Run, interrupt: anyio.Event | None) -> Generator[anyio.Event]:
        event = interrupt or anyio.Event()
        self._active[run.id] = event
        try:
            yield event
        finally:
            del self._active[run.id]

    def _kind(self, name: str) -> AnswerKind:
        if name not in self._kinds:
            self._kinds[name] = kind(name)
        return self._kinds[name]

    def _close_kinds(self) -> None:
        for answers in self._kinds.values():
            answers.close()


def _both(first: Listener, second: Listener | None) -> Listener:
    if second is None:
        return first

    def listen(event: Event) -> None:
        first(event)
        second(event)

    return listen
