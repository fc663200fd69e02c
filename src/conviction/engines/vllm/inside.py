"""What is used of vLLM, as far as types go. vLLM itself is imported only where it is started."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol


class Logprob(Protocol):
    """One of the likeliest tokens at a place, or the generated one."""

    @property
    def logprob(self) -> float:
        """Natural log of its probability."""
        ...

    @property
    def rank(self) -> int | None:
        """Its place among all tokens, from 1."""
        ...


class Completion(Protocol):
    """What a step, or several, added to a trace."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


class Output(Protocol):
    """What vLLM says of one request at a time."""

    outputs: Sequence[Completion]
    prompt_token_ids: Sequence[int] | None
    num_cached_tokens: int | None


class AsyncEngine(Protocol):
    """vLLM's asynchronous engine. Its core runs in a process of its own."""

    model_config: Any
    vllm_config: Any

    def generate(
        self, prompt: Mapping[str, object], sampling_params: object, request_id: str
    ) -> AsyncGenerator[Output, None]:
        """Add a request, and give its outputs."""
        ...

    async def abort(self, request_id: str) -> None:
        """End a request at once; nothing happens if it has ended."""
        ...

    async def check_health(self) -> None:
        """Raise if the core has died."""
        ...

    def get_tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def shutdown(self) -> None:
        """End all its processes."""
        ...
