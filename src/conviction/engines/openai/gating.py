"""Whether a server stops traces by their gates, and whether its confidences reach us."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from conviction.engines.channel import Channel
from conviction.engines.gates import ABSURD, gate_arguments
from conviction.engines.openai.requests import Json, gate_fields
from conviction.engines.openai.whole_answers import Choice
from conviction.errors import EngineError, EngineUnavailableError
from conviction_gate.names import DEFAULT_K, STOP_TOKEN

_NAMED = re.compile(rf"{STOP_TOKEN}\s*=\s*(\d+)")
_TOKENS = 2


@dataclass(frozen=True, slots=True)
class FoundGate:
    """What was found out.

    Attributes:
        gate: Whether a gate stopped a trace.
        channel: Whether the confidences arrived through a file on this machine.
        stop_token: The token that a stopped trace ends with.
        reason: Why the gate does not work although it is there; empty if that is not so.
    """

    gate: bool = False
    channel: bool = False
    stop_token: int | None = None
    reason: str = ""


async def find_gate(ask: Callable[[int, Json], Awaitable[Choice]]) -> FoundGate:
    """Find out by requests that a gate must refuse and must stop.

    A gate that is not told which token to end a trace with refuses, and names one of the model's
    that fits. A server without the gate takes no notice of the arguments.

    Args:
        ask: Asks for so many tokens, with further settings.

    Raises:
        EngineUnavailableError: the server cannot be reached.
    """
    try:
        await ask(1, {"vllm_xargs": _without_stop_token()})
    except EngineUnavailableError:
        raise
    except EngineError as error:
        named = _NAMED.search(error.found)
        if named is None:
            reason = error.found if "conviction_" in error.found else ""
            return FoundGate(reason=reason)
        return await _try(ask, int(named[1]))
    return FoundGate()


async def _try(ask: Callable[[int, Json], Awaitable[Choice]], stop_token: int) -> FoundGate:
    channel = _channel()
    try:
        arguments = gate_arguments(
            ABSURD, top_k=DEFAULT_K, stop_token=stop_token, report=channel and channel.name
        )
        choice = await ask(_TOKENS, gate_fields(arguments))
        stopped = choice.stop_reason == stop_token
        # They may come a moment after the answer.
        arrived = channel is not None and bool(np.isfinite(await channel.take(1)).all())
        return FoundGate(stopped, stopped and arrived, stop_token if stopped else None)
    except EngineUnavailableError:
        raise
    except EngineError as error:
        return FoundGate(reason=error.found)
    finally:
        if channel is not None:
            channel.close()


def _channel() -> Channel | None:
    try:
        return Channel(_TOKENS)
    except OSError:
        return None


def _without_stop_token() -> dict[str, str | int | float]:
    arguments = gate_arguments(ABSURD, top_k=DEFAULT_K, stop_token=0)
    return {name: value for name, value in arguments.items() if name != STOP_TOKEN}
