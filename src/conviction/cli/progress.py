"""What a command says on stderr: how far it is, what happened, and at the end how it went.

Progress is a bar on a terminal, a line now and then elsewhere, nothing if quiet.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass
from threading import Timer
from time import monotonic
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from conviction.answers import AnswerKind, kind
from conviction.backends import Backend
from conviction.cli.terminal import duration, shown
from conviction.core import FinishReason
from conviction.display import one_line, shortened
from conviction.evaluation import counted
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceRestarted,
    TraceStarted,
)
from conviction.models import Progress as OnDownload
from conviction.tasks import unless_interrupted
from conviction.verdict import Verdict, how_sure

_PATIENCE_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 10.0
_MOST_WRITTEN = 100
"""Characters of an answer as it was written."""
_SPEED_SECONDS = 600.0
"""Traces and questions end in bursts, so their rate is taken over a long while."""

STATES = {
    FinishReason.STOP: ("done", "green"),
    FinishReason.LENGTH: ("cut: token limit", "yellow"),
    FinishReason.LOW_CONFIDENCE: ("stopped: low confidence", "red"),
    FinishReason.CONSENSUS: ("no longer needed", "dim"),
    FinishReason.CANCELLED: ("cancelled", "dim"),
    FinishReason.ERROR: ("failed", "bold red"),
}
"""How a trace ended, in words, and the style that they are shown in."""

Reached = TypeVar("Reached")


def messages(*, quiet: bool) -> Console:
    """Where everything but the answer goes: stderr, one line per message."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


class Latest(Generic[Reached]):
    """A listener that remembers the progress of a run, which may be cancelled or fail.

    Attributes:
        progress: The latest; at first what it was made with.
        began: Whether the listener has heard of any.
    """

    def __init__(self, progress: Reached, listener: Callable[[Reached], None]) -> None:
        self.progress = progress
        self.began = False
        self._listener = listener

    def __call__(self, progress: Reached) -> None:
        """Remember it, and pass it on."""
        self.began = True
        self.progress = progress
        self._listener(progress)


async def run_on(
    engine: AbstractAsyncContextManager[object],
    answers: str,
    work: Callable[[AnswerKind], Awaitable[object]],
) -> bool:
    """Do work with the answer kind of that name on an engine, started before and stopped after.

    Returns:
        Whether a Ctrl-C cut it short.
    """

    async def on_engine() -> None:
        with closing(kind(answers)) as answer_kind:
            async with engine:
                await work(answer_kind)

    return await unless_interrupted(on_engine)


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a run over a data set is.

    Attributes:
        unit: What is counted, "question" or "trace".
        done: How many there are.
        total: How many there shall be.
        kept: How many of `done` an earlier run left; they say nothing of this one's speed.
        detail: What else to say of them.
        tokens: Tokens that this run generated.
        spent: Said of tokens in place of their number and rate.
        steady: Whether those that are done tell how long the rest will take.
    """

    unit: str
    done: int
    total: int
    kept: int
    detail: str = ""
    tokens: int = 0
    spent: str = ""
    steady: bool = True


OnReading = Callable[[Reading], None]


@contextmanager
def run_progress(console: Console) -> Generator[OnReading]:
    """A callback that shows how far a run over a data set is."""
    if console.quiet:
        yield lambda _: None
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        bar = Progress(
            TextColumn("{task.description}", table_column=_whole()),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=_whole()),
            TextColumn("{task.fields[speed]}", table_column=_whole()),
            TimeRemainingColumn(compact=True, table_column=_whole()),
            console=console,
            speed_estimate_period=_SPEED_SECONDS,
        )
        with bar:
            yield _Bar(bar)


def _whole() -> Column:
    """A column that is never wrapped: figures stay in one piece on a narrow terminal."""
    return Column(no_wrap=True)


class _Clock:
    """Runs from the first reading on: what was there before must not count as speed."""

    def __init__(self) -> None:
        self._began = monotonic()

    def speed(self, reading: Reading) -> str:
        elapsed = monotonic() - self._began
        if reading.spent or not reading.tokens or elapsed <= 0:
            return reading.spent
        return f"{counted(reading.tokens, 'token')}, {reading.tokens / elapsed:,.0f}/s"

    def left(self, reading: Reading) -> str:
        if reading.done == reading.kept or not reading.steady:
            return ""
        each = (monotonic() - self._began) / (reading.done - reading.kept)
        return f"{duration((reading.total - reading.done) * each)} left"


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._clock: _Clock | None = None
        self._task = bar.add_task("starting", total=None, speed="")

    def __call__(self, reading: Reading) -> None:
        if self._clock is None:
            self._clock = _Clock()
            if not reading.steady:
                self._bar.columns = self._bar.columns[:-1]
            # A new task, since this one's speed would count from before the first reading.
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(
                "", total=reading.total, completed=reading.done, speed=""
            )
        self._bar.update(
            self._task,
            completed=reading.done,
            description=reading.detail,
            speed=self._clock.speed(reading),
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock: _Clock | None = None
        self._printed = 0.0

    def __call__(self, reading: Reading) -> None:
        now = monotonic()
        if self._clock and now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._clock = self._clock or _Clock()
        self._printed = now
        parts = (
            f"{reading.done:,} of {counted(reading.total, reading.unit)}",
            reading.detail,
            self._clock.speed(reading),
            self._clock.left(reading),
        )
        self._console.print(", ".join(part for part in parts if part))


@contextmanager
def question_bar(console: Console, what: str) -> Generator[Callable[[int, int | None], None]]:
    """A callback for questions done and their number, None where that is unknown.

    It draws on a terminal, after two seconds.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None)
    timer = Timer(_PATIENCE_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        # It may be starting the bar at this moment.
        timer.join()
        bar.stop()


@contextmanager
def download_bar(console: Console) -> Generator[OnDownload]:
    """A callback for bytes fetched; a bar appears only when something is fetched."""
    bar = Progress(
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=10),
        DownloadColumn(table_column=_whole()),
        TransferSpeedColumn(table_column=_whole()),
        TimeRemainingColumn(compact=True, table_column=_whole()),
        console=console,
        disable=console.quiet,
    )
    tasks: dict[str, TaskID] = {}

    def show(done: int, total: int | None, what: str) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()


