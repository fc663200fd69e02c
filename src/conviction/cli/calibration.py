"""How probable an answer is to be right, by a recording; and when that is too little."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from conviction.backends import Backend
from conviction.cli.inputs import TraceOptions
from conviction.cli.progress import question_bar
from conviction.core import InvalidSettingError, Question
from conviction.engines.base import Capabilities
from conviction.engines.local import usable_cores
from conviction.errors import ConvictionError
from conviction.events import Event, RunStarted
from conviction.lab.calibration import Calibration, calibrate, check_source, mismatches
from conviction.lab.sources import PoolTraces
from conviction.policies.base import Policy
from conviction.recordings import PoolMeta
from conviction.thinking import TOP_K
from conviction.verdict import Verdict


def open_calibration(pool: Path | None, below: float | None, policy: Policy) -> "Calibrator":
    """The recording, once it is clear that something can be learned from it.

    Raises:
        InvalidSettingError: an option is wrong, or the recording does not fit the policy.
        RecordingError: the recording cannot be read, or holds no right answers.
    """
    if below is not None and not 0 < below <= 1:
        raise InvalidSettingError(
            tried=f"use abstain_below = {below!r}",
            found="abstain_below must be above 0 and at most 1",
            remedy="Change it and retry.",
        )
    if pool is None:
        raise InvalidSettingError(
            tried=f"abstain below {below:g}",
            found="nothing tells how probable an answer is to be right",
            remedy="Name a recording with right answers: --calibration POOL.",
        )
    source = PoolTraces.open(pool, only_graded=True)
    check_source(source, policy)
    return Calibrator(source, policy, below)


class Calibrator:
    """A recording that waits for the facts of a run.

    Attributes:
        below: Least probability of an answer that is given; None to give all.
        capabilities: What the engine of the run can do; None until it has said so.
    """

    def __init__(self, source: PoolTraces, policy: Policy, below: float | None) -> None:
        self.below = below
        self.capabilities: Capabilities | None = None
        self._source = source
        self._policy = policy

    def expect(self, options: TraceOptions, backend: Backend, *, templated: bool) -> None:
        """Take note of what the run will be made of, as far as its calibration must be like it."""
        self._answers = options.answer
        self._sampling = options.sampling(backend.sampling)
        self._prompt = options.prompt(backend, templated=templated)

    def on_event(self, event: Event) -> None:
        """Take note of the engine."""
        if isinstance(event, RunStarted):
            self.capabilities = event.capabilities

    def calibration(self, asked: Sequence[Question], console: Console) -> Calibration:
        """Replay the policy on a machine like that of the run.

        The engine has said what it can do; `asked` are the run's questions as the model got them.

        Raises:
            RecordingError: the recording cannot be read.
        """
        engine, pool = self.capabilities, self._source.pool
        assert engine is not None  # noqa: S101  # there is a verdict
        with question_bar(console, "calibrating") as progress:
            found = calibrate(
                self._source,
                self._policy,
                pool=self._source.path.resolve().name,
                concurrency=engine.concurrency,
                processes=usable_cores(),
                on_progress=progress,
            )
        run = PoolMeta(engine.model, min(TOP_K, engine.top_k), self._answers, self._sampling)
        confident = self._policy.needs_confidence
        notes = mismatches(pool, run, asked, prompt=self._prompt, needs_confidence=confident)
        return replace(found, notes=(*notes, *found.notes))

    def judged(self, verdict: Verdict, console: Console) -> Verdict:
        """The verdict with its probability of being right, and without its answer if that is low.

        Whatever goes wrong now must not cost an answer that is there already.
        """
        if verdict.answer is None:
            return verdict
        try:
            verdict = self.calibration([verdict.question], console).applied(verdict)
        except (ConvictionError, KeyboardInterrupt) as error:
            why = error.problem if isinstance(error, ConvictionError) else ""
            note = f"The calibration failed: {why or 'it was interrupted'}."
            verdict = replace(verdict, warnings=(*verdict.warnings, note))
        return verdict if self.below is None else verdict.abstaining(self.below)

    def why_abstained(self, verdict: Verdict) -> str:
        """What the answer would have been, and why it is not given."""
        assert verdict.tally.leader is not None  # noqa: S101  # there was an answer
        assert self.below is not None  # noqa: S101  # else it would have been given
        told = "how probable it is to be right cannot be told"
        if verdict.right is not None:
            told = f"right with a calibrated probability of {verdict.right}"
        return (
            f"Abstained: the answer would have been {verdict.tally.leader.text}; {told}, and "
            f"--abstain-below asks for {100 * self.below:g}%."
        )
