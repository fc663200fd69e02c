r"""Mathematical answers: numbers, formulas, tuples, sets, matrices, and words.

Canonical forms decide most pairs. What they leave open goes to math-verify (extra `math`), in a
process of its own that is killed when a comparison takes too long.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import IO, Any
from weakref import finalize

from conviction.answers import worker as worker_program
from conviction.answers.formulas.parsing import MOST_CHARACTERS
from conviction.answers.formulas.shapes import Form, certainly_differ, read, stand_for_the_same
from conviction.answers.kinds import AnswerKind
from conviction.children import child_environment
from conviction.core import require

_MOST_KEPT = 4096
_SECONDS_TO_END = 5.0
_SPARE_SECONDS = 1.0


class MathematicalAnswers(AnswerKind):
    r"""Numbers, formulas, tuples, intervals, sets, matrices and words, in LaTeX or plain.

    `formulas.shapes` tells how generously answers are read.

    `seconds_per_pair` is the time for one comparison with math-verify.
    """

    name = "math"
    help = "a number, formula, tuple, set, matrix or words"
    strategies = ("boxed", "tag", "marker", "value")

    def __init__(
        self, strategies: Sequence[str] | None = None, *, seconds_per_pair: float = 2.0
    ) -> None:
        super().__init__(strategies)
        self._comparer = FormulaComparer(seconds_per_pair=seconds_per_pair)
        self._read = lru_cache(_MOST_KEPT)(read)
        self._forms: dict[str, Form] = {}

    def canonical(self, answer: str) -> str:
        """LaTeX in normal form, or words in lower case."""
        form = self._read(answer)
        if len(self._forms) >= _MOST_KEPT:
            self._forms.clear()
        self._forms[form.text] = form
        return form.text

    def decided(self, first: str, second: str) -> bool:
        """Whether two different canonical forms are certainly different answers."""
        return certainly_differ(self._form(first), self._form(second))

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two canonical forms mean the same, to a few seconds' best knowledge."""
        same = stand_for_the_same(self._form(first), self._form(second))
        return same or self._comparer.equivalent(first, second)

    @property
    def limits(self) -> tuple[str, ...]:
        """That formulas could not be compared, where they could not."""
        return (self._comparer.failure,) if self._comparer.failure else ()

    def close(self) -> None:
        """End the process that compares formulas."""
        self._comparer.close()

    def _form(self, canonical: str) -> Form:
        return self._forms.get(canonical) or self._read(canonical)


class _LostError(Exception):
    """The worker gave no answer: it died."""


class _LateError(_LostError):
    """The worker gave no answer in time."""


