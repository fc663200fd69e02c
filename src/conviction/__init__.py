"""Think many times in parallel, stop what is weak, vote, and say how sure the answer is.

import conviction

verdict = conviction.think("A farmer has 17 sheep and buys 3 pens of 8. How many now?")
print(verdict.answer, verdict.share)

What it offers is imported when it is first used: `conviction --version` needs no numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conviction.api import athink, athink_many, think, think_many
    from conviction.core import (
        Answer,
        FinishReason,
        Message,
        Question,
        Sampling,
        Tally,
        TallyEntry,
        Trace,
    )
    from conviction.errors import ConvictionError
    from conviction.gate import Gate
    from conviction.policies import (
        Continue,
        DeepConfHigh,
        DeepConfLow,
        DeepConfOffline,
        Done,
        Forget,
        Majority,
        Policy,
        Single,
        Standing,
        Start,
        Stop,
        policy,
    )
    from conviction.thinking import deliberate
    from conviction.verdict import Right, Usage, Verdict

__all__ = [
    "Answer",
    "Continue",
    "ConvictionError",
    "DeepConfHigh",
    "DeepConfLow",
    "DeepConfOffline",
    "Done",
    "FinishReason",
    "Forget",
    "Gate",
    "Majority",
    "Message",
    "Policy",
    "Question",
    "Right",
    "Sampling",
    "Single",
    "Standing",
    "Start",
    "Stop",
    "Tally",
    "TallyEntry",
    "Trace",
    "Usage",
    "Verdict",
    "athink",
    "athink_many",
    "deliberate",
    "policy",
    "think",
    "think_many",
]

_HOMES = ("api", "core", "errors", "gate", "policies", "thinking", "verdict")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"conviction.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'conviction' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
