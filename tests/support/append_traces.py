"""A program that appends made-up traces to a pool, and can be killed as often as wanted.

    python append_traces.py FILE

For each line on standard input it starts a writer in a process of its own, which first prints
"pid NUMBER" and then "QUESTION NUMBER" for each trace that is recorded. When the writer has
ended, "ended" is printed. Only the first start pays for the imports.
"""

import os
import sys
from pathlib import Path

from recorded import META, made_up

from conviction.recordings import PoolWriter

QUESTIONS = ("a", "b", "c")


def append(folder: Path) -> None:
    """Continue the pool in `folder` for ever."""
    with PoolWriter(folder, META) as writer:
        while True:
            for question in QUESTIONS:
                number = len(writer.numbers(question))
                writer.append(made_up(question, number))
                say(f"{question} {number}")


def say(line: str) -> None:
    """Print a line in one piece, at once."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            say(f"pid {os.getpid()}")
            append(Path(sys.argv[1]))
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main()
