r"""An engine that plays made-up traces, so that a server can be tried without a model.

Most traces of a question agree on an answer, and are more confident than those that do not. All is
drawn from the question and the trace's number, so asking again plays the same.
"""

from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine

_AGREEING = 0.7
_CHUNK_TOKENS = 2
_REMEMBERED = 1000

_MISSES = (-10, -2, -1, 1, 2, 10)
_DISCLAIMER = "(This trace is made up, and its answer too: no model was asked.)"
_OPENINGS = (
    "Let me restate the question first, so that nothing is left out.",
    "I will take this one step at a time.",
    "First, what is known, and what is asked for?",
    "Let me try a small case before the whole.",
)
_STEPS = (
    "Combining the first two quantities leaves one unknown, which makes the rest simple.",
    "Checking the units shows that both sides mean the same thing.",
    "If that were wrong, the total would have to be odd, and it is not.",
    "Another way gives the same: count what is left out and subtract it from all.",
    "That step needs care, because one case was nearly counted twice.",
    "Putting the numbers in, the intermediate result comes out whole.",
)
_DOUBTS = (
    "Wait, this does not fit what was said before; let me look again.",
    "Perhaps the second quantity was meant to be taken away, hmm.",
    "I am not sure about that carry, but going on with it.",
)


def made_up_traces(*, delay: float = 0.05, concurrency: int = 8, name: str = "") -> ScriptedEngine:
    """An engine that plays made-up traces, `delay` seconds between chunks of two tokens.

    Another `name` plays other traces.
    """
    return ScriptedEngine(
        partial(_script, name),
        concurrency=concurrency,
        chunk_tokens=_CHUNK_TOKENS,
        delay=delay,
        remembered=_REMEMBERED,
    )


def _script(name: str, request: TraceRequest) -> Script:
    asked = name + request.messages[-1].content
    question = _draw(asked)
    right = int(question.integers(2, 100))
    others = [right + int(step) for step in question.choice(_MISSES, 3, replace=False)]
    draw = _draw(f"{asked}/{request.trace}")
    agrees = draw.random() < _AGREEING
    answer = right if agrees else int(draw.choice(others))
    steps = [
        str(draw.choice(_STEPS if agrees or draw.random() < 0.5 else _DOUBTS))
        for _ in range(int(draw.integers(3, 9)))
    ]
    text = (
        " ".join([_DISCLAIMER, str(draw.choice(_OPENINGS)), *steps])
        + f"\n\nThe answer is \\boxed{{{answer}}}."
    )
    tokens = len(text) // 4
    return Script(text, _confidences(draw, tokens, agrees=agrees), prompt_tokens=len(text) // 8)


def _confidences(draw: np.random.Generator, tokens: int, *, agrees: bool) -> NDArray[np.float32]:
    """A random walk that rises towards the answer, or falls where a trace is on a wrong track."""
    trend = np.linspace(0.0, draw.uniform(0.0, 3.0) if agrees else draw.uniform(-6.0, 1.0), tokens)
    walk = np.cumsum(draw.normal(0.0, 0.25, tokens))
    noise = draw.gamma(2.0, 1.2, tokens)
    return np.clip(11.0 + trend + walk * 0.5 + noise, 0.5, 24.0).astype(np.float32)


def _draw(text: str) -> np.random.Generator:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest))
