"""What is sent to a server of completions: the two routes, and how its software wants it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, cast

from conviction.core import Message, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.gates import Arguments
from conviction.errors import InvalidSettingError
from conviction_gate.names import STOP_TOKEN

Json = Mapping[str, object]

NOTHING: Json = MappingProxyType({})

FILTERS_OFF: tuple[Mapping[str, float], ...] = (
    MappingProxyType({"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
    MappingProxyType({"top_p": 1.0, "top_k": -1, "min_p": 0.0}),
    MappingProxyType({"top_p": 1.0, "top_k": 0, "min_p": 0.0}),
    MappingProxyType({"top_p": 1.0}),
    MappingProxyType({}),
)
"""Values that switch filters and penalties off, as servers accept them, the fullest first.

They are sent because servers of open models have some of their own, which hold where a request is
silent: vLLM takes them from the model's folder. Those for a `top_k` of "all" differ, and hosted
services refuse what the original protocol does not have.
"""


class Route(StrEnum):
    """Where a trace is asked for."""

    CHAT = "/chat/completions"
    """The server puts the model's chat template around the messages."""
    COMPLETIONS = "/completions"
    """The text goes to the model as it is, for prompts that have their template already."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server wants to be spoken to.

    Attributes:
        filters_off: What to send for filters that a sampling leaves off.
        limit_name: What the limit of tokens is called.
        counts: Where every event can carry the counts of tokens so far: in its usage (vLLM,
            SGLang) or its timings (llama.cpp); empty for nowhere.
        token_ids: Whether candidates can be named by number. Plain completions give them as a
            mapping, in which two tokens that read the same would be one.
    """

    filters_off: dict[str, float] = field(default_factory=dict[str, float])
    limit_name: str = "max_tokens"
    counts: Literal["", "usage", "timings"] = ""
    token_ids: bool = False


def trace_body(
    request: TraceRequest, *, route: Route, model: str | None, dialect: Dialect
) -> dict[str, object]:
    """The request for one trace, streamed.

    Raises:
        InvalidSettingError: several messages were to go where there is no chat.
    """
    body: dict[str, object] = {
        **prompt_fields(request.messages, route, request.prefix),
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": request.seed,
        **sampling_fields(request.sampling, dialect),
        **logprob_fields(request.top_k, route),
        **count_fields(dialect.counts),
    }
    if model is not None:
        body["model"] = model
    if dialect.token_ids and request.top_k and route is Route.COMPLETIONS:
        body["return_tokens_as_token_ids"] = True
    return body


def gate_fields(arguments: Arguments, extra: Json = NOTHING) -> dict[str, object]:
    """How vLLM is told of a gate: arguments for the plugin, and the token that stands for a stop.

    Args:
        arguments: Those of the gate; may be empty.
        extra: Further settings, which may have arguments and such tokens of their own.
    """
    fields = dict(extra)
    if arguments:
        fields["vllm_xargs"] = {**_mapping(extra.get("vllm_xargs")), **arguments}
    if STOP_TOKEN in arguments:
        fields["stop_token_ids"] = [*_items(extra.get("stop_token_ids")), arguments[STOP_TOKEN]]
    return fields


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else NOTHING


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def count_fields(counts: str) -> dict[str, object]:
    """How a server is asked for counts of tokens in every event."""
    if counts == "usage":
        return {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return {"timings_per_token": True} if counts == "timings" else {}


def prompt_fields(messages: tuple[Message, ...], route: Route, prefix: str) -> dict[str, object]:
    """The prompt as the route wants it, with what the trace begins with."""
    if route is Route.CHAT and prefix:
        begun = (*messages, Message("assistant", prefix))
        # As vLLM, SGLang and llama.cpp call it. Without, a new message would follow.
        going_on = {"continue_final_message": True, "add_generation_prompt": False}
        return {"messages": chat(begun), **going_on}
    if route is Route.CHAT:
        return {"messages": chat(messages)}
    if len(messages) != 1:
        raise InvalidSettingError(
            tried=f"send a chat of {len(messages)} messages to {route}",
            found="there it takes one text, with the model's template around it",
            remedy="Put the template around the messages yourself, or use the chat route.",
        )
    return {"prompt": messages[0].content + prefix}


def chat(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Messages as the protocol writes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def sampling_fields(sampling: Sampling, dialect: Dialect) -> dict[str, object]:
    """A sampling as the protocol writes it, filters that are off spelled out."""
    filters = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
    return {
        "temperature": sampling.temperature,
        dialect.limit_name: sampling.max_tokens,
        **dialect.filters_off,
        **{name: value for name, value in filters.items() if value is not None},
    }


def logprob_fields(top_k: int, route: Route) -> dict[str, object]:
    """How the route is asked for the `top_k` likeliest tokens."""
    if not top_k:
        return {}
    if route is Route.CHAT:
        return {"logprobs": True, "top_logprobs": top_k}
    return {"logprobs": top_k}
