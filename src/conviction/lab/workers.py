"""The same work on every question, in several processes where that pays."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from conviction.children import secrets_hidden
from conviction.errors import RecordingError
from conviction.lab.sources import TraceSource

Result = TypeVar("Result")
Work = Callable[[TraceSource, str], Result]

WORTHWHILE_SECONDS = 3.0
"""Starting processes takes about a second, so less work than this is done in this one."""


def each_question(
    work: Work[Result], source: TraceSource, *, processes: int = 1
) -> Iterator[tuple[int, Result]]:
    """Do some work on each question, and give its number and result as they come.

    The first question is done here, and tells whether further processes are worth starting. With
    more than one process the work and its results must pickle.

    Raises:
        RecordingError: a process could not be started, or died, as it does when memory runs out.
    """
    ids = source.question_ids
    if not ids:
        return
    began = time.monotonic()
    yield 0, work(source, ids[0])
    numbers = range(1, len(ids))
    expected = (time.monotonic() - began) * len(numbers)
    processes = min(processes, len(numbers))
    if processes < 2 or expected < WORTHWHILE_SECONDS:
        for number in numbers:
            yield number, work(source, ids[number])
    else:
        yield from _in_processes(work, source, numbers, processes)


def _in_processes(
    work: Work[Result], source: TraceSource, numbers: Sequence[int], processes: int
) -> Iterator[tuple[int, Result]]:
    # Forking would copy the threads' locks of whoever calls; a spawned process begins clean.
    context, waiting = get_context("spawn"), iter(numbers)
    with ExitStack() as stack:
        busy: dict[Any, BaseProcess] = {}
        for _ in range(processes):
            try:
                ours, theirs = context.Pipe()
                worker = context.Process(target=_serve, args=(theirs,), daemon=True)
                with _interrupts_ignored(), secrets_hidden():
                    worker.start()
            except OSError as error:
                raise _failed(f"one of them could not be started ({error})") from None
            stack.callback(_end, worker, ours)
            theirs.close()
            busy[ours] = worker
        # Sent once all are on their way: the traces may be more than a pipe holds, and it is not
        # emptied before a process has come up.
        for connection, worker in busy.items():
            _send(connection, worker, (work, source))
            _send(connection, worker, next(waiting))
        while busy:
            ready: list[Any] = wait(list(busy))
            for connection in ready:
                number, result = _received(connection, busy[connection])
                following = next(waiting, None)
                if following is None:
                    del busy[connection]
                else:
                    _send(connection, busy[connection], following)
                yield number, result


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    """Processes started meanwhile ignore Ctrl-C, which goes to the whole group: we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)


def _send(connection: Any, worker: BaseProcess, message: Any) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        raise _died(worker) from None


def _received(connection: Any, worker: BaseProcess) -> tuple[int, Any]:
    try:
        number, result, error = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _died(worker) from None
    if error is not None:
        raise error
    return number, result


def _died(worker: BaseProcess) -> RecordingError:
    worker.join(1.0)
    return _failed(f"one of them died (exit code {worker.exitcode}), as when memory runs out")


def _failed(found: str) -> RecordingError:
    return RecordingError(
        tried="replay in several processes",
        found=found,
        remedy="Close other programs, or use fewer processes (conviction lab: --processes 1).",
    )


def _end(worker: BaseProcess, connection: "Connection[Any, Any]") -> None:
    connection.close()
    worker.terminate()
    worker.join()
    worker.close()


def _serve(connection: "Connection[Any, Any]") -> None:
    """Work on one question after another, until the other end is closed or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        work: Work[Any]
        source: TraceSource
        work, source = connection.recv()
        while True:
            number: int = connection.recv()
            try:
                reply = number, work(source, source.question_ids[number]), None
            except Exception as error:  # noqa: BLE001  # it is raised where the work was asked for
                reply = number, None, error
            connection.send(reply)
