"""Reading answers where a slow text, a slow kind or a slow comparison cannot stop an event loop.

Python cannot end a thread. A call that never returns keeps its thread until the program ends; so
the threads are few, each kind has its own, and none of them keeps the program from ending.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import ParamSpec, TypeVar

from conviction.answers.grouping import Grouping
from conviction.answers.kinds import AnswerKind
from conviction.core import Answer

MOST_THREADS = 8
"""Threads for one kind of answer; as many calls of it may hang, and further ones then wait."""

QUICK_CHARACTERS = 4_000
"""A text up to this length is read on the event loop, by a kind that is quick."""

QUICK_ANSWER = 200
"""An answer up to this length is classified there, if no comparison is needed."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def read_answer(kind: AnswerKind, grouping: Grouping, text: str) -> Answer | None:
    """The answer in a finished trace's text, with its class; None if there is none.

    At once where that takes at most a few milliseconds, else in a thread. Cancelling the caller
    does not wait for the thread, which may go on using `grouping`.
    """
    if not kind.quick or len(text) > QUICK_CHARACTERS:
        return await in_thread(kind, _read, kind, grouping, text)
    found = kind.extract(text)
    if found is None:
        return None
    answer = grouping.classify_at_once(found) if len(found) <= QUICK_ANSWER else None
    return answer or await in_thread(kind, grouping.classify, found)


def _read(kind: AnswerKind, grouping: Grouping, text: str) -> Answer | None:
    found = kind.extract(text)
    return None if found is None else grouping.classify(found)


async def in_thread(
    kind: AnswerKind,
    work: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **options: Parameters.kwargs,
) -> Result:
    """What `work` returns, called in one of the threads of a kind.

    Cancelling the caller abandons the call: it is not begun, or nothing waits for its end.
    """
    submitted = _threads(kind.name).submit(lambda: work(*arguments, **options))
    return await asyncio.wrap_future(submitted)


@cache
def _threads(name: str) -> "_Threads":
    del name
    return _Threads(MOST_THREADS)


class _Threads:
    """A pool of threads that end with the program, in the middle of a call if need be.

    The executors of the standard library wait for every call when the program ends, and so do the
    threads of anyio.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._started = 0
        self._unfinished = 0
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001  # raised where it is awaited
                    future.set_exception(error)

        with self._lock:
            self._unfinished += 1
            new = self._unfinished > self._started < self._most
            self._started += new
        self._calls.put(call)
        if new:
            Thread(target=self._serve, name="conviction answers", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            self._calls.get()()
            with self._lock:
                self._unfinished -= 1
