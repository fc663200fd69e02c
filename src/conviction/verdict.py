"""The verdict: what the traces agreed on, what it cost, and how it is shown and stored."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, Self

import numpy as np

from conviction.core import FinishReason, Question, Tally, Trace, require
from conviction.display import listed, quoted
from conviction.voting import lead_of

SCHEMA_VERSION = 1
"""Version of `Verdict.to_dict()`; raised whenever a field changes its meaning."""


OUT_OF_TOKENS = "tokens"
"""`Verdict.ended` of a run that a total of tokens cut short."""

UNSETTLED = frozenset(
    {"budget", "contested", OUT_OF_TOKENS, "time", "interrupted", "refused", "failed"}
)
"""Values of `Verdict.ended` of verdicts that are not settled."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Every token that was generated, by the fate of its trace.

    Attributes:
        voted: Of traces that voted.
        unvoted: Of complete traces that did not vote (filtered out, or without an answer).
        stopped: Of traces stopped for low confidence.
        cancelled: Of traces cancelled by consensus or otherwise.
        failed: Of traces that failed, and of attempts that broke off and were begun again.
        prompt: Prompt tokens, over all traces.
        cached_prompt: Those of them that the engine took from its cache.
        full_budget_estimate: What the whole budget would have generated without stopping: budget x
            mean tokens of complete traces that continue no other. None where none is complete.
    """

    voted: int = 0
    unvoted: int = 0
    stopped: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt: int = 0
    cached_prompt: int = 0
    full_budget_estimate: int | None = None

    @classmethod
    def of(cls, traces: Iterable[Trace], *, voters: frozenset[int], budget: int) -> Self:
        """Count the tokens of `traces`, of which those whose id is in `voters` voted."""
        fates: Counter[str] = Counter()
        prompt = cached = 0
        complete: list[int] = []
        for trace in traces:
            fates[_fate(trace, voters)] += trace.tokens
            fates["failed"] += trace.lost_tokens
            prompt += trace.prompt_tokens
            cached += trace.cached_tokens
            if trace.complete and trace.continues is None:
                complete.append(trace.tokens)
        estimate = round(budget * sum(complete) / len(complete)) if complete else None
        return cls(**fates, prompt=prompt, cached_prompt=cached, full_budget_estimate=estimate)

    @property
    def generated(self) -> int:
        """All generated tokens."""
        return self.voted + self.unvoted + self.stopped + self.cancelled + self.failed

    @property
    def saving_estimate(self) -> float | None:
        """Estimated part of the full budget's tokens that was not generated; may be negative."""
        if not self.full_budget_estimate:
            return None
        return 1.0 - self.generated / self.full_budget_estimate


