"""What happens during a run, for its listeners: a terminal, a server, a recorder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conviction.core import Question, Trace
from conviction.engines.base import Capabilities, Chunk
from conviction.gate import Gate
from conviction.policies.base import Standing
from conviction.verdict import Verdict


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins."""

    question: Question
    policy: dict[str, Any]
    budget: int
    engine: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class TraceStarted:
    """A trace was handed to the engine."""

    trace: int
    gate: Gate | None


@dataclass(frozen=True, slots=True)
class TraceAdvanced:
    """A trace grew by a chunk."""

    trace: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class TraceRestarted:
    """A trace broke off after `lost_tokens` tokens, and begins again from nothing."""

    trace: int
    lost_tokens: int
    error: str


@dataclass(frozen=True, slots=True)
class TraceFinished:
    """A trace ended; `standing` is the vote after it."""

    trace: Trace
    standing: Standing


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The verdict is in."""

    verdict: Verdict


Event = RunStarted | TraceStarted | TraceAdvanced | TraceRestarted | TraceFinished | RunFinished
Listener = Callable[[Event], None]
