"""The driver: lets a policy steer an engine, for one question.

One task per trace reads the engine's stream and watches its gate; one loop hears of traces
that ended, asks the policy, and acts. Everything lives inside one task group, so nothing
outlives the run.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b
from math import inf

import anyio
from anyio.abc import TaskGroup

from conviction.answers import AnswerKind
from conviction.core import FinishReason, Question, Sampling, require, require_whole
from conviction.display import quoted
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.errors import (
    ContextOverflowError,
    ConvictionError,
    InvalidSettingError,
    NothingGeneratedError,
    StreamError,
)
from conviction.events import (
    Event,
    Listener,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceRestarted,
    TraceStarted,
)
from conviction.live import LiveTrace
from conviction.policies.base import (
    Action,
    Conditions,
    Continue,
    Done,
    Forget,
    PendingStarts,
    Policy,
    Start,
    Stop,
)
from conviction.sharing import Place, Slots
from conviction.tasks import helpers, unless_ended
from conviction.verdict import OUT_OF_TOKENS, Verdict
from conviction.verdict_builder import RunSetup, VerdictBuilder, cannot_continue, no_logprobs

TOP_K = 20
"""Log-probabilities per token that are asked for: the paper's k."""

RESTARTS = 2
"""How often a trace whose stream broke is begun again, if nothing else is said."""