@dataclass(frozen=True, slots=True)
class Right:
    """How often verdicts like this one were right, on recorded questions with known answers.

    Attributes:
        value: Probability of being right, in (0, 1); `low` and `high` are its 95% interval.
        pool: Name of the recording that it was learned from, of so many `questions`.
    """

    value: float
    low: float
    high: float
    pool: str
    questions: int

    def __str__(self) -> str:
        return f"{percent(self.value)} (95% interval {self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the traces agreed on, how strongly, why it ended there, and what it cost.

    Three different figures: `share` is the leader's part of the votes, `lead` the probability that
    it stays in front with more traces, `right` the calibrated probability that it is right.

    Attributes:
        answer: The leading answer; None where no trace gave one, or where the verdict abstains.
        ended: Why the run ended: "budget", "consensus", "interrupted", "time", "tokens" (a total
            that many questions share was spent), or a policy's own word.
        policy: Name and settings of the policy, with those it chose itself.
        threshold: Group confidence below which traces were stopped; None if there was none.
        window: Tokens in a group; None where no group was needed.
        top_k: Log-probabilities behind each token confidence; 0 where there were none.
        budget: The most traces the policy might have started.
        traces: All traces that were started, in order of starting.
        seconds: Wall time.
        engine: Name of the engine and its model.
        seed: The seed that every trace's seed was derived from.
        warnings: What the reader should know before trusting this.
        right: Calibrated probability of being right; None without a calibration, or where it
            cannot tell.
        abstained: Whether the answer is withheld because it is not likely enough to be right.
    """

    question: Question
    answer: str | None
    tally: Tally
    ended: str
    policy: dict[str, Any]
    traces: tuple[Trace, ...]
    usage: Usage
    budget: int
    threshold: float | None = None
    window: int | None = None
    top_k: int = 0
    seconds: float = 0.0
    engine: str = ""
    seed: int = 0
    warnings: tuple[str, ...] = ()
    right: Right | None = None
    abstained: bool = False

    @property
    def share(self) -> float:
        """The leader's part of the votes, in [0, 1]."""
        return self.tally.share

    @property
    def lead(self) -> float | None:
        """Probability that the leader stays the most frequent answer with more traces.

        In (0, 1], from whole votes; None without any. Source: the Beta criterion of
        Adaptive-Consistency, arXiv 2305.11860.
        """
        return lead_of(self.tally)

    @property
    def written(self) -> str | None:
        """The answer as the first trace that voted for it wrote it: "B) Mars", where that is "B".

        None without an answer.
        """
        leader = self.tally.leader
        if leader is None or self.answer is None:
            return None
        first = next((trace.answer for trace in self.traces if trace.id in leader.votes), None)
        return (first and first.written) or leader.text

    def abstaining(self, below: float) -> "Verdict":
        """The same, its answer withheld `below` a calibrated probability, or if that is unknown.

        Raises:
            InvalidSettingError: `below` is not in (0, 1].
        """
        require("below", below, low=1e-9, high=1.0)
        if self.answer is None or (self.right is not None and self.right.value >= below):
            return self
        return replace(self, answer=None, abstained=True)

    @property
    def best_trace(self) -> Trace | None:
        """The trace to show for the answer: of those that voted for it, the most confident."""
        leader = self.tally.leader
        if leader is None:
            return None
        supporters = [trace for trace in self.traces if trace.id in leader.votes]
        return max(supporters, key=lambda trace: _mean_confidence(trace) or 0.0, default=None)

    def finishes(self) -> dict[FinishReason, int]:
        """How many traces ended for which reason; reasons that did not occur are left out."""
        return dict(Counter(trace.finish for trace in self.traces))

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON types; per-token confidences are left out."""
        return {
            "schema_version": SCHEMA_VERSION,
            "question": self.question.text,
            "question_id": self.question.id,
            "answer": self.answer,
            "answer_written": self.written,
            "share": self.share,
            "lead": self.lead,
            "right": asdict(self.right) if self.right else None,
            "abstained": self.abstained,
            "tied": list(self.tally.tied),
            "tally": [
                {"answer": e.text, "weight": e.weight, "count": e.count, "traces": list(e.votes)}
                for e in self.tally.entries
            ],
            "ended": self.ended,
            "policy": self.policy,
            "budget": self.budget,
            "threshold": self.threshold,
            "window": self.window,
            "top_k": self.top_k,
            "usage": {
                **asdict(self.usage),
                "generated": self.usage.generated,
                "saving_estimate": self.usage.saving_estimate,
            },
            "seconds": self.seconds,
            "engine": self.engine,
            "seed": self.seed,
            "warnings": list(self.warnings),
            "traces": [_trace_to_dict(trace) for trace in self.traces],
        }

    def _repr_html_(self) -> str:
        """A table for notebooks; all text of the model is escaped."""
        cost = f"{len(self.traces)} traces, {self.usage.generated:,} tokens, {self.seconds:.1f} s"
        rows = "".join(
            f"<tr><td>{escape(entry.text)}</td><td>{entry.count}</td>"
            f"<td>{entry.weight / self.tally.total if self.tally.total else 0:.0%}</td></tr>"
            for entry in self.tally.entries
        )
        notes = "".join(f"<li>{escape(warning)}</li>" for warning in self.warnings)
        withheld = "abstained" if self.abstained else "no answer"
        answer = escape(withheld if self.answer is None else self.answer)
        sure = "".join(f"<p>{escape(line)}</p>" for line in how_sure(self))
        return (
            f"<div><p><b>{answer}</b></p>"
            f"<table><thead><tr><th>answer</th><th>votes</th><th>share of weight</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>{sure}"
            f"<p>{cost}, ended by {escape(self.ended)}</p><ul>{notes}</ul></div>"
        )


def how_sure(verdict: Verdict) -> Iterator[str]:
    """What a verdict says beyond its votes, in words that do not mix the figures up."""
    if verdict.lead is not None:
        yield lead_in_words(verdict.lead)
    if right := verdict.right:
        source = f"{right.questions} questions of {right.pool}"
        yield f"right with a calibrated probability of {right}, by {source}"


def lead_in_words(lead: float) -> str:
    """`Verdict.lead` in words, not to be taken for a probability of being right."""
    return f"asked on and on, it would lead, right or wrong: {percent(lead)}"


def percent(probability: float) -> str:
    """A probability for people; nothing that was estimated is certain."""
    if probability > 0.995:
        return ">99%"
    return "<1%" if probability < 0.005 else f"{probability:.0%}"


def caveats(traces: Sequence[Trace], tally: Tally) -> Iterator[str]:
    """What a reader should know before trusting a tally of these traces; one line each."""
    if tally.tied:
        tied = ", ".join(map(quoted, tally.tied))
        yield f"Tied: {tied}. The answer that was seen first is shown."
    if tally.leader and not tally.tied and tally.share < 0.5:
        yield f"No answer has half of the vote; the leader has {tally.share:.0%}."
    if len(tally.voters) == 1 and len(traces) > 1:
        yield "Only one trace voted."
    failed = [trace.error for trace in traces if trace.finish is FinishReason.ERROR]
    if failed:
        yield f"{len(failed)} of {len(traces)} traces failed: {listed(failed)}"


def _fate(trace: Trace, voters: frozenset[int]) -> str:
    if trace.id in voters:
        return "voted"
    match trace.finish:
        case FinishReason.STOP | FinishReason.LENGTH:
            return "unvoted"
        case FinishReason.LOW_CONFIDENCE:
            return "stopped"
        case FinishReason.CONSENSUS | FinishReason.CANCELLED:
            return "cancelled"
        case FinishReason.ERROR:
            return "failed"


def _mean_confidence(trace: Trace) -> float | None:
    known = trace.confidences[np.isfinite(trace.confidences)]
    return float(known.mean(dtype=np.float64)) if known.size else None


def _trace_to_dict(trace: Trace) -> dict[str, Any]:
    return {
        "id": trace.id,
        "seed": trace.seed,
        "finish": str(trace.finish),
        "tokens": trace.tokens,
        "answer": trace.answer.text if trace.answer else None,
        "text": trace.text,
        "mean_confidence": _mean_confidence(trace),
        "started": trace.started,
        "ended": trace.ended,
        "error": trace.error or None,
        "restarts": trace.restarts,
        "lost_tokens": trace.lost_tokens,
        "continues": trace.continues,
    }
