"""One honest line about what a run did."""

from conviction.core import FinishReason
from conviction.verdict import Verdict, how_sure

_WORDS = {
    FinishReason.STOP: "finished",
    FinishReason.LENGTH: "cut at the token limit",
    FinishReason.LOW_CONFIDENCE: "stopped for low confidence",
    FinishReason.CONSENSUS: "no longer needed",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.ERROR: "failed",
}


def summary(verdict: Verdict) -> str:
    """The vote and how sure it is, traces by fate, tokens, saving as an estimate, time."""
    parts = [
        _vote(verdict),
        *how_sure(verdict),
        _traces(verdict),
        f"{verdict.usage.generated:,} tokens",
    ]
    saving = saved(verdict)
    if saving:
        parts.append(saving)
    parts.append(f"{verdict.seconds:.1f} s")
    return "; ".join(part for part in parts if part) + f". Ended by {verdict.ended}."


def _vote(verdict: Verdict) -> str:
    leader = verdict.tally.leader
    if leader is None:
        return "No answer"
    return (
        f"{leader.count} of {len(verdict.tally.voters)} votes ({verdict.share:.0%} of the weight)"
    )


def _traces(verdict: Verdict) -> str:
    counts = verdict.finishes()
    fates = ", ".join(
        f"{counts[reason]} {word}" for reason, word in _WORDS.items() if reason in counts
    )
    return f"{len(verdict.traces)} of {verdict.budget} traces started ({fates})"


def saved(verdict: Verdict) -> str:
    """The estimated saving against the whole budget without stopping; empty if it is unknown."""
    saving = verdict.usage.saving_estimate
    if saving is None or verdict.budget == 1:
        return ""
    if saving <= 0.005:
        return "no tokens saved"
    return f"about {saving:.0%} fewer than {verdict.budget} full traces would take (estimate)"
