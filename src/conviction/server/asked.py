"""One request, after everything about it was checked."""

from dataclasses import dataclass, field

from conviction.core import Question, Sampling
from conviction.policies.base import Policy
from conviction.server.settings import Content


@dataclass(frozen=True, eq=False)
class Asked:
    """One request after all checks against defaults and ceilings.

    Attributes:
        question: In the words that the model gets.
        policy: Steers it; a prototype.
        answers: Name of the kind of answer.
        sampling: How tokens are drawn.
        model: Name of the model as it was asked for.
        text: The user's own words.
        seed: Seeds of all traces derive from it.
        time_limit: Seconds that it may take once its turn has come.
        concurrency: The most traces of it that run at once; None for as many as there are slots.
        total_tokens: Tokens that its traces together may generate; None for no such bound.
        content: What a message holds.
        client: Who asked; "" where there are no keys.
    """

    question: Question
    policy: Policy
    answers: str
    sampling: Sampling
    model: str
    text: str = field(repr=False)
    time_limit: float
    seed: int = 0
    concurrency: int | None = None
    total_tokens: int | None = None
    content: Content = "trace"
    client: str = ""
