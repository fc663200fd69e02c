"""What all requests share: the engine, its slots, the queue, and the runs."""

from asyncio import CancelledError
from contextlib import AsyncExitStack, suppress
from typing import Self

import anyio
from anyio.abc import TaskGroup
from opentelemetry.trace import TracerProvider
from starlette.requests import HTTPConnection

from conviction.answers import AnswerKind, kind
from conviction.engines.base import Capabilities, Engine
from conviction.errors import ConvictionError, EngineError, OverloadedError, ShuttingDownError
from conviction.events import Event, Listener
from conviction.fair_shares import FairShares
from conviction.history import History
from conviction.server.admission import Admission, Ticket
from conviction.server.bodies import Memory, MemoryShare
from conviction.server.run_options import RequestResolver, RunOptions
from conviction.server.runs import Runs, ServedRun
from conviction.server.settings import Settings
from conviction.server.telemetry import Metrics, Tracing
from conviction.sharing import Slots
from conviction.tasks import unless_ended
from conviction.thinking import deliberate
from conviction.verdict import Verdict

_HEALTH_SECONDS = 2.0
"""How long a finding about the engine's health is reused."""
_CHECK_SECONDS = 5.0


class Service:
    """What all requests share. Entering it starts the engine; leaving it ends all that runs.

    Args:
        settings: Of the server.
        engine: Generates the traces; not started yet.
        tracing: Where spans go; None for what the process has set up, which may be nowhere.

    Attributes:
        capabilities: What the engine can do, from when the service was entered.
        resolver: Finds the run options of requests, from when the service was entered.
        active: What ends a run with the votes it has, by the run's id.
        memory: Counts the memory of all requests that are read, wait or run.
        runs: Every run, of the API and of the page.
        closing: Set when the server is about to end: endless streams must end then.
    """

    capabilities: Capabilities
    resolver: RequestResolver

    def __init__(
        self, settings: Settings, engine: Engine, *, tracing: TracerProvider | None = None
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.admission = Admission(settings.queueing)
        self.memory = Memory(settings.limits.request_bytes)
        history = History() if settings.history else None
        self.runs = Runs(history, most_bytes=settings.limits.run_bytes)
        self.closing = anyio.Event()
        self.metrics = Metrics(self.admission, lambda: self._slots.running)
        self.tracing = Tracing(tracing, content=settings.log_content)
        self.active: dict[str, anyio.Event] = {}
        self._kinds: dict[str, AnswerKind] = {}
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup
        self._slots = Slots(1)
        self._health: tuple[float, EngineError | None] | None = None

    async def __aenter__(self) -> Self:
        """Start the engine and find out what it can do; ConvictionError if it does not start."""
        async with AsyncExitStack() as stack:
            await self.runs.load()
            await stack.enter_async_context(self.engine)
            self.capabilities = await self.engine.capabilities()
            self.resolver = RequestResolver(self.settings, self.capabilities)
            self._slots = Slots(self.capabilities.concurrency, turns=FairShares())
            stack.callback(self._close_kinds)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what runs, and the engine."""
        await self._stack.aclose()

    @property
    def model(self) -> str:
        """The name that clients know the model by."""
        return self.resolver.model

    def join(self, options: RunOptions) -> "PendingRun":
        """Take a place for a run; leave its context to give it back.

        OverloadedError if too many wait already, ShuttingDownError if the server is about to end.
        """
        if self.closing.is_set():
            self.metrics.refuse("closing")
            raise ShuttingDownError(
                tried="take one more request",
                found="the server is about to end",
                remedy="Ask again when it has been started anew.",
            )
        share = MemoryShare(self.memory)
        try:
            share.take(options.size)
            ticket = self.admission.join(options.client, options.address)
        except ConvictionError:
            share.free()
            self.metrics.refuse("overloaded")
            raise
        return PendingRun(self, options, ticket, share)

    def begin(self, options: RunOptions) -> ServedRun:
        """Begin a run in the background: it goes on without a client that waits for it."""
        pending = self.join(options)

        async def think() -> None:
            with pending, suppress(ConvictionError):  # The run has noted it.
                await pending.think()

        self._tasks.start_soon(think)
        return pending.run

    def interrupt(self, run: str) -> bool:
        """Let a run end with the votes it has; whether a run of that id is active."""
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
        """Why the engine cannot be used just now; None if it can. Checked every two seconds."""
        now, trouble = anyio.current_time(), None
        if self._health is not None and now - self._health[0] <= _HEALTH_SECONDS:
            return self._health[1]
        try:
            with anyio.fail_after(_CHECK_SECONDS):
                await self.engine.check()
        except TimeoutError:
            trouble = EngineError(
                tried=f"reach {self.engine.name}",
                found=f"it did not answer within {_CHECK_SECONDS:g} s",
                remedy="See whether it runs.",
            )
        except EngineError as error:
            trouble = error
        self._health = (now, trouble)
        return trouble

    async def deliberate(
        self, options: RunOptions, listener: Listener, interrupt: anyio.Event
    ) -> Verdict:
        """Run the policy for a request whose turn has come."""
        if options.answers not in self._kinds:
            self._kinds[options.answers] = kind(options.answers)
        with self._slots.place(
            most=options.concurrency,
            total=options.total_tokens,
            client=options.client or options.address,
        ) as place:
            try:
                return await deliberate(
                    options.question,
                    engine=self.engine,
                    policy=options.policy,
                    answers=self._kinds[options.answers],
                    sampling=options.sampling,
                    seed=options.seed,
                    on_event=listener,
                    time_limit=options.time_limit,
                    interrupt=interrupt,
                    place=place,
                )
            finally:
                # They refer to the run, and the run to its place: nothing would be freed.
                place.begin = place.end = _nothing

    def keep(self, run: ServedRun, verdict: Verdict, question: str) -> None:
        """Keep a run in the history, if the settings say so; nothing waits for it."""
        if self.settings.history:
            self._tasks.start_soon(self.runs.remember, run, verdict, question)

    def _close_kinds(self) -> None:
        for answers in self._kinds.values():
            answers.close()


class PendingRun:
    """A run that waits for its turn or has it; made by `Service.join`."""

    def __init__(
        self, service: Service, options: RunOptions, ticket: Ticket, share: MemoryShare
    ) -> None:
        self.options = options
        self.run = service.runs.begin(options)
        self._share = share
        self._ticket = ticket
        self._service = service

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._ticket.leave()
        if not self.run.finished:
            self.run.finish(error or CancelledError())
        self._share.free()
        self._service.memory.collect(self.run.size)

    async def think(self) -> Verdict:
        """Wait for its turn, then run the policy. Cancelling the caller ends all traces at once.

        RefusedError if its turn did not come; else errors as of `deliberate`.
        """
        service, run, interrupt = self._service, self.run, anyio.Event()
        service.active[run.id] = interrupt
        listeners: list[Listener] = [run.on_event]

        def on_event(event: Event) -> None:
            for listener in listeners:
                listener(event)

        try:
            with service.tracing.verdict(self.options, run.id) as span:
                listeners.append(span.on_event)
                with self._ticket:  # A client that reads the answer slowly holds no turn.
                    await self._turn(interrupt)
                    verdict = await service.deliberate(self.options, on_event, interrupt)
        except BaseException as error:
            service.metrics.fail(error, traces=len(run.tape.traces), tokens=run.tape.tokens)
            run.finish(error)
            raise
        finally:
            del service.active[run.id]
            # What the driver leaves to the garbage collector must not hold the run.
            listeners.clear()
        service.metrics.finish(verdict)
        run.finish(verdict)
        service.keep(run, verdict, self.options.text)
        return verdict

    @property
    def waits(self) -> bool:
        """Whether its turn has not come yet."""
        return not self._ticket.called.is_set()

    async def _turn(self, interrupt: anyio.Event) -> None:
        seconds = self._service.settings.queueing.seconds
        _, ended = await unless_ended(self._ticket.called.wait, seconds, interrupt)
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


def _nothing() -> None:
    """Take no notice."""


def service_of(request: HTTPConnection) -> Service:
    """The service of the application that a request was sent to."""
    return request.app.state.service
