"""The command line: answers on stdout, everything else on stderr."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    ANSWERED = 0
    FAILED = 1
    USAGE = 2
    ABSTAINED = 3
    INTERRUPTED = 130
