"""The program that compares formulas with math-verify; it is run, not imported.

It reads one JSON object a line and answers with one line each:

    {"parse": "x+1"}                 {"readable": true}
    {"compare": ["x+1", "1+x"]}      {"equal": true}

Its first line is {"ready": true}, or {"failed": "why"}. It ends when its standard input does,
also in the middle of a comparison, so that it never outlives who started it. It imports nothing
of conviction, so that it starts as fast as math-verify does.
"""

import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

_MEMORY_BYTES = 3 * 2**30
_MOST_KEPT = 4096
_EXIT_ALONE = 3


class Comparer:
    """Compares formulas with math-verify; each is parsed once."""

    def __init__(self) -> None:
        library = importlib.import_module("math_verify")
        self._parse: Callable[..., list[Any]] = library.parse
        self._verify: Callable[..., bool] = library.verify
        self._reading = [library.LatexExtractionConfig(boxed_match_priority=-1)]
        self._parsed: dict[str, list[Any]] = {}

    def parse(self, formula: str) -> list[Any]:
        """What math-verify reads; empty if it cannot."""
        if formula not in self._parsed:
            if len(self._parsed) >= _MOST_KEPT:
                self._parsed.clear()
            # The limits of math-verify itself need the main thread's alarm; ours are outside.
            self._parsed[formula] = self._parse(
                f"${formula}$", self._reading, fallback_mode="no_fallback", parsing_timeout=None
            )
        return self._parsed[formula]

    def equal(self, first: str, second: str) -> bool:
        """Whether either of the two, taken for the right answer, admits the other."""
        one, other = self.parse(first), self.parse(second)
        return self._verify(one, other, timeout_seconds=None) or self._verify(
            other, one, timeout_seconds=None
        )


def answer(comparer: Comparer, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; whatever fails is unreadable, or different."""
    try:
        if "parse" in request:
            return {"readable": bool(comparer.parse(request["parse"]))}
        return {"equal": bool(comparer.equal(*request["compare"]))}
    except Exception:  # noqa: BLE001  # any failure of the parser means that it cannot tell
        return {"readable": False, "equal": False}


def _limit_memory() -> None:
    try:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        return  # not on this system


def _alarm(seconds: float) -> None:
    """Have the system end this process after `seconds`, even if Python never gets a turn."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _pass_on(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(_EXIT_ALONE)


def _serve(replies: TextIO, seconds: float) -> None:
    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        comparer = Comparer()
        # The first use loads most of the grammar; it belongs to the start.
        comparer.equal("x+1", "1+x")
    except Exception as error:  # noqa: BLE001  # a broken installation may fail in any way
        reply({"failed": f"{type(error).__name__}: {error}"})
        return
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_pass_on, args=(lines,), daemon=True).start()
    reply({"ready": True})
    while True:
        request = json.loads(lines.get())
        _alarm(seconds)
        message = answer(comparer, request)
        _alarm(0)
        reply(message)


def main() -> None:
    """Serve until standard input ends; the only argument is the longest time per request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints is taken for a reply
    _limit_memory()
    _serve(replies, float(sys.argv[1]))


if __name__ == "__main__":
    main()
