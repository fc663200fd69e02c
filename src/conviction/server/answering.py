"""From a verdict to what a client gets: the text, why it ended, the tokens, the verdict itself."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from conviction.core import FinishReason, Trace
from conviction.errors import AllTracesFailedError
from conviction.server.settings import Content
from conviction.verdict import Verdict

_THOUGHT = re.compile(r"\A\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client gets for a verdict.

    Attributes:
        text: What the message holds.
        reasoning: What the shown trace thought before, where its model marks that.
        finish: "stop", or "length" if the shown trace was cut.
        shown: What the text is: a trace's, or the answer alone.
        trace: Id of the trace that is shown.
    """

    text: str
    reasoning: str
    finish: Literal["stop", "length"]
    shown: Content
    trace: int


def reply(verdict: Verdict, content: Content) -> Reply:
    """What to show for a verdict.

    The most confident of the traces that voted for the answer; without an answer the most confident
    of those that are whole and have any text, else the longest there is.

    Args:
        verdict: The verdict.
        content: What the message is to hold. Where there is no answer, it is a trace's text.

    Raises:
        AllTracesFailedError: there is no trace.
    """
    shown = verdict.best_trace or _without_answer(verdict.traces)
    if shown is None:
        raise AllTracesFailedError(
            tried=f"answer with {len(verdict.traces)} traces",
            causes=[f"none had begun when the run ended ({verdict.ended})"],
            remedy="Ask again, or allow more time.",
        )
    # What follows a prompt is given as it is, white space too.
    reasoning, text = (
        ("", shown.text) if verdict.question.templated else split_reasoning(shown.text)
    )
    finish = "stop" if shown.finish is FinishReason.STOP else "length"
    if content == "answer" and verdict.answer is not None:
        return Reply(verdict.answer, reasoning, finish, "answer", shown.id)
    return Reply(text, reasoning, finish, "trace", shown.id)


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning in `<think>` at the beginning of a text, and what follows it.

    Some chat templates open the tag themselves, so that only its end is in the text.
    """
    if found := _THOUGHT.match(text):
        return found[1].strip(), text[found.end() :].strip()
    before, end, after = text.partition("</think>")
    return (before.strip(), after.strip()) if end else ("", text.strip())


def usage(verdict: Verdict, shown: Reply) -> dict[str, Any]:
    """All tokens of all traces, in OpenAI's shape; those that are not shown count as reasoning."""
    tokens = verdict.usage
    visible = sum(trace.tokens for trace in verdict.traces if trace.id == shown.trace)
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.generated,
        "total_tokens": tokens.prompt + tokens.generated,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_prompt},
        "completion_tokens_details": {
            "reasoning_tokens": tokens.generated - (visible if shown.shown == "trace" else 0),
            "voted_tokens": tokens.voted,
            "unvoted_tokens": tokens.unvoted,
            "stopped_tokens": tokens.stopped,
            "cancelled_tokens": tokens.cancelled,
            "failed_tokens": tokens.failed,
        },
    }


def conviction_object(verdict: Verdict, shown: Reply, run: str) -> dict[str, Any]:
    """The verdict, without the texts of its traces, for programs that know of it."""
    # Without the traces, which take longer than all else together.
    whole = replace(verdict, traces=()).to_dict()
    kept = (
        "schema_version", "answer", "share", "lead", "tied", "tally", "ended", "policy", "budget",
        "threshold", "window", "top_k", "usage", "seconds", "engine", "seed",
    )  # fmt: skip
    return {
        "run": run,
        "content": shown.shown,
        "trace": shown.trace,
        **{name: whole[name] for name in kept},
        "warnings": [*verdict.warnings, *_nothing_voted(verdict)],
        "traces": {str(reason): count for reason, count in verdict.finishes().items()},
    }


def _nothing_voted(verdict: Verdict) -> Iterator[str]:
    if verdict.answer is None:
        yield "No answer was found to vote on; the text of one trace is shown."


def _without_answer(traces: Sequence[Trace]) -> Trace | None:
    written = [trace for trace in traces if trace.text.strip()]
    whole = [trace for trace in written if trace.finish is FinishReason.STOP]
    if whole:
        return max(whole, key=_confidence)
    return max(written or traces, key=lambda trace: trace.tokens, default=None)


def _confidence(trace: Trace) -> float:
    known = trace.confidences[np.isfinite(trace.confidences)]
    return float(known.mean(dtype=np.float64)) if known.size else 0.0
