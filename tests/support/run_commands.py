"""A program that runs commands of conviction in children, which can be killed as often as wanted.

    python run_commands.py OUTPUT

Each line on standard input is a command's arguments as a JSON list. The command is run in a process
of its own, which writes what it says to the file OUTPUT; "pid NUMBER" is printed first, and "ended
CODE" when it has ended, with a negative signal as the code of one that was killed. Only the first
start pays for the imports.
"""

import json
import os
import signal
import sys

import conviction.cli.evaluation
import conviction.cli.record
import conviction.cli.serve
import conviction.engines.made_up
import conviction.recordings.transfer
import conviction.server.app  # noqa: F401  # imported before there are children
from conviction.cli.main import run


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _be(json.loads(line))
        say(f"pid {child}")
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


def _be(arguments: list[str]) -> None:
    output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run may have it ignored
    code = 99
    try:
        code = run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def say(line: str) -> None:
    """Print a line in one piece, at once."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
