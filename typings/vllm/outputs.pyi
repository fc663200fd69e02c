from collections.abc import Mapping, Sequence

from vllm.logprobs import Logprob

class CompletionOutput:
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None

class RequestOutput:
    outputs: Sequence[CompletionOutput]
    num_cached_tokens: int | None
