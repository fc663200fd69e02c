"""`conviction think`: one question, one considered answer."""

import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from cyclopts import Parameter
from rich.console import Console

from conviction.api import DEFAULT_POLICY, athink
from conviction.cli import ExitCode
from conviction.cli.inputs import (
    CalibrationOptions,
    EngineOptions,
    GenerationOptions,
    read_question,
)
from conviction.cli.progress import PlainView, prepared, summary
from conviction.cli.terminal import WHOLE, print_json, print_notes, shown
from conviction.cli.view import LiveView
from conviction.confidence import Metric
from conviction.core import Question, Sampling
from conviction.display import one_line, safe
from conviction.errors import ConvictionError
from conviction.events import Event, Listener
from conviction.history import History
from conviction.policies import policy as named_policy
from conviction.policies.base import Policy
from conviction.policies.deepconf_online import PAPER_SETTINGS
from conviction.server.tape import Tape, encode
from conviction.tasks import until_interrupted
from conviction.verdict import Verdict

if TYPE_CHECKING:
    from conviction.cli.calibration import Calibrator


@Parameter(name="*", group="Policy")
@dataclass(frozen=True)
class PolicyOptions:
    """How many traces, which of them count, and when it is enough."""

    policy: str = DEFAULT_POLICY
    """A name from `conviction policies`, with settings if wanted:
    adaptive-consistency:wave=4,bar=0.99."""
    budget: Annotated[int | None, WHOLE] = None
    "The most traces to start."
    warmup: Annotated[int | None, WHOLE] = None
    "Complete traces before a threshold is set (deepconf-low, -high)."
    window: Annotated[int | None, WHOLE] = None
    "Tokens in a group; fitted to the traces if not given."
    keep: float | None = None
    "Share of the traces to keep, in (0, 1]."
    consensus: float | None = None
    "Share of the vote at which the leader has won (deepconf-low, -high)."
    quorum: Annotated[int | None, WHOLE] = None
    "Votes needed before consensus counts (deepconf-low, -high)."
    metric: Metric | None = None
    "Confidence of a whole trace (deepconf-offline)."
    paper: Annotated[bool, Parameter(negative="")] = False
    "The paper's budget 512, warm-up 16, window 2048, no quorum (deepconf-low, -high)."

    def build(self) -> Policy:
        """The policy with the settings that were given."""
        given: dict[str, Any] = dict(PAPER_SETTINGS) if self.paper else {}
        for name in ("budget", "warmup", "window", "keep", "consensus", "quorum", "metric"):
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        return named_policy(self.policy, **given)


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class OutputOptions:
    """What to show."""

    json: Annotated[bool, Parameter(negative="")] = False
    "Print the whole verdict as JSON on stdout, in place of the answer."
    show_traces: Annotated[bool, Parameter(negative="")] = False
    "Print the text of every trace on stderr."
    record: Path | None = None
    "Also record the traces into this pool, for conviction lab."
    history: bool = True
    "Keep the verdict for `conviction history`."
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False
    "Nothing on stderr but errors, and why there is no answer."


_POLICY, _GENERATION, _OUTPUT = PolicyOptions(), GenerationOptions(), OutputOptions()
_ENGINE, _CALIBRATION = EngineOptions(), CalibrationOptions()


def think(
    question: str | None = None,
    /,
    *,
    file: Annotated[Path | None, Parameter(alias="-f")] = None,
    policy: PolicyOptions = _POLICY,
    engine: EngineOptions = _ENGINE,
    generation: GenerationOptions = _GENERATION,
    calibration: CalibrationOptions = _CALIBRATION,
    output: OutputOptions = _OUTPUT,
) -> int:
    """Think about a question many times in parallel and print one answer.

    Exit codes: 0 answered, 1 failed, 2 wrong use, 3 abstained, 130 interrupted.

    Args:
        question: What to ask; "-" reads standard input.
        file: Read the question from this file.
        policy: How many traces, which of them count, and when it is enough.
        engine: Which model generates the traces, and how its engine is set up.
        generation: How traces are generated.
        calibration: How probable the answer is to be right, and when that is too little.
        output: What to show.
    """
    # Everything that can be refused is refused before anything is fetched or started.
    steering = policy.build()
    generation.check()
    calibrator = calibration.open(steering)
    backend = engine.backend
    sampling = generation.sampling(backend.sampling)
    text = read_question(question, file, as_it_is=engine.templated)
    console = Console(stderr=True, quiet=output.quiet, highlight=False)
    backend = prepared(backend, console)
    if calibrator is not None:
        calibrator.expect(generation, backend, templated=engine.templated)
    with _recorder(output.record, sampling, generation.answer) as recorder:
        work = partial(
            _think,
            question=Question.ask(text) if engine.templated else text,
            model=backend,
            policy=steering,
            answers=generation.answer,
            prompt_style=generation.prompt_style,
            sampling=sampling,
            seed=generation.seed,
            restarts=generation.restarts,
            time_limit=generation.time_limit,
        )
        past = _Remembered(text) if output.history else None
        with _view(console) as view:
            listeners = (calibrator.on_event if calibrator else None, recorder, past, view)
            work = partial(work, on_event=_all(*listeners))
            verdict = anyio.run(until_interrupted, work)
        if calibrator is not None:
            verdict = calibrator.judged(verdict, console)
        # Before the recording ends: what goes wrong with it must not cost the answer.
        _report(verdict, output, calibrator, console)
    if past is not None:
        past.keep(verdict, console)
    return _exit_code(verdict)


