"""How a gate is told to vLLM: arguments of a request, read by the plugin `conviction_gate`."""

from collections.abc import Mapping
from secrets import token_hex

from conviction.gate import Gate
from conviction_gate.names import (
    MOST_K,
    MOST_WINDOW,
    REPORT,
    STOP_TOKEN,
    THRESHOLD,
    TRACE,
    WINDOW,
    K,
)

ABSURD = Gate(window=1, threshold=1e9)
"""A gate that no trace gets through: whoever applies gates stops at the first token."""

Arguments = Mapping[str, str | int | float]


def gate_arguments(
    gate: Gate | None, *, top_k: int, stop_token: int | None, report: str | None = None
) -> dict[str, str | int | float]:
    """The arguments that stop a trace by its gate, or measure it, or both.

    Args:
        gate: When to stop; None to measure only. One that the server could not hold stays with
            the client, which looks at the gate as well.
        top_k: The k of token confidence (eq. 2).
        stop_token: The reserved token that a stopped trace ends with; without it there is no gate.
        report: Name of the channel that the confidences go to, if any.

    Returns:
        Names and values; empty if there is nothing to do.
    """
    arguments: dict[str, str | int | float] = {}
    if gate is not None and stop_token is not None and gate.window <= MOST_WINDOW:
        arguments[WINDOW] = gate.window
        arguments[THRESHOLD] = float(gate.threshold)
        arguments[STOP_TOKEN] = stop_token
    if report is not None:
        arguments[REPORT] = report
    elif arguments:
        # By it the window is found again when vLLM has put a trace aside; a channel names it too.
        arguments[TRACE] = token_hex(16)
    if arguments and top_k:
        arguments[K] = min(top_k, MOST_K)
    return arguments
