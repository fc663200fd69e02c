"""A request's arguments: read, and refused at admission where they are wrong."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NoReturn

from conviction_gate.channel import NAME
from conviction_gate.names import (
    ALL,
    DEFAULT_K,
    MOST_ID,
    MOST_K,
    MOST_WINDOW,
    PREFIX,
    REPORT,
    STOP_TOKEN,
    THRESHOLD,
    TRACE,
    WINDOW,
    K,
    stop_token_of,
)

_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Arguments:
    """What one request wants.

    Attributes:
        window: Known tokens in a group; 0 without a gate.
        threshold: Least group confidence; -inf without a gate.
        stop_token: The token that ends the trace; 0 without a gate.
        k: Log-probabilities that a confidence is the mean of.
        report: Name of its channel; empty for none.
        trace: What names it among the traces that run; empty where nothing does.
        least_tokens: Tokens that it writes before it may be stopped.
    """

    window: int = 0
    threshold: float = -float("inf")
    stop_token: int = 0
    k: int = DEFAULT_K
    report: str = ""
    trace: str = ""
    least_tokens: int = 0


def read(params: Any) -> Arguments | None:
    """The arguments in vLLM's `SamplingParams`; None if it has none of ours.

    Raises:
        ValueError: naming the argument that is wrong, and what it must be.
    """
    given: Mapping[str, object] = params.extra_args or {}
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    if not ours:
        return None
    if unknown := sorted(ours.keys() - set(ALL)):
        _refuse(f"{unknown[0]} is none of its arguments, which are {', '.join(ALL)}")
    k = _whole(ours, K, 1, MOST_K) if K in ours else DEFAULT_K
    report, trace = _text(ours, REPORT), _text(ours, TRACE)
    if REPORT in ours and not NAME.fullmatch(report):
        _refuse(f"{REPORT} must be a channel's name, conviction- and 32 hexadecimal digits")
    if len(trace) > MOST_ID:
        _refuse(f"{TRACE} must have at most {MOST_ID} characters")
    named = Arguments(k=k, report=report, trace=trace or report)
    if not ours.keys() & {WINDOW, THRESHOLD, STOP_TOKEN}:
        return named if report else _refuse(f"give {WINDOW} and {THRESHOLD}, or {REPORT}")
    for name in (WINDOW, THRESHOLD):
        if name not in ours:
            _refuse(f"a gate needs {WINDOW} and {THRESHOLD}, and {name} is missing")
    return replace(
        named,
        window=_whole(ours, WINDOW, 1, MOST_WINDOW),
        threshold=_finite(ours, THRESHOLD),
        stop_token=_stop_token(ours, params.stop_token_ids or ()),
        least_tokens=params.min_tokens or 0,
    )


def check(params: Any) -> None:
    """Refuse a request that cannot be gated as it asks to be.

    Raises:
        ValueError: naming the argument that is wrong, or why this engine has no gate.
    """
    wanted = read(params)
    if wanted is None:
        return
    if wanted.trace and params.n > 1:
        given = REPORT if wanted.report else TRACE
        _refuse(f"{given} is for one trace, and n is {params.n}; ask for each by itself")
    if wanted.window and params.structured_outputs is not None:
        # vLLM would end such a trace as an error: its grammar takes no token that it did not allow.
        _refuse(
            f"{WINDOW} cannot go with structured outputs, as a grammar lets nothing end an answer "
            f"before it is whole; {REPORT} can"
        )
    asking = _asking()
    if asking is not None and (reason := obstacle(asking.vllm_config)):
        _refuse(f"{reason}; start vLLM without it, or leave the arguments out")


def obstacle(vllm_config: Any) -> str:
    """Why there can be no gate under these settings of vLLM; empty if there can."""
    if vllm_config.speculative_config is not None:
        return (
            "speculative decoding is on, where the gate cannot tell drafts that are rejected from "
            "tokens"
        )
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        return "batch-sharded sampling is on, where a trace may change from one worker to another"
    return ""


def _whole(given: Mapping[str, object], name: str, low: int, high: int) -> int:
    value = given[name]
    # JSON has one kind of number: 5.0 is whole.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(f"{name} must be a whole number from {low} to {high}, and is {_shown(value)}")
    return value


def _finite(given: Mapping[str, object], name: str) -> float:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        _refuse(f"{name} must be a finite number, and is {_shown(value)}")
    return float(value)


def _text(given: Mapping[str, object], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        _refuse(f"{name} must be a text, and is {_shown(value)}")
    return value


def _stop_token(given: Mapping[str, object], listed: Any) -> int:
    if STOP_TOKEN not in given:
        fitting = _fitting_token()
        one = "the id of a token that the model never writes" if fitting is None else fitting
        _refuse(f"{WINDOW} needs {STOP_TOKEN}={one}, and the same in stop_token_ids")
    token = _whole(given, STOP_TOKEN, 0, 2**31 - 1)
    if token not in listed:
        _refuse(f"{STOP_TOKEN}={token} must be among stop_token_ids, so that stop_reason tells it")
    return token


def _fitting_token() -> int | None:
    """A token of the model at hand that can end traces; None where the model cannot be seen."""
    asking = _asking()
    if asking is None or asking.tokenizer is None:
        return None
    return stop_token_of(asking.vllm_config.model_config, asking.tokenizer)


def _asking() -> Any:
    """The part of vLLM that is admitting a request; None where it cannot be found.

    A validator gets the request's parameters only. What it must know of the engine, which model it
    has and whether it speculates, is with the caller of its caller.
    """
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if hasattr(caller, "vllm_config") and hasattr(caller, "tokenizer"):
            return caller
        frame = frame.f_back
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"The gate of conviction cannot take this request: {reason}.")
