"""A listener that records live runs."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

from conviction.answers import kind
from conviction.core import FinishReason, Sampling, Trace
from conviction.errors import RecordingError
from conviction.events import Event, Listener, RunFinished, RunStarted, TraceFinished
from conviction.files import expanded
from conviction.recordings.file import PoolWriter, read_meta
from conviction.recordings.recorder import Recorder
from conviction.recordings.rows import RowMaker
from conviction.recordings.schema import PoolMeta, RecordedQuestion, prompt_hash
from conviction.thinking import TOP_K


class _RunRecorder:
    """A listener that records every trace of the runs that it hears of."""

    def __init__(self, path: Path, sampling: Sampling, answers: str, *, keep_text: bool) -> None:
        self._path = path
        self._sampling = sampling
        self._kind = kind(answers)
        self._keep_text = keep_text
        self._running: tuple[PoolWriter, Recorder] | None = None
        self._question: RecordedQuestion | None = None
        self.failure: Exception | None = None

    def __call__(self, event: Event) -> None:
        if self.failure is not None:
            return
        try:
            match event:
                case RunStarted():
                    self._begin(event)
                case TraceFinished(trace):
                    self._add(trace)
                case RunFinished():
                    self.end()
                case _:
                    pass
        except Exception as error:  # noqa: BLE001  # a run must not end because it is not recorded
            self.failure = error

    def end(self) -> None:
        """Wait until everything is on disk, and give the pool back."""
        if self._running is None:
            return
        writer, recorder = self._running
        self._running = None
        recorder.finish()
        writer.close()
        self._kind.close()
        self.failure = self.failure or recorder.failure

    def _begin(self, event: RunStarted) -> None:
        self.end()
        question = event.question
        self._question = RecordedQuestion(
            question.id, question.text, None, prompt_hash(question), 0
        )
        meta = PoolMeta(
            model=event.capabilities.model,
            top_k=min(TOP_K, event.capabilities.top_k),
            answers=self._kind.name,
            sampling=self._sampling,
            source=event.engine,
        )
        writer = PoolWriter(self._path, meta)
        try:
            writer.check_question(question.id, self._question.prompt_hash, None)
            rows = RowMaker(writer, self._kind, keep_text=self._keep_text)
            recorder = Recorder(writer, rows)
        except BaseException:
            writer.close()
            raise
        recorder.start()
        self._running = writer, recorder

    def _add(self, trace: Trace) -> None:
        if self._running is None or self._question is None or not trace.tokens:
            return
        if trace.finish is not FinishReason.ERROR:
            self._running[1].add(self._question, trace)


@contextmanager
def recording_listener(
    path: str | PathLike[str], *, sampling: Sampling, answers: str, keep_text: bool = True
) -> Generator[Listener]:
    """A listener that records every trace of live runs, stopped and cancelled ones too.

    Their finish reasons are recorded, so that a replay can leave the incomplete ones out.
    Traces are numbered from the next free number of their question; one whose seed is recorded
    already is not recorded again. The run is never held up, and never fails because of it.

    Args:
        path: The pool's file; made if need be.
        sampling: How the run draws tokens.
        answers: Name of its kind of answer.
        keep_text: Whether what a trace wrote is recorded.

    Raises:
        RecordingError: on entering, the pool cannot be used or was recorded with other settings;
            on leaving, something could not be recorded.
    """
    place = expanded(path)
    _check_settings(place, sampling, answers)
    listener = _RunRecorder(place, sampling, answers, keep_text=keep_text)
    try:
        yield listener
    finally:
        listener.end()
    if listener.failure is not None:
        raise listener.failure


def _check_settings(place: Path, sampling: Sampling, answers: str) -> None:
    before = read_meta(place)
    if before is None:
        return
    wanted = replace(before, sampling=sampling, answers=answers)
    if different := wanted.differences(before):
        raise RecordingError(
            tried=f"record into the pool {place}",
            found=f"it was recorded with other settings: {different}",
            remedy="Record into another file, or with the settings of this one.",
        )
