"""The token that stands for "stopped by the gate": one that the model never writes."""

from collections.abc import Collection, Mapping
from typing import Any

from conviction.engines.vllm.inside import AsyncEngine

_UNUSED = ("reserved", "unused", "extra", "dummy", "placeholder", "pad")


def stop_token(
    *,
    logits: int,
    tokens: int,
    special: Mapping[int, str],
    ends: Collection[int],
    template: str = "",
) -> int | None:
    """The token to force where a gate stops a trace, so that its stop is told from a usual end.

    Best is an id that has logits and no token, as where the vocabulary is filled up to a round
    size; then a special token whose name says that it is of no use; then any special one that the
    chat template does not use.

    Args:
        logits: Logits of the model; ids from this on cannot be forced.
        tokens: One more than the tokenizer's largest id.
        special: The special tokens' texts by id.
        ends: Tokens that end a trace by themselves.
        template: The chat template.

    Returns:
        The id, or None if there is none that fits.
    """
    if tokens < logits:
        return logits - 1
    usable = {
        token: text for token, text in special.items() if token not in ends and token < logits
    }
    unused = [
        token for token, text in usable.items() if any(word in text.lower() for word in _UNUSED)
    ]
    spare = [token for token, text in usable.items() if text not in template]
    return max(unused or spare or usable, default=None)


def stop_token_of(engine: AsyncEngine) -> int | None:
    """The same, for the model that an engine runs."""
    config, tokenizer = engine.model_config, engine.get_tokenizer()
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token: str(text) for token, text in added.items() if getattr(text, "special", True)}
    for token, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True):
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