def prepared(backend: Backend, console: Console) -> Backend:
    """The backend, ready to be built; what it needs is fetched with a bar."""
    with download_bar(console) as progress:
        return backend.prepare(progress, lambda text: console.print(shown(text)))


class PlainView:
    """One line per event that matters, for logs and pipes: no control codes, no colour."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._threshold: float | None = None

    def on_event(self, event: Event) -> None:
        """Print what happened."""
        match event:
            case RunStarted():
                self._say(
                    f"{event.engine}: {event.policy['name']}, budget {event.budget}, "
                    f"{event.capabilities.concurrency} at once"
                )
            case TraceFinished(trace, standing):
                word, _ = STATES[trace.finish]
                answer = f", answer {trace.answer.text}" if trace.answer else ""
                after = "" if trace.continues is None else f" after trace {trace.continues}'s"
                self._say(f"trace {trace.id}: {word}, {trace.tokens} tokens{after}{answer}")
                if standing.threshold is not None and standing.threshold != self._threshold:
                    self._threshold = standing.threshold
                    groups = f"groups of {standing.window} tokens"
                    self._say(f"threshold {standing.threshold:.2f} over {groups}")
            case TraceRestarted(trace, lost, error):
                self._say(f"trace {trace}: begun again after {lost} tokens: {error}")
            case TraceStarted() | TraceAdvanced() | RunFinished():
                pass

    def _say(self, line: str) -> None:
        self._console.print(shown(one_line(line)), soft_wrap=True)


_WORDS = {
    FinishReason.STOP: "finished",
    FinishReason.LENGTH: "cut at the token limit",
    FinishReason.LOW_CONFIDENCE: "stopped for low confidence",
    FinishReason.CONSENSUS: "no longer needed",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.ERROR: "failed",
}


def summary(verdict: Verdict) -> str:
    """The vote and how sure it is, traces by fate, tokens, saving as an estimate, time."""
    leader, counts = verdict.tally.leader, verdict.finishes()
    vote = "No answer"
    if leader is not None:
        of_all = f"{leader.count} of {len(verdict.tally.voters)} votes"
        vote = f"{of_all} ({verdict.share:.0%} of the weight)"
    fates = ", ".join(
        f"{counts[reason]} {word}" for reason, word in _WORDS.items() if reason in counts
    )
    if verdict.written and verdict.written != verdict.answer:
        vote = f"{shortened(one_line(verdict.written), _MOST_WRITTEN)}: {vote}"
    parts = (
        vote,
        *how_sure(verdict),
        f"{len(verdict.traces)} of {verdict.budget} traces started ({fates})",
        f"{verdict.usage.generated:,} tokens",
        saved(verdict),
        f"{verdict.seconds:.1f} s",
    )
    return "; ".join(part for part in parts if part) + f". Ended by {verdict.ended}."


def saved(verdict: Verdict) -> str:
    """The estimated saving against the whole budget without stopping; empty if it is unknown."""
    saving = verdict.usage.saving_estimate
    if saving is None or verdict.budget == 1:
        return ""
    if saving <= 0.005:
        return "no tokens saved"
    return f"about {saving:.0%} fewer than {verdict.budget} full traces would take (estimate)"