def _exit_code(verdict: Verdict) -> int:
    if verdict.ended == "interrupted":
        return ExitCode.INTERRUPTED
    if verdict.abstained:
        return ExitCode.ABSTAINED
    return 0 if verdict.answer is not None else ExitCode.FAILED


class _Remembered:
    """A listener that keeps what the page needs to play the run.

    Args:
        question: The user's own words.
    """

    def __init__(self, question: str) -> None:
        self._question = question
        self._tape = Tape(question)
        self._began: float | None = None

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        now = time.monotonic()
        self._began = self._began or now
        self._tape.hear(event, now - self._began)

    def keep(self, verdict: Verdict, console: Console) -> None:
        """Add the verdict to the history; a failure is told and costs nothing else."""
        self._tape.frame()
        page = encode(self._tape.recorded())
        try:
            History().add(verdict, question=self._question, page=page)
        except ConvictionError as error:
            console.print(
                f"[yellow]note:[/] {shown(f'The history was not written. {error}')}",
                soft_wrap=True,
            )


async def _think(interrupt: anyio.Event, /, question: str | Question, **options: Any) -> Verdict:
    return await athink(question, interrupt=interrupt, **options)


def _recorder(
    pool: Path | None, sampling: Sampling, answers: str
) -> AbstractContextManager[Listener | None]:
    if pool is None:
        return nullcontext()
    from conviction.recordings import recording_listener  # noqa: PLC0415  # an extra

    return recording_listener(pool, sampling=sampling, answers=answers)


def _all(*listeners: Listener | None) -> Listener | None:
    listening = [listener for listener in listeners if listener is not None]
    if len(listening) < 2:
        return listening[0] if listening else None

    def listen(event: Event) -> None:
        for listener in listening:
            listener(event)

    return listen


@contextmanager
def _view(console: Console) -> Generator[Listener | None]:
    if console.quiet:
        yield None
    elif console.is_terminal and not console.is_dumb_terminal:
        with LiveView(console) as view:
            yield view.on_event
    else:
        yield PlainView(console).on_event


def _report(
    verdict: Verdict, output: OutputOptions, calibrator: "Calibrator | None", console: Console
) -> None:
    if output.show_traces:
        for trace in verdict.traces:
            answer = trace.answer.text if trace.answer else "no answer"
            console.rule(f"trace {trace.id} · {trace.finish} · {trace.tokens} tokens", align="left")
            console.print(shown(trace.text.strip()))
            console.print(f"→ {shown(answer)}", style="bold")
        console.rule()
    print_notes(verdict.warnings, console)
    if calibrator is not None and verdict.abstained:
        why = shown(calibrator.why_abstained(verdict))
        console.print(why, style="bold", soft_wrap=True)
    console.file.flush()
    if output.json:
        print_json(verdict.to_dict())
    elif verdict.answer is not None:
        print(safe(verdict.answer))
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]  # closed by >&-
        sys.stdout.flush()
    console.print(shown(summary(verdict)), style="dim", soft_wrap=True)
    if output.quiet and verdict.answer is None and not verdict.abstained:
        # Its exit code stands for any failure, while that of abstaining says all.
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        errors.print(f"[bold red]error:[/] {shown(one_line(_why_unanswered(verdict)))}")


def _why_unanswered(verdict: Verdict) -> str:
    reason = next(iter(verdict.warnings), "Not one trace voted.")
    return f"No answer: {reason} Ended by {verdict.ended}."
