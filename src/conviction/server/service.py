"""What all requests share: the engine, its slots, the queue, and the runs."""

from asyncio import CancelledError
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from opentelemetry.trace import TracerProvider

from conviction.answers import AnswerKind, kind
from conviction.engines.base import Capabilities, Engine
from conviction.errors import ConvictionError, EngineError, OverloadedError, ShuttingDownError
from conviction.events import Event, Listener
from conviction.server.admission import Admission, Ticket
from conviction.server.asked import Asked
from conviction.server.metrics import Metrics, Spent
from conviction.server.runs import Run, Runs
from conviction.server.settings import Settings
from conviction.server.telemetry import Telemetry
from conviction.sharing import Slots
from conviction.tasks import unless_ended
from conviction.thinking import deliberate
from conviction.verdict import Verdict

__all__ = ["Asked", "Pending", "Run", "Service"]

_HEALTH_SECONDS = 2.0
"""How long what was found out about the engine's health is believed."""
_CHECK_SECONDS = 5.0


class Service:
    """What all requests share. Entering it starts the engine; leaving it ends all that runs.

    Args:
        settings: What the server was told.
        engine: Generates the traces; not started yet.
        tracing: Where spans go; None for what the process has set up, which may be nowhere.

    Attributes:
        settings: As given.
        engine: As given.
        capabilities: What the engine can do, from when the service was entered.
        admission: Who thinks and who waits.
        metrics: What is counted.
        telemetry: What is told to OpenTelemetry.
        active: What ends a run with the votes it has, by the run's id.
        runs: Every run, of the API and of the page.
        closing: Set when the server was told to end: endless streams must end then.
    """

    capabilities: Capabilities

    def __init__(
        self, settings: Settings, engine: Engine, *, tracing: TracerProvider | None = None
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.admission = Admission(settings.queueing)
        self.runs = Runs()
        self.closing = anyio.Event()
        self.metrics = Metrics(self.admission, lambda: self._slots.running)
        self.telemetry = Telemetry(tracing, content=settings.log_content)
        self.active: dict[str, anyio.Event] = {}
        self._kinds: dict[str, AnswerKind] = {}
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup
        self._slots = Slots(1)
        self._health: tuple[float, EngineError | None] | None = None

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
            stack.callback(self._tasks.cancel_scope.cancel)
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

    def join(self, asked: Asked) -> "Pending":
        """Take a place for a request; leave its context to give it back.

        Raises:
            OverloadedError: too many wait already.
            ShuttingDownError: the server is about to end.
        """
        if self.closing.is_set():
            self.metrics.refuse("closing")
            raise ShuttingDownError(
                tried="take one more request",
                found="the server is about to end",
                remedy="Ask again when it has been started anew.",
            )
        try:
            ticket = self.admission.join(asked.client)
        except ConvictionError:
            self.metrics.refuse("overloaded")
            raise
        return Pending(self, asked, ticket)

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
            RefusedError: too many wait already, or the server is about to end.
            ConvictionError: as `deliberate` raises.
        """
        with self.join(asked) as pending:
            return await pending.think(on_event=on_event, interrupt=interrupt)

    def begin(self, asked: Asked) -> Run:
        """Begin a run that goes on whoever listens, and tell which; it hears how it ends.

        Raises:
            RefusedError: too many wait already, or the server is about to end.
        """
        pending = self.join(asked)
        self._tasks.start_soon(self._in_background, pending)
        return pending.run

    def interrupt(self, run: str) -> bool:
        """Let a run end with the votes it has; whether there is one of that id that runs."""
        event = self.active.get(run)
        if event is not None:
            event.set()
        return event is not None

    def close(self) -> None:
        """Take no more requests."""
        self.closing.set()

    async def drain(self) -> None:
        """After the time that the settings give, let all that runs end with the votes it has."""
        await anyio.sleep(self.settings.drain_seconds)
        for event in list(self.active.values()):
            event.set()

    async def trouble(self) -> EngineError | None:
        """Why the engine cannot be used just now; None where it can. Asked every two seconds."""
        now = anyio.current_time()
        if self._health is None or now - self._health[0] > _HEALTH_SECONDS:
            self._health = (now, await self._check_engine())
        return self._health[1]

    async def _check_engine(self) -> EngineError | None:
        try:
            with anyio.fail_after(_CHECK_SECONDS):
                await self.engine.check()
        except TimeoutError:
            return EngineError(
                tried=f"reach {self.engine.name}",
                found=f"it did not answer within {_CHECK_SECONDS:g} s",
                remedy="See whether it runs.",
            )
        except EngineError as error:
            return error
        return None

    async def _in_background(self, pending: "Pending") -> None:
        with pending:
            try:
                await pending.think()
            except ConvictionError:
                return  # The run has heard of it.

    async def deliberate(self, asked: Asked, listener: Listener, interrupt: anyio.Event) -> Verdict:
        """Think about a request whose turn has come."""
        with self._slots.place(most=asked.concurrency, total=asked.total_tokens) as place:
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

    def _kind(self, name: str) -> AnswerKind:
        if name not in self._kinds:
            self._kinds[name] = kind(name)
        return self._kinds[name]

    def _close_kinds(self) -> None:
        for answers in self._kinds.values():
            answers.close()


class Pending:
    """A request that has its place; made by `Service.join`.

    Attributes:
        asked: What to think about.
        run: The run that it is.
    """

    def __init__(self, service: Service, asked: Asked, ticket: Ticket) -> None:
        self.asked = asked
        self.run = service.runs.begin(asked)
        self._ticket = ticket
        self._service = service
        self._concluded = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ticket.__exit__(kind, error, traceback)
        if not self._concluded:
            self.run.finished(error or CancelledError())

    async def think(
        self, *, on_event: Listener | None = None, interrupt: anyio.Event | None = None
    ) -> Verdict:
        """Wait for its turn, then think; as `Service.think`."""
        service, event = self._service, interrupt or anyio.Event()
        spent = Spent()
        service.active[self.run.id] = event
        try:
            with service.telemetry.verdict(self.asked, self.run.id) as span:
                listeners = (spent.on_event, self.run.listener, span.on_event, on_event)
                with self._ticket:  # Whoever reads the answer slowly holds no turn.
                    await self._turn(event)
                    verdict = await service.deliberate(self.asked, _all(listeners), event)
        except BaseException as error:
            service.metrics.fail(error, spent)
            self._conclude(error)
            raise
        finally:
            del service.active[self.run.id]
        service.metrics.conclude(verdict)
        self._conclude(verdict)
        return verdict

    @property
    def waits(self) -> bool:
        """Whether its turn has not come yet."""
        return not self._ticket.called.is_set()

    async def _turn(self, interrupt: anyio.Event) -> None:
        seconds = self._service.settings.queueing.seconds
        _, ended = await unless_ended(self._ticket.turn, seconds, interrupt)
        if ended == "time":
            wait = self._service.admission.retry_after
            raise OverloadedError(
                tried="wait for a turn",
                found=f"it had not come after {seconds:g} s",
                remedy=f"Ask again in {wait} s.",
                retry_after=wait,
            )
        if ended and self.waits:
            raise ShuttingDownError(
                tried="wait for a turn",
                found="the run was ended before it came",
                remedy="Ask again.",
            )

    def _conclude(self, outcome: Verdict | BaseException) -> None:
        self._concluded = True
        self.run.finished(outcome)


def _all(listeners: Iterable[Listener | None]) -> Listener:
    listening = [listener for listener in listeners if listener is not None]

    def listen(event: Event) -> None:
        for listener in listening:
            listener(event)

    return listen
