"""How many tokens a group holds when the user did not say.

The paper's window of 2048 suits traces of tens of thousands of tokens. On traces shorter than
the window the stop test never fires, so the window has to follow the traces.
"""

from collections.abc import Sequence

import numpy as np

from conviction.core import Trace, require, require_whole

PAPER_WINDOW = 2048
LEAST_WINDOW = 16
"""Fewer tokens measure single words rather than a stretch of reasoning."""

_PART_OF_TRACE = 3
"""A third of a trace: long enough to be steady, short enough to save most of a weak trace."""


_MOST_WINDOW = 1 << 17
"""Every trace that runs keeps memory for two windows, and a client of the server may set them."""


def check_window(window: int | None) -> None:
    """Check a window that a user set.

    Raises:
        InvalidSettingError: it is no whole number from 1 to 131,072.
    """
    if window is not None:
        require_whole("window", window, low=1)
        require("window", window, low=1, high=_MOST_WINDOW)


def fitting_window(traces: Sequence[Trace]) -> int:
    """A third of the median trace, from 16 to the paper's 2048 tokens; 2048 without traces."""
    if not traces:
        return PAPER_WINDOW
    median = float(np.median([trace.tokens for trace in traces]))
    return min(max(round(median / _PART_OF_TRACE), LEAST_WINDOW), PAPER_WINDOW)
