"""What a run keeps: what it is, and what became of each question."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from conviction.verdict import OUT_OF_TOKENS, UNSETTLED, Usage

SCHEMA_VERSION = 1
"""Raised whenever a field changes its meaning; readers refuse versions above their own."""

_KNOWN_LATER = ("model", "k")
"""What only a running engine tells."""


class QuestionResult(msgspec.Struct, frozen=True):
    """What became of one question.

    Attributes:
        id: The question's id.
        question: Hash of its words, 16 hexadecimal digits.
        gold: The right answer; None where the data have none.
        answer: The verdict; None where no trace gave one.
        correct: Whether it equals the right answer; None if that is unknown or the question failed.
        share: The answer's part of the votes, in [0, 1].
        ended: Why it ended: "budget", "consensus", "tokens", …, or "failed".
        tokens: All generated tokens.
        usage: The same by what became of them.
        traces: Traces that were started.
        seconds: Wall time, with the time spent waiting for the engine that all questions share.
        warnings: What the reader of the verdict should know.
        error: Why it failed; None if it did not.
        lead: `Verdict.lead`: how probable it is that further traces would leave the answer in
            front; None without votes, and in runs from before it was kept.
        votes: Traces that voted; None in runs from before it was kept.
    """

    id: str
    question: str
    gold: str | None
    answer: str | None
    correct: bool | None
    share: float
    ended: str
    tokens: int
    usage: Usage
    traces: int
    seconds: float
    warnings: tuple[str, ...] = ()
    error: str | None = None
    lead: float | None = None
    votes: int | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no verdict, because the engine or the comparison failed."""
        return self.error is not None

    @property
    def settled(self) -> bool:
        """Whether its policy settled on an answer before the budget was used up."""
        return self.answer is not None and self.ended not in UNSETTLED

    @property
    def contested(self) -> bool:
        """Whether the votes so far decided: a total was spent, or its policy found no safe lead."""
        return self.answer is not None and self.ended in (OUT_OF_TOKENS, "contested")


def without_empty_verdict(result: QuestionResult) -> QuestionResult:
    """The result as it is, or as a failure if it is a verdict of not one token.

    Earlier versions kept such verdicts where the engine could not be reached. A total of tokens
    that was spent on other questions leaves a question without any, which is a result.
    """
    nothing = result.answer is None and not result.usage.generated
    if not nothing or result.failed or result.ended == OUT_OF_TOKENS:
        return result
    error = f"not one token was generated, and a verdict kept ({result.ended})"
    return msgspec.structs.replace(result, correct=None, ended="failed", error=error)


class RunData(msgspec.Struct, frozen=True):
    """Which questions a run asks.

    Attributes:
        path: The file that they were read from; for a data set on the hub, its address with the
            commit, its subset and its split.
        questions: How many.
        sha256: Hash of all ids, questions and right answers, whatever their order.
        prompts: Hash of all ids and messages that the model gets.
    """

    path: str
    questions: int
    sha256: str
    prompts: str


class RunDescription(msgspec.Struct, frozen=True):
    """What a run is, apart from its results.

    Attributes:
        settings: All that decides on the results: policy, answers, sampling, seed, …
        model: Name of the model; None as long as it is not known.
        top_k: Log-probabilities behind each token confidence; None as long as it is not known.
        data: Which questions.
        engine: Name of the engine, for people; may change while a run goes on.
        versions: Of the programs that the run was begun with.
        begun: When, as ISO 8601.
        schema_version: Version of this format.
    """

    settings: dict[str, Any]
    model: str | None
    top_k: int | None
    data: RunData
    engine: str = ""
    versions: dict[str, str] = {}
    begun: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def total_tokens(self) -> int | None:
        """Tokens that all its questions share; None for any number."""
        return self.settings.get("total_tokens")

    def differences(self, other: "RunDescription") -> str:
        """In what this and another run cannot be one, for an error; empty if in nothing."""
        mine, others = _compared(self), _compared(other)
        return "; ".join(
            f"{name} {mine.get(name)} against {others.get(name)}"
            for name in {**mine, **others}
            if mine.get(name) != others.get(name)
            and not (name in _KNOWN_LATER and mine[name] is None)
        )


def _compared(description: RunDescription) -> dict[str, Any]:
    """Everything in which a run must stay the same, by name."""
    flat = _flat(_plain(description.settings))
    data = description.data
    return {
        **flat,
        "model": description.model,
        "k": description.top_k,
        "number of questions": data.questions,
        "questions and right answers": data.sha256[:12],
        "prompts": data.prompts[:12],
    }


def _plain(value: Any) -> Any:
    """As it comes back from disk."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
