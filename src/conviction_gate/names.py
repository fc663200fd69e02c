"""What a request says to the gate: names and ranges of its arguments, and its reserved token.

They stand in `SamplingParams.extra_args`, over HTTP in `vllm_xargs`, which takes strings and
numbers only.
"""

from collections.abc import Collection, Mapping

WINDOW = "conviction_window"
"""Known tokens in a group: a whole number from 1 to `MOST_WINDOW`; with a threshold."""
THRESHOLD = "conviction_threshold"
"""Least group confidence at which a trace goes on: a finite number; with a window."""
K = "conviction_k"
"""Log-probabilities that a token's confidence is the mean of (k of eq. 2)."""
STOP_TOKEN = "conviction_stop_token"  # noqa: S105  # the name of an argument
"""Id of the token that ends a trace in place of the one at which its window fell too low."""
REPORT = "conviction_report"
"""Name of the channel that the confidences are written to; also without a gate."""
TRACE = "conviction_trace"
"""An id of the trace, unique among those that run; finds its window again after a preemption."""

ALL = (WINDOW, THRESHOLD, K, STOP_TOKEN, REPORT, TRACE)
PREFIX = "conviction_"

DEFAULT_K = 20
MOST_K = 1000
MOST_WINDOW = 32_768
"""A window takes eight bytes a token on the device, for every request that runs at once."""
MOST_ID = 128
"""Characters of a trace's id."""

_UNUSED = ("reserved", "unused", "pad", "extra", "filler")


def stop_token(
    *,
    logits: int,
    tokens: int,
    special: Mapping[int, str],
    ends: Collection[int],
    template: str = "",
) -> int | None:
    """A token that can end a trace without being taken for anything that a model writes.

    Best is a place of the logits that no token has: vocabularies are padded. Else a special token
    that is reserved, else any that neither ends a trace nor stands in the chat template.

    Args:
        logits: Places that the logits have.
        tokens: Tokens that the tokenizer knows, with all that were added.
        special: The text of each special token by its id.
        ends: Tokens that end or begin a text.
        template: The chat template.

    Returns:
        Its id, in [0, logits); None where there is none.
    """
    if tokens < logits:
        return logits - 1
    free = {
        token: text
        for token, text in sorted(special.items(), reverse=True)
        if token not in ends and 0 <= token < logits and (not text or text not in template)
    }
    reserved = (t for t, text in free.items() if any(word in text.lower() for word in _UNUSED))
    return next(reserved, next(iter(free), None))
