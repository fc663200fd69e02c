"""The token that stands for "stopped by the gate": one that the model never writes."""

from collections.abc import Mapping
from typing import Any

from conviction.engines.vllm.inside import AsyncEngine
from conviction_gate.names import stop_token


def stop_token_of(engine: AsyncEngine) -> int | None:
    """The token to force where a gate stops a trace, for the model that an engine runs."""
    config, tokenizer = engine.model_config, engine.get_tokenizer()
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
