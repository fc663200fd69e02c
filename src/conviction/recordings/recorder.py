"""Recording finished traces off the event loop."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from conviction.core import Trace
from conviction.recordings.file import PoolWriter
from conviction.recordings.rows import RowMaker
from conviction.recordings.schema import RecordedQuestion, RecordedTrace

_MOST_AT_ONCE = 256
_Job = tuple[RecordedQuestion, Trace, int | None]


class Recorder:
    """Records traces in a thread of its own, so that neither disk nor comparison holds up a run.

    Args:
        writer: The pool; used by the recorder alone until it ends.
        on_recorded: Called with rows once they are on disk, in the recorder's thread.

    Attributes:
        failure: Why it records nothing any more; None as long as all is well.
    """

    def __init__(
        self,
        writer: PoolWriter,
        rows: RowMaker,
        *,
        on_recorded: Callable[[list[RecordedTrace]], None] | None = None,
    ) -> None:
        self._writer = writer
        self._rows = rows
        self._on_recorded = on_recorded
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="conviction.recorder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything is on disk; `failure` tells whether it is."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def add(self, question: RecordedQuestion, trace: Trace, number: int | None = None) -> None:
        """Record a trace soon. Never waits.

        One that continues another is left out, as a replay takes traces as independent. Without a
        number it gets the next free one of its question, and is left out if a trace of the same
        seed is there already.
        """
        if trace.continues is None:
            self._jobs.put((question, trace, number))

    def _work(self) -> None:
        while jobs := self._next_jobs():
            if self.failure is not None:
                continue
            try:
                self._record(jobs)
            except Exception as error:  # noqa: BLE001  # raised again where it can be told
                self.failure = error

    def _next_jobs(self) -> list[_Job]:
        """What waits, so that it shares one trip to the disk; empty at the end."""
        jobs: list[_Job] = []
        while len(jobs) < _MOST_AT_ONCE:
            try:
                job = self._jobs.get(block=not jobs)
            except Empty:
                break
            if job is None:
                if jobs:
                    self._jobs.put(None)  # the end, for the next call
                break
            jobs.append(job)
        return jobs

    def _record(self, jobs: list[_Job]) -> None:
        rows: list[RecordedTrace] = []
        fresh: dict[str, set[int]] = {}
        for question, trace, number in jobs:
            if number is None:
                if trace.seed in self._writer.seeds(question.id):
                    continue
                taken = self._writer.numbers(question.id) | fresh.setdefault(question.id, set())
                number = max(taken, default=-1) + 1  # noqa: PLW2901
                fresh[question.id].add(number)
            rows.append(self._rows.row(question, trace, number))
        self._writer.append(*rows)
        if self._on_recorded and rows:
            self._on_recorded(rows)
