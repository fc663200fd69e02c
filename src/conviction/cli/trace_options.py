"""Options of every command that has traces generated: how a question is put, and tokens drawn."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from conviction.answers import kinds_help
from conviction.cli.arguments import WHOLE
from conviction.core import Sampling
from conviction.prompts import PromptStyle


@dataclass(frozen=True)
class TraceOptions:
    """How a question is put, and how tokens are drawn."""

    answer: Annotated[str, Parameter(help=kinds_help())] = "math"
    prompt_style: PromptStyle | None = None
    "What to add to the question; default: what suits the model."
    max_tokens: Annotated[int, WHOLE] = 1024
    "The most tokens of one trace."
    temperature: float = 0.7
    "0 is greedy; traces then differ little or not at all."
    top_p: float | None = None
    "Nucleus mass, in (0, 1]."
    seed: Annotated[int, WHOLE] = 0
    "Same seed, same question, same traces, where the engine allows."

    def sampling(self) -> Sampling:
        """The sampling that was asked for."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)