def trace_seed(seed: int, question: str, trace: int) -> int:
    """The seed of one trace, in [0, 2**31): the same for the same run, question id and number."""
    digest = blake2b(f"{seed}/{question}/{trace}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


_FROM_OUTSIDE = (OUT_OF_TOKENS, "interrupted", "time")


async def deliberate(
    question: Question,
    *,
    engine: Engine,
    policy: Policy,
    answers: AnswerKind,
    sampling: Sampling | None = None,
    seed: int = 0,
    restarts: int = RESTARTS,
    logprobs: bool = False,
    on_event: Listener | None = None,
    time_limit: float | None = None,
    interrupt: anyio.Event | None = None,
    place: Place | None = None,
) -> Verdict:
    """Think about one question and return the verdict.

    Args:
        question: What to ask.
        engine: Generates the traces; already started.
        policy: Decides which traces to start, stop and count. A prototype: it is not changed.
        answers: Finds answers in traces and compares them.
        sampling: How tokens are drawn.
        seed: Seeds of all traces derive from it and the question's id.
        restarts: How often a trace whose stream broke begins again, at least 0; lost tokens count.
        logprobs: Whether traces keep the log-probability of each token, where the engine gives
            them. No policy looks at them.
        on_event: Called with every event, in order. It must not block; if it raises, it is
            not called again and the verdict says so.
        time_limit: Seconds after which the run ends with the votes it has.
        interrupt: When set, the run ends with the votes it has.
        place: Its place among other questions that share the engine's slots and perhaps a total of
            tokens, after which the run ends with the votes it has; given up with the run. Without
            one, it has the engine for itself.

    Raises:
        AllTracesFailedError: no trace came to an end; the causes are named. It is a
            NothingGeneratedError if the run was ended, by time or interrupt, before a token came.
        MissingLogprobsError: the policy needs token confidence and the engine gives none.
        CannotContinueError: the policy continues traces and the engine cannot.
        ContextOverflowError: prompt and trace do not fit the model's context.
        EngineError: the engine cannot be used at all, or counts no tokens where there is a total.
    """
    if time_limit is not None:
        require("time_limit", time_limit, low=0)
    require_whole("restarts", restarts, low=0)
    began = time.perf_counter()
    capabilities, ended = await unless_ended(engine.capabilities, time_limit, interrupt)
    capabilities = capabilities or Capabilities("", top_k=0, concurrency=1)
    if policy.needs_confidence and not capabilities.top_k and not ended:
        reason = capabilities.top_k_reason
        raise no_logprobs(engine, policy, f"it was {reason}" if reason else "it offers none")
    if policy.needs_continuation and not capabilities.continues and not ended:
        raise cannot_continue(engine, policy)
    place = place or Slots(capabilities.concurrency).place()
    setup = RunSetup(
        question=question,
        engine=engine,
        capabilities=capabilities,
        policy=policy.fresh(),
        answers=answers,
        sampling=sampling or Sampling(),
        seed=seed,
        top_k=min(TOP_K, capabilities.top_k),
        counted=place.counts,
    )
    run = _Run(setup, place, restarts=restarts, logprobs=logprobs, on_event=on_event, began=began)
    if ended:
        raise run.nothing(ended)
    return await run.run(time_limit, interrupt)


class _Run:
    """The state of one deliberation."""

    def __init__(
        self,
        setup: RunSetup,
        place: Place,
        *,
        restarts: int,
        logprobs: bool,
        on_event: Listener | None,
        began: float,
    ) -> None:
        self._setup = setup
        self._engine = setup.engine
        self._policy = setup.policy
        self._place = place
        self._restarts = restarts
        self._logprobs = logprobs
        self._on_event = on_event
        self._began = began
        self._pending = PendingStarts(setup.policy)
        self._live: dict[int, LiveTrace] = {}
        self._started = 0
        self._ended: str | None = None
        self._warnings: list[str] = []
        self._refused: ContextOverflowError | None = None
        self._builder = VerdictBuilder(setup)
        # Unbounded, but never holds more than one entry per trace of the budget, and None when the
        # run is ended from outside.
        self._outcomes, self._arrivals = anyio.create_memory_object_stream[LiveTrace | None](
            max_buffer_size=float("inf")
        )

    async def run(self, time_limit: float | None, interrupt: anyio.Event | None) -> Verdict:
        setup, policy = self._setup, self._policy
        settings, engine = policy.settings(), self._engine.name
        begun = RunStarted(setup.question, settings, policy.budget, engine, setup.capabilities)
        self._emit(begun)
        # The place is given up when nothing runs any more, also after an error.
        with self._outcomes, self._arrivals, self._place:
            async with helpers() as tasks:
                if interrupt is not None:
                    tasks.start_soon(self._end_on, interrupt)
                if time_limit is not None:
                    tasks.start_soon(self._end_after, time_limit)
                await self._steer(tasks)
        if self._refused is not None:
            raise self._refused
        verdict = self._verdict()
        self._emit(RunFinished(verdict))
        return verdict

    def nothing(self, ended: str) -> NothingGeneratedError:
        """The error of a run that ended before a trace could be started."""
        self._outcomes.close()
        self._arrivals.close()
        return self._builder.nothing_generated(ended, self._now())

    async def _steer(self, tasks: TaskGroup) -> None:
        concurrency = self._setup.capabilities.concurrency
        if self._place.most is not None:
            concurrency = min(concurrency, self._place.most)
        most = self._setup.sampling.max_tokens
        self._act(self._policy.begin(Conditions(concurrency, most, self._setup.top_k)))
        if not self._pending and self._ended is None:
            raise InvalidSettingError(
                tried=f"begin with the policy {self._policy.name!r}",
                found="it started no trace",
                remedy="Its begin() must return a Start.",
            )
        self._place.begin = lambda: self._start(tasks)
        self._place.end = lambda: self._end(OUT_OF_TOKENS, FinishReason.CANCELLED)
        try:
            self._line_up()
            while self._live or self._pending:
                live = await self._arrivals.receive()
                if live is not None:
                    await self._hear(live)
        finally:
            self._place.want(0, None)

    async def _hear(self, live: LiveTrace) -> None:
        """Let the policy act on a trace that ended, and pass its slot on."""
        trace = await self._builder.finish(live, self._live.values(), self._now())
        del self._live[live.id]
        # A trace that was whole when the run was ended from outside is paid for, so it counts.
        if self._ended is None or (self._ended in _FROM_OUTSIDE and trace.complete):
            self._act(self._policy.on_finished(trace))
        if self._on_event:
            self._emit(TraceFinished(trace, self._policy.standing()))
        self._place.ended(trace)
        self._line_up()

    def _line_up(self) -> None:
        """Let the pending traces wait for their turn."""
        self._place.want(len(self._pending), self._policy.need if self._pending else None)

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start() | Continue() if self._ended is not None:
                    return
                case Start() | Continue():
                    self._add(action)
                case Stop(traces):
                    for trace in traces:
                        if trace in self._live:
                            self._live[trace].scope.cancel()
                case Forget():
                    self._pending.clear()
                case Done(reason) if self._ended == OUT_OF_TOKENS:
                    self._ended = reason
                    return
                case Done(reason):
                    self._end(reason, FinishReason.CONSENSUS)
                    return

    def _add(self, action: Start | Continue) -> None:
        if isinstance(action, Continue):
            if not self._setup.capabilities.continues:
                raise cannot_continue(self._engine, self._policy)
            self._builder.beginning_of(action)  # Refuses wrong ones at once.
        self._pending.add(action)

    def _end(self, reason: str, finish: FinishReason) -> None:
        if self._ended is not None:
            return
        self._ended = reason
        self._pending.clear()
        self._outcomes.send_nowait(None)
        self._place.want(0, None)
        for live in self._live.values():
            live.cancel_reason = finish
            live.scope.cancel()

    async def _end_on(self, interrupt: anyio.Event) -> None:
        await interrupt.wait()
        self._end("interrupted", FinishReason.CANCELLED)
        self._builder.hurry()

    async def _end_after(self, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds - self._now()))
        self._end("time", FinishReason.CANCELLED)
        self._builder.hurry()

    def _start(self, tasks: TaskGroup) -> None:
        action, _ = self._pending.take()
        live = LiveTrace(
            id=self._started,
            seed=trace_seed(self._setup.seed, self._setup.question.id, self._started),
            gate=action.gate,
            started=self._now(),
            wants_logprobs=self._logprobs,
        )
        if isinstance(action, Continue):
            live.continues = action.trace
            live.prefix, live.kept = self._builder.beginning_of(action)
        self._started += 1
        self._live[live.id] = live
        self._emit(TraceStarted(live.id, live.gate))
        tasks.start_soon(self._generate, live)

    async def _generate(self, live: LiveTrace) -> None:
        question, sampling = self._setup.question, self._setup.sampling
        # An engine that does not keep to limits may have written a beginning beyond them.
        most = max(1, sampling.max_tokens - live.kept)
        request = TraceRequest(
            messages=question.messages,
            sampling=replace(sampling, max_tokens=most),
            trace=live.id,
            seed=live.seed,
            top_k=self._setup.top_k,
            logprobs=self._logprobs,
            prefix=live.prefix,
            templated=question.templated,
            gate=live.gate,
        )
        try:
            with live.scope:
                while not await self._attempt(live, request):
                    pass
        except ContextOverflowError as error:
            live.error = str(error)
            if live.continues is None:
                # All traces have the same prompt and the same limit, so none of them fits.
                self._refused = self._refused or error
                self._end("refused", FinishReason.CANCELLED)
        except ConvictionError as error:
            live.error = str(error)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -inf:
                raise
            live.error = f"{self._engine.name} cancelled the trace by itself"
        except Exception as error:  # noqa: BLE001  # an engine's bug must not end other traces
            live.error = quoted(f"{type(error).__name__}: {error}")
        if live.finish is None and live.scope.cancel_called:
            live.finish, live.error = live.cancel_reason, ""
        elif live.finish is None:
            live.finish = FinishReason.ERROR
            live.error = live.error or f"{self._engine.name} ended the stream without saying why"
        self._outcomes.send_nowait(live)

    async def _attempt(self, live: LiveTrace, request: TraceRequest) -> bool:
        """Read a trace to its end; False if its stream broke and may be begun again."""
        try:
            async with aclosing(self._engine.stream(request)) as chunks:
                await live.read(chunks, self._watcher(live.id))
        except StreamError as error:
            if live.restarts >= self._restarts or self._ended is not None:
                raise
            lost = live.begin_again()
            self._builder.lose(str(error), lost)
            self._emit(TraceRestarted(live.id, lost, str(error)))
            return False
        return True

    def _watcher(self, trace: int) -> Callable[[Chunk], None] | None:
        if self._on_event is None and not self._place.counts:
            return None

        def watch(chunk: Chunk) -> None:
            if self._place.counts:
                self._place.generated(chunk.confidences.size)
            self._emit(TraceAdvanced(trace, chunk))

        return watch

    def _verdict(self) -> Verdict:
        ended = self._ended or "budget"
        return self._builder.verdict(ended, seconds=self._now(), warnings=self._warnings)

    def _emit(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001  # watching must not end what is watched
            self._on_event = None
            failure = quoted(f"{type(error).__name__}: {error}")
            self._warnings.append(f"The listener raised {failure} and was not called again.")

    def _now(self) -> float:
        return time.perf_counter() - self._began
