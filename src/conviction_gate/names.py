"""What a request says to the gate: names and ranges of its arguments, and its reserved token.

They stand in `SamplingParams.extra_args`, over HTTP in `vllm_xargs`, which takes strings and
numbers only.
"""

from collections.abc import Collection, Mapping
from typing import Any

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
"""An id of the trace, unique among those that run; finds its window again after a preemption, also
where vLLM's own objects do not: on runner V2 with workers in several processes. A report's name
does as well."""

ALL = (WINDOW, THRESHOLD, K, STOP_TOKEN, REPORT, TRACE)
PREFIX = "conviction_"

DEFAULT_K = 20
MOST_K = 64
"""Taking more out of a row one by one costs a GPU more than sorting it would."""
MOST_WINDOW = 8192
"""The widest window sets the memory of all: 16 bytes a token on the device, for each request that
may run at once, so 34 MB at 1,024 of them for the usual 2,048 tokens, 134 MB for this many."""
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


def stop_token_of(config: Any, tokenizer: Any) -> int | None:
    """The token to force where a gate stops a trace: `stop_token` for the model of an engine.

    Args:
        config: vLLM's `ModelConfig`.
        tokenizer: The model's tokenizer.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token: str(text) for token, text in added.items() if getattr(text, "special", True)}
    for token, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False):
        special.setdefault(token, str(text))
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    return stop_token(
        logits=config.get_vocab_size(),
        tokens=1 + max(vocabulary.values(), default=-1),
        special=special,
        ends=_ends(config, tokenizer),
        template=str(getattr(tokenizer, "chat_template", None) or ""),
    )


def _ends(config: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a trace, and those that begin one: a model may take either for an end."""
    generation: Mapping[str, Any] = config.try_get_generation_config() or {}
    named: list[Any] = [
        generation.get("eos_token_id"),
        getattr(config.hf_config, "eos_token_id", None),
        tokenizer.eos_token_id,
        getattr(tokenizer, "bos_token_id", None),
    ]
    ends: set[int] = set()
    for tokens in named:
        ends.update([tokens] if isinstance(tokens, int) else tokens or ())
    return ends