class _Worker:
    """One running worker process, used by one thread at a time."""

    def __init__(self, seconds: float) -> None:
        self.process = subprocess.Popen(  # noqa: S603  # our own program, run by our own Python
            # -P: the folder of the program holds a json.py that is not the standard library's.
            [sys.executable, "-P", worker_program.__file__, str(seconds + _SPARE_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            encoding="utf-8",
        )
        assert self.process.stdin  # noqa: S101  # it was asked for
        assert self.process.stdout  # noqa: S101
        self._requests = self.process.stdin
        self._output = self.process.stdout
        self._replies: SimpleQueue[str] = SimpleQueue()
        self._reader = Thread(target=_pump, args=(self._output, self._replies), daemon=True)
        self._reader.start()

    def reply(self, seconds: float) -> dict[str, Any]:
        """The next message within `seconds`."""
        try:
            line = self._replies.get(timeout=max(seconds, 0.001))
        except Empty:
            raise _LateError from None
        if not line.endswith("\n"):
            raise _LostError
        return json.loads(line)

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except (OSError, ValueError):
            raise _LostError from None
        return self.reply(seconds)

    def end(self) -> None:
        """Kill the process and close everything that belongs to it."""
        self.process.kill()
        self.process.wait(_SECONDS_TO_END)
        self._reader.join(_SECONDS_TO_END)
        self._output.close()
        with suppress(OSError):
            self._requests.close()


def _installed() -> bool:
    try:
        return find_spec("math_verify") is not None
    except (ImportError, ValueError):
        return False


def _pump(output: IO[str], replies: SimpleQueue[str]) -> None:
    with suppress(ValueError, OSError):
        for line in output:
            replies.put(line)
    replies.put("")


class FormulaComparer:
    """Whether two formulas are equal, in bounded time and from any thread.

    Its worker process starts with the first question, is started again after it was killed, and
    ends with `close`, with the comparer, or with this process. A formula that cannot be parsed in
    time is never parsed again: it equals nothing. `failure` is a sentence on why formulas cannot be
    compared; empty while they can.

    Args:
        seconds_per_pair: Time to compare two formulas in; later they count as different.
        seconds_to_start: Time for the worker to import math-verify.
    """

    def __init__(self, *, seconds_per_pair: float = 2.0, seconds_to_start: float = 60.0) -> None:
        require("seconds_per_pair", seconds_per_pair, low=0.01)
        require("seconds_to_start", seconds_to_start, low=0.01)
        self._seconds_per_pair = seconds_per_pair
        self._seconds_to_start = seconds_to_start
        self._lock = Lock()
        self._worker: _Worker | None = None
        self._finalizer: Any = None
        self._readable: dict[str, bool] = {}
        self.failure = ""

    @property
    def process_id(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return self._worker.process.pid if self._worker else None

    def equivalent(self, first: str, second: str) -> bool:
        """Whether math-verify finds two formulas equal in either direction. Never raises."""
        if max(len(first), len(second)) > MOST_CHARACTERS:
            return False
        with self._lock:
            # A worker that was killed from outside deserves a second try, a slow one does not.
            for _ in range(2):
                try:
                    return self._compare(first, second)
                except _LateError:
                    self._end()
                    break
                except _LostError:
                    self._end()
        return False

    def close(self) -> None:
        """End the worker. The comparer can be used again afterwards."""
        with self._lock:
            self._end()
            self._readable.clear()
            self.failure = ""

    def _compare(self, first: str, second: str) -> bool:
        if self._readable.get(first) is False or self._readable.get(second) is False:
            return False
        worker = self._running()
        if worker is None:
            return False
        deadline = monotonic() + self._seconds_per_pair
        if not all(self._parsed(worker, formula, deadline) for formula in (first, second)):
            return False
        return bool(worker.ask({"compare": [first, second]}, deadline - monotonic())["equal"])

    def _parsed(self, worker: _Worker, formula: str, deadline: float) -> bool:
        if formula not in self._readable:
            try:
                reply = worker.ask({"parse": formula}, deadline - monotonic())
            except _LateError:
                self._readable[formula] = False
                raise
            self._readable[formula] = bool(reply["readable"])
        return self._readable[formula]

    def _running(self) -> _Worker | None:
        """The worker, started if need be; None where it cannot be."""
        if self._worker or self.failure:
            return self._worker
        # A frozen program has no Python to run the worker with.
        if not _installed() or getattr(sys, "frozen", False):
            self.failure = (
                "math-verify is not installed, so formulas count as equal only where their simple "
                "forms agree. Install it with: pip install 'conviction[math]'"
            )
            return None
        try:
            self._worker = _Worker(self._seconds_per_pair)
        except OSError as error:
            self.failure = f"The process that compares formulas did not start: {error}."
            return None
        self._finalizer = finalize(self, _Worker.end, self._worker)
        with suppress(_LostError):
            started = self._worker.reply(self._seconds_to_start)
            if "ready" in started:
                return self._worker
            failed = started.get("failed", "no reason given")
            self.failure = f"math-verify cannot be used: {failed}."
        self.failure = self.failure or (
            "The process that compares formulas did not start within "
            f"{self._seconds_to_start:g} s, so only simple forms were compared."
        )
        self._end()
        return None

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._worker = None
