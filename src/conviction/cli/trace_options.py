"""Options of every command that has traces generated: how a question is put, and tokens drawn."""

from dataclasses import dataclass, replace
from typing import Annotated

from conviction.cli.whole_numbers import WHOLE
from conviction.core import Sampling
from conviction.prompts import PromptStyle


@dataclass(frozen=True)
class TraceOptions:
    """How a question is put, and how tokens are drawn."""

    answer: str = "math"
    "Kind of answer: math, number, choice, text or json."
    prompt_style: PromptStyle | None = None
    "What to add to the question; default: what suits the model."
    max_tokens: Annotated[int | None, WHOLE] = None
    "The most tokens of one trace; default: the model's in the settings file, else 1024."
    temperature: float | None = None
    """0 is greedy, traces then differ little or not at all; default: the model's in the settings
    file, else 0.7."""
    top_p: float | None = None
    "Nucleus mass, in (0, 1]; default: the model's in the settings file, else all."
    seed: Annotated[int, WHOLE] = 0
    "Same seed, same question, same traces, where the engine allows."

    def sampling(self, of_model: Sampling | None) -> Sampling:
        """The model's own sampling, where it has one, with the values that were given."""
        names = ("temperature", "top_p", "max_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(of_model or Sampling(), **given)
